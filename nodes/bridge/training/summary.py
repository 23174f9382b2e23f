"""Says in a few lines what came out of a run."""

from __future__ import annotations

from ....lora_core.adapter import Adapter
from ....lora_core.training.state import TrainState


def _recent(losses: list[float], count: int = 50) -> float:
    tail = losses[-count:]
    return sum(tail) / len(tail)


def summary(state: TrainState, adapter: Adapter, report: str, *said: str) -> str:
    """`said` are sentences of the task about the LoRA."""
    losses, dropped = state.losses, state.health.dropped
    tenth = max(len(losses) // 10, 1)
    lines = (
        f"{len(losses)} steps, loss {_recent(losses[:tenth]):.4f} -> {_recent(losses, tenth):.4f}; "
        f"{len(adapter.low_ranks())} layers, rank {adapter.rank()}, {adapter.num_parameters():,} parameters"
        f"{f'; {dropped} steps dropped, see log.jsonl' if dropped else ''}",
        report.splitlines()[0],
        *said,
    )
    return "\n".join(lines)
