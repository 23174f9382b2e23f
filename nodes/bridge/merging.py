"""Merge stack rows and connected adapters into one Adapter in the model's layer names."""

from __future__ import annotations

from collections.abc import Sequence

from ...lora_core.adapter import Adapter
from ...lora_core.files import metadata
from ...lora_core.merging.exact_sum import Weighted, exact_sum, truncated
from .keys import NameTable
from .stack import Entry, load_rows, rows_of


def parse_strengths(text: str, count: int | None) -> list[float]:
    """Comma-separated strengths; empty text means 1 each. Raises ValueError when a number or their count is wrong."""
    try:
        values = [float(part) for part in text.split(",")] if text.strip() else [1.0] * (count or 0)
    except ValueError as error:
        raise ValueError(f"strengths is {text!r}; write numbers separated by commas, such as 1.0, 0.5") from error
    if not all(abs(value) <= 20 for value in values):
        raise ValueError(f"strengths is {text!r}; each must be between -20 and 20")
    if count is not None and len(values) != count:
        raise ValueError(f"{len(values)} strengths for {count} connected adapters; give one for each, or none")
    return values


def merge(
    model, clip, lora_stack, adapters: Sequence[Adapter], strengths: Sequence[float], rank: int
) -> tuple[Adapter, str]:
    """The exact sum of all parts, cut to `rank` when it is not 0. Returns the adapter and a report."""
    table = NameTable(model, clip)
    parts = load_rows(rows_of(lora_stack), table)
    for number, (adapter, strength) in enumerate(zip(adapters, strengths, strict=True)):
        name = adapter.metadata.get("modelspec.title") or f"adapter {number + 1}"
        resolved = table.resolve(adapter, name)
        parts.append(Entry(name, resolved.adapter, strength, strength, resolved.unmatched))
    _refuse_lost_layers(parts)
    layers = exact_sum(parts)
    if not layers:
        raise ValueError("there is nothing to merge; connect adapters or a lora_stack with strengths other than 0")
    layers, errors = truncated(layers, rank) if rank else (layers, dict.fromkeys(layers, 0.0))
    return _described(Adapter(layers), parts, table), _report(parts, layers, errors, rank)


def _refuse_lost_layers(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.unmatched:
            raise ValueError(
                f"{entry.name}: {len(entry.unmatched)} layers would be lost, for example {entry.unmatched[0]}; "
                "connect CLIP for text-encoder layers, or the model the LoRA was made for"
            )


def _described(adapter: Adapter, parts: Sequence[Weighted], table: NameTable) -> Adapter:
    family, parents = table.family, [part.adapter.metadata for part in parts]
    facts = metadata.Facts(
        title=" + ".join(part.name for part in parts)[:120],
        architecture=family.architecture, base_version=family.base_version,
        trigger=", ".join(filter(None, (p.get("modelspec.trigger_phrase") for p in parents))),
        merged_from=tuple(_parent(part) for part in parts),
    )  # fmt: skip
    return Adapter(adapter.layers, metadata.build(facts, adapter))


def _parent(part: Weighted) -> metadata.Parent:
    return metadata.Parent(part.name, part.adapter.metadata.get("sshs_model_hash", "unknown"), part.strength)


def _report(parts: Sequence[Weighted], layers, errors: dict[str, float], rank: int) -> str:
    lines = [f"{part.name} x {part.strength:g}" for part in parts]
    ranks = [layer.rank for layer in layers.values()]
    size = sum(layer.num_parameters() for layer in layers.values())
    lines.append(f"{len(layers)} layers, rank {min(ranks)} to {max(ranks)}, {size:,} parameters")
    if not rank:
        return "\n".join([*lines, "the sum is exact"])
    worst = sorted(errors, key=errors.__getitem__, reverse=True)
    lines.append(f"relative error per layer after the cut to rank {rank}:")
    return "\n".join(lines + [f"  {errors[name]:.2e}  {name}" for name in worst])
