"""A file of any kind as a plain LoRA of one model, whose weights some kinds need to be known."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from math import hypot
from typing import Any

import comfy.model_management
import torch

from ....lora_core.adapter import TEXT_PREFIX, Adapter, layers_of
from ....lora_core.drawing.measure import Measure
from ....lora_core.files import mismatch, strays
from ....lora_core.files.lineage import Parent, losses
from ....lora_core.merging.conversion import Converted, convert, convert_steps
from ....lora_core.merging.cut_table import error_measure
from ....lora_core.merging.truncation import Limits
from ....lora_core.ranks.group import ALONE, Group
from ....lora_core.stack.chain import Step
from ..host import takedown
from ..host.device import with_fp64
from ..host.folders import lora_path
from ..host.lora_files import read_lora
from ..host.model_files import lora_hash
from ..host.progress import Progress
from ..host.wires import Clip, Model
from ..model.names import names_of
from ..model.weights import base_weight
from .provenance import described, lost_layers, refuse_losses
from .recast import KINDS, PLAIN, SAME, recast, strengthened

Tick = Callable[[int, int], None]
_SAID = {PLAIN: "plain LoRA"}


def convert_file(
    name: str, model: Model, clip: Clip | None, limits: Limits, tick: Tick, kind: str = PLAIN, strength: float = 1.0
) -> tuple[Adapter, str, Measure]:  # fmt: skip
    """Return the file as one of a kind that does at 1 what it does at `strength`, a report, and its figures for the
    front end. Raises ValueError for one that is not for this MODEL and CLIP."""
    path, table = lora_path(name), names_of(model, clip)
    file = read_lora(path)
    resolved = table.resolve(file, path.name)
    verdict = takedown.checked(name, file, resolved.adapter)
    refuse_losses(path.name, resolved.unmatched, table.has_text)
    found = resolved.adapter
    made = _of_kind(path.stem, found, model, clip, limits, tick, kind, strength)
    parent = Parent.of(path.stem, found.metadata, strength, strength, lora_hash(name, Progress(1)))
    how = {"method": "convert", "rank": limits.rank, "energy": limits.energy}
    how |= {"kind": kind} if kind != PLAIN else {}
    if made.errors or made.left_out:
        how["converted"] = [conversion_record(path.stem, found, made)]
    if gone := lost_layers(path.stem, resolved.unmatched, resolved.misfits):
        how["left_out"] = gone
    if overruled := verdict.overruled():
        how["overruled"] = [{"name": path.stem, **each} for each in overruled]
    adapter = described(made.adapter.layers, [parent], [found.metadata], table.family.spelled, how)
    adapter = replace(adapter, others=made.adapter.others, embeddings=found.embeddings)
    beside = [strays.left_out_note(found.left_out)] if found.left_out else []
    missing = mismatch.lacking(resolved.unmatched), mismatch.left_out(resolved.misfits)
    line = "; ".join(filter(None, (f"{path.stem}: {layers_of(found)}", *missing)))
    size = f"rank up to {adapter.rank()}" if kind == PLAIN else f"now {layers_of(adapter)}"
    size += f", {adapter.num_parameters():,} numbers" if kind != PLAIN else ""
    lines = [line, *verdict.lines(path.stem), *beside, size, *cost(made, kind)]
    text = "\n".join(lines + [f"  {100 * error:.3g} %  {name}" for name, error in worst_first(made)])
    return adapter, text, error_measure(made.error, made.errors, f"{line}, {size}.")


def _of_kind(
    stem: str, found: Adapter, model: Model, clip: Clip | None, limits: Limits, tick: Tick, kind: str, strength: float
) -> Converted:
    if not strength:
        raise ValueError("strength is 0, which removes the whole LoRA; set another")
    if kind == SAME:
        return Converted(strengthened(found.copied(torch.float32), strength))
    exact = replace(limits, rank=0) if kind in KINDS else limits
    made = as_plain(found, model, clip, exact, tick, lambda name: strength)
    if not made.adapter.layers:
        raise ValueError(f"{stem} changes only biases and norms, which a LoRA cannot contain; use Load LoRA Stack")
    made.left_out |= {name: vector.kind for name, vector in made.vectors.items()}
    if kind not in KINDS:
        return replace(made, adapter=strengthened(made.adapter, strength))
    with torch.inference_mode(False), torch.no_grad():
        cast = recast(made.adapter, found.copied(torch.float32), kind, limits.rank, tick)
    errors = {name: hypot(error, made.errors.get(name, 0.0)) for name, error in cast.errors.items()}
    return replace(made, adapter=strengthened(cast.adapter, strength), errors=errors, sizes=made.adapter.energies())


def as_plain(
    adapter: Adapter, model: Model, clip: Clip | None, limits: Limits, tick: Tick,
    strength_of: Callable[[str], float] = lambda name: 1.0, group: Group = ALONE,
) -> Converted:  # fmt: skip
    """Return an adapter in the model's names with every matrix as a LowRank, on the CPU, to be applied at
    `strength_of`. The ranks of `group` share the work."""
    fixed = {name for name, items in adapter.others.items() if not any(item.depends_on_weight for item in items)}
    return _on_cpu(lambda: convert(adapter, limits, _weights(model, clip, fixed), tick, strength_of, group))


def in_order(
    steps: Mapping[str, Sequence[Step]], model: Model, clip: Clip | None, limits: Limits, tick: Tick,
    group: Group = ALONE,
) -> Converted:  # fmt: skip
    """Return what the steps of each layer do one after the other, as an adapter at strength 1, on the CPU."""
    return _on_cpu(lambda: convert_steps(steps, limits, _weights(model, clip), tick, group))


def _on_cpu(work: Callable[[], Converted]) -> Converted:
    with torch.inference_mode(False), torch.no_grad():
        made = work()
        vectors = {name: vector.to("cpu") for name, vector in made.vectors.items()}
        return replace(made, adapter=made.adapter.map(lambda layer: layer.to("cpu")), vectors=vectors)


def _weights(model: Model, clip: Clip | None, fixed: Container[str] = ()) -> Callable[[str], torch.Tensor]:
    """Return a function that gives the weight of a layer without the patches on it, in fp32; of `fixed` layers, whose
    change is the same on any weight, zeros that take no memory."""
    device = with_fp64(comfy.model_management.get_torch_device())
    patchers = {False: model, **({True: clip.patcher} if clip is not None else {})}
    held = {text: patcher.model.state_dict().keys() for text, patcher in patchers.items()}
    table, zero = names_of(model, clip), torch.zeros((), device=device)

    def weight_of(name: str) -> torch.Tensor:
        if name in fixed:
            return zero.expand(table.shapes.get(name) or table.parameters[name])
        text, key = name.startswith(TEXT_PREFIX), name.removeprefix(TEXT_PREFIX)
        return base_weight(patchers[text], f"{key}.weight" if f"{key}.weight" in held[text] else key, device).float()

    return weight_of


def cost(made: Converted, kind: str = PLAIN) -> list[str]:
    """Say what became of the layers that are of another kind now."""
    lines = []
    if made.errors:
        name, error = worst_first(made)[0]
        whole = f"relative error {100 * made.error:.3g} %, at most {100 * error:.3g} % in a layer ({name})"
        lines.append(f"{len(made.errors)} layers were converted to {_SAID.get(kind, kind)}, {whole}")
    if made.left_out:
        first = next(iter(made.left_out))
        lines.append(
            f"{len(made.left_out)} biases and norms are left out, for example {first}: a LoRA cannot contain them"
        )
    return lines


def conversion_record(name: str, adapter: Adapter, made: Converted) -> dict[str, Any]:
    """For the file: what the kinds of `adapter` were, and what it cost to make it plain."""
    left_out = {"left_out": sorted(made.left_out)} if made.left_out else {}
    return {"name": name, "kinds": dict(adapter.kinds()), **losses(made.error, made.errors), **left_out}


def worst_first(made: Converted) -> list[tuple[str, float]]:
    return sorted(made.errors.items(), key=lambda item: -item[1])
