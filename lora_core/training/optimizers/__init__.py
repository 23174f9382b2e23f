"""Every optimiser by name, one file each. Weight decay is decoupled in all.

To add one, add its file, a row here and one in the help page; the tests name what is still missing. Names and their
order are those of the node's list and of runs: a new one comes last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from .adafactor import Adafactor
from .adamw import adamw
from .adamw8bit import AdamW8bit
from .lion import Lion
from .method import Method
from .muon import Muon
from .prodigy import Prodigy
from .schedule_free import ScheduleFreeAdamW

if TYPE_CHECKING:
    from ..config import OptimizerConfig

OPTIMIZERS: Mapping[str, Method] = {
    "adamw": Method(
        "AdamW", adamw, state=2, rate=1.0, beta1=0.9, beta2=0.999, eps=1e-8, tip="adamw is the safe choice."
    ),
    "adamw8bit": Method("AdamW8bit", AdamW8bit, state=0.6, rate=1.0, beta1=0.9, beta2=0.999, eps=1e-8),
    "adafactor": Method("Adafactor", Adafactor, state=1, rate=1.0),  # a row and a column of each matrix
    "lion": Method("Lion", Lion, state=1, rate=0.2, beta1=0.9, beta2=0.99),
    "prodigy": Method(
        "Prodigy", Prodigy, state=4, rate=None, beta1=0.9, beta2=0.999, eps=1e-8,
        tip="prodigy finds the learning rate by itself: leave Train LoRA's learning_rate at 0 (auto) or set it to 1.",
    ),
    "schedule_free_adamw": Method(
        "AdamWScheduleFree", ScheduleFreeAdamW, state=2, rate=2.5, beta1=0.9, beta2=0.999, eps=1e-8
    ),
    "muon": Method("Muon", Muon, state=1, rate=1.0, beta1=0.95),
}  # fmt: skip


def make(config: OptimizerConfig, parts: Sequence[tuple[Tensor, Sequence[Tensor], float]]) -> Optimizer:
    """One parameter group per part: a flat fp32 buffer, the matrices that are views of it, and its peak learning rate.

    Each group keeps its peak as `peak`.
    """
    method = config.method
    groups: list[dict[str, Any]] = [{"params": [flat], "lr": peak, "peak": peak} for flat, _, peak in parts]
    if method.on_matrices:
        for group, (flat, matrices, _) in zip(groups, parts, strict=True):
            group |= {"flat": flat, "params": list(matrices)}
    return method.build(groups, weight_decay=config.weight_decay, **config.numbers)
