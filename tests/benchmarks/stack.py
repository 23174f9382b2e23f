"""Applying k LoRAs to a ComfyUI model, and reading them: Load LoRA Stack against a chain of ComfyUI's LoraLoader.

`core` is the chain of LoraLoader nodes. `whole node` starts at the files and ends with patched weights; `patching` is
the load of a MODEL that has its patches.
The error is that of the weights, |W' - (W + delta_W)| / |delta_W| over all patched layers, delta_W in fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import _comfy  # first: makes comfy importable
import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.utils
import torch
from _measure import Variant, alternate, arguments, begin, mebibytes, peak, plain, table
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats
from lora_loom.nodes.bridge.keys import NameTable
from lora_loom.nodes.bridge.stack import apply_rows

import nodes

RANK, STRENGTH = 32, 0.8
OURS, CORE, BARE, IDEAL = "ours", "core", "no LoRA, load alone", "the fp64 sum, rounded once"
WHOLE, PATCHING = "whole node", "patching"
MODELS = [("SD 1.5, two levels", _comfy.SD_TWO_LEVELS), ("FLUX.1, one single block", _comfy.FLUX_BLOCK)]
REAL_MODELS = [("SD 1.5", _comfy.SD_REAL), ("FLUX.1", _comfy.FLUX_REAL)]


def ours(model, names: Sequence[str]):
    return apply_rows(model, None, [(name, STRENGTH, 0.0) for name in names])[0]


def core(model, names: Sequence[str]):
    for name in names:
        model = nodes.LoraLoader().load_lora(model, None, name, STRENGTH, 0.0)[0]
    return model


def loading(make: Callable[[], Any], prepared: bool) -> Variant:
    """Times making a patched MODEL and loading it; `prepared`: loading alone."""

    @contextmanager
    def session() -> Iterator:
        made = make() if prepared else None
        yield lambda: comfy.model_management.load_models_gpu([made if prepared else make()], force_full_load=True)
        comfy.model_management.unload_all_models()

    return session


class Truth:
    """The weights before, and how far those that are there now are from the sum in fp64."""

    def __init__(self, model, adapters: Sequence[Adapter]):
        self.network, self.adapters = model.model, adapters
        self.before = {name: self.weight(name).clone() for name in adapters[0].layers}

    def weight(self, name: str) -> torch.Tensor:
        return self.network.get_parameter(f"{name}.weight")

    def error(self, weight: Callable[[str, torch.Tensor], torch.Tensor]) -> str:
        """`weight` gives the layer's corrected weight from its name and the wanted one."""
        wrong = size = 0.0
        for name, before in self.before.items():
            delta = sum(a.layers[name].to(torch.float64).scaled(STRENGTH).delta_weight() for a in self.adapters)
            wanted = before.double() + delta.view(before.shape)
            wrong += float((weight(name, wanted).double() - wanted).square().sum())
            size += float(delta.square().sum())
        return f"{(wrong / size) ** 0.5:.4g}"


def compare_stack(label: str, model, names: Sequence[str], adapters: Sequence[Adapter], rounds: int) -> None:
    truth = Truth(model, adapters)
    make = {OURS: lambda: ours(model, names), CORE: lambda: core(model, names)}
    variants = {f"{who}, {what}": loading(make[who], what == PATCHING) for what in (WHOLE, PATCHING) for who in make}
    variants[BARE] = loading(model.clone, True)
    facts = {}
    for name, variant in variants.items():
        with variant() as step:
            _, held = peak(step)
            facts[name] = (mebibytes(held), truth.error(lambda layer, _: truth.weight(layer)))
    times = alternate(variants, rounds)
    rows = [(n, times.milliseconds(n), times.ratio(n, counterpart(n)), *facts[n]) for n in variants]
    dtype = next(iter(truth.before.values())).dtype
    rows.append((IDEAL, "", "", "", truth.error(lambda _, wanted: wanted.to(dtype))))
    title = f"{label}, {str(dtype)[6:]}: {len(names)} LoRAs of rank {RANK} on {len(truth.before)} layers"
    table(title, ("", "ms", "time / ours", "MiB", "error"), rows)


def counterpart(name: str) -> str:
    """Our variant that does the same."""
    return f"{OURS}, {PATCHING}" if name == BARE else f"{OURS},{name.partition(',')[2]}"


def compare_reading(label: str, model, name: str, rounds: int) -> None:
    """One file to patches that fit the model; `names` is the table of spellings, which either builds once per node."""
    path = _comfy.LORAS / name
    known, key_map = NameTable(model), comfy.lora.model_lora_keys_unet(model.model, {})

    def core_read(names: dict | None) -> dict:
        tensors, _ = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
        names = comfy.lora.model_lora_keys_unet(model.model, {}) if names is None else names
        return comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), names)

    variants = {
        f"{OURS}, names known": plain(lambda: known.resolve(formats.read(path), name)),
        "core, names known": plain(lambda: core_read(key_map)),
        f"{OURS}, names built": plain(lambda: NameTable(model).resolve(formats.read(path), name)),
        "core, names built": plain(lambda: core_read(None)),
    }
    for variant in variants.values():
        with variant() as step:
            step()
    times = alternate(variants, rounds)
    rows = [(n, times.milliseconds(n), times.ratio(n, counterpart(n))) for n in variants]
    size = f"{len(formats.read(path).layers)} layers, {mebibytes(path.stat().st_size)} MiB"
    table(f"{label}: reading one file of {size}", ("", "ms", "time / ours"), rows)


def main() -> None:
    options = begin(arguments(__doc__))
    kept = 1 if options.quick else None
    for label, row in MODELS[:kept]:
        for dtype in (torch.bfloat16, torch.float32)[:kept]:
            model = _comfy.build(row, dtype)
            names, adapters = _comfy.write_loras(model, 2 if options.quick else 8, RANK)
            for count in [count for count in (1, 2, 4, 8) if count <= len(names)]:
                compare_stack(label, model, names[:count], adapters[:count], options.rounds)
    for label, row in REAL_MODELS[:kept]:
        model = _comfy.build(row, weights=False)
        compare_reading(label, model, _comfy.write_loras(model, 1, rank=16)[0][0], options.rounds)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
