"""TIES (Yadav et al. 2023, arXiv:2306.01708): trim small entries, elect a sign, average what agrees with it."""

from torch import Tensor

from .task import Task, elected_mean, kept_largest


def combine(task: Task) -> Tensor:
    return elected_mean(kept_largest(task.cores, task.density))
