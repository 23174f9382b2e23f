"""Magnitude pruning (Han et al. 2015, arXiv:1506.02626): of each LoRA the largest entries, added up."""

from torch import Tensor

from .task import Task, kept_largest


def combine(task: Task) -> Tensor:
    return kept_largest(task.cores, task.density).sum(0)
