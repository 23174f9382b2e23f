"""A file of any kind as a plain LoRA of one model, whose weights some kinds need to be known."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import torch

from ...lora_core.adapter import TEXT_PREFIX, Adapter
from ...lora_core.files import formats, metadata
from ...lora_core.files.hashes import data_hash
from ...lora_core.files.lineage import Parent
from ...lora_core.merging.conversion import Converted, convert
from ...lora_core.merging.truncation import Limits
from .folders import lora_path
from .keys import NameTable
from .stack import layers_of

Tick = Callable[[int, int], None]


def convert_file(name: str, model, clip, limits: Limits, tick: Tick) -> tuple[Adapter, str]:
    """The file as a plain LoRA, and a report. Raises ValueError for one that is not for this MODEL and CLIP."""
    path, table = lora_path(name), NameTable(model, clip)
    resolved = table.resolve(formats.read(path), path.name)
    if resolved.unmatched:
        raise ValueError(
            f"{path.name}: {len(resolved.unmatched)} layers would be lost, for example {resolved.unmatched[0]}; "
            "connect CLIP for text-encoder layers, or the model the LoRA was made for"
        )
    made = as_plain(resolved.adapter, model, clip, limits, tick)
    if not made.adapter.layers:
        raise ValueError(f"{path.name} changes only biases and norms, which no LoRA can hold; use Load LoRA Stack")
    parent = Parent.of(path.stem, resolved.adapter.metadata, 1.0, 1.0, data_hash(path))
    facts = metadata.Facts(
        title=path.stem, architecture=table.family.architecture, base_version=table.family.base_version,
        base_name=parent.base, trigger=parent.trigger, merged_from=(parent,),
        made_by={"converted": dict(resolved.adapter.kinds()), "rank": limits.rank, "energy": limits.energy},
    )  # fmt: skip
    adapter = Adapter(made.adapter.layers, metadata.build(facts, made.adapter))
    lines = [f"{path.stem}: {layers_of(resolved.adapter)}", f"rank up to {adapter.rank()}", *cost(made)]
    return adapter, "\n".join(lines + [f"  {error:.2e}  {name}" for name, error in worst_first(made)])


def as_plain(adapter: Adapter, model, clip, limits: Limits, tick: Tick) -> Converted:
    """An adapter in the model's names with every matrix as a LowRank, on the CPU."""
    device = comfy.model_management.get_torch_device()
    device = torch.device("cpu") if device.type == "mps" else device  # which has no fp64
    held = {"": model.get_key_patches("diffusion_model.")}
    if any(name.startswith(TEXT_PREFIX) for name in adapter.others):
        held[TEXT_PREFIX] = clip.patcher.get_key_patches()

    def weight_of(name: str) -> torch.Tensor:
        prefix = TEXT_PREFIX if name.startswith(TEXT_PREFIX) else ""
        key, weights = name.removeprefix(prefix), held[prefix]
        weight, converted = (weights.get(f"{key}.weight") or weights[key])[0]
        return converted(comfy.model_management.cast_to_device(weight, device, torch.float32, copy=True), inplace=True)

    with torch.inference_mode(False), torch.no_grad():
        made = convert(adapter, limits, weight_of, tick)
        layers = {name: layer.to("cpu") for name, layer in made.adapter.layers.items()}
    return Converted(Adapter(layers, adapter.metadata), made.errors, made.left_out)


def cost(made: Converted) -> list[str]:
    """What became of the kinds that are no plain LoRA."""
    lines = []
    if made.errors:
        name, error = worst_first(made)[0]
        lines.append(f"{len(made.errors)} layers became plain LoRA, relative error up to {error:.2e} ({name})")
    if made.left_out:
        first = next(iter(made.left_out))
        lines.append(
            f"{len(made.left_out)} biases and norms are left out, for example {first}: a LoRA cannot hold them"
        )
    return lines


def worst_first(made: Converted) -> list[tuple[str, float]]:
    return sorted(made.errors.items(), key=lambda item: -item[1])
