"""Applying k LoRAs to a ComfyUI model, and reading them: Load LoRA Stack against a chain of ComfyUI's LoraLoader.

`core` is the chain of LoraLoader nodes. `from the files` ends with patched weights, `patching` is the load of a MODEL
that has its patches. `a strength` changes that of the last LoRA on a model that is loaded, where the chain runs only
its last node. Figures about LoRAs in the report of Load LoRA Stack are not in these times.
The error is that of the weights, |W' - (W + delta_W)| / |delta_W| over all patched layers, delta_W in fp64. Of fp8
weights it is that of a layer's output, beside what delta_W changes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import _comfy  # first: makes comfy importable
import _real
import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.utils
import torch
from _measure import Variant, alternate, arguments, begin, mebibytes, peak, plain, table
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.files.store import Store
from lora_loom.lora_core.stack.rows import Row
from lora_loom.nodes.bridge.model.names import NameTable, names_of
from lora_loom.nodes.bridge.stack.apply_stack import apply_entries
from lora_loom.nodes.bridge.stack.entries import load_rows

import nodes

RANK, STRENGTH = 32, 0.8
OURS, CORE, BARE, IDEAL = "ours", "core", "no LoRA, load alone", "the fp64 sum, rounded once"
WHOLE, PATCHING, CHANGE = "from the files", "patching", "a strength"
MODELS = [("SD 1.5, two levels", _comfy.SD_TWO_LEVELS), ("FLUX.1, one single block", _real.FLUX_1_BLOCK)]
REAL_MODELS = [("SD 1.5", _real.SD_1_5), ("FLUX.1", _real.FLUX_1)]


def ours(model, names: Sequence[str], last: float = STRENGTH, apply: str = "auto"):
    rows = [Row(name, STRENGTH, 0.0) for name in names[:-1]] + [Row(names[-1], last, 0.0)]
    return apply_entries(model, None, load_rows(rows, names_of(model)), apply)[0]


def core(model, names: Sequence[str], last: float = STRENGTH):
    for name in names[:-1]:
        model = nodes.LoraLoader().load_lora(model, None, name, STRENGTH, 0.0)[0]
    return nodes.LoraLoader().load_lora(model, None, names[-1], last, 0.0)[0]


def changing(apply: Callable[[float], Any]) -> Variant:
    """Times the change of a strength, from a model that is loaded with another one."""

    @contextmanager
    def session() -> Iterator:
        first = apply(0.3)
        comfy.model_management.load_models_gpu([first], force_full_load=True)
        yield lambda: comfy.model_management.load_models_gpu([apply(STRENGTH)], force_full_load=True)
        comfy.model_management.unload_all_models()

    return session


def loading(make: Callable[[], Any], prepared: bool) -> Variant:
    """Times making a patched MODEL and loading it; `prepared`: loading alone."""

    @contextmanager
    def session() -> Iterator:
        made = make() if prepared else None
        yield lambda: comfy.model_management.load_models_gpu([made if prepared else make()], force_full_load=True)
        comfy.model_management.unload_all_models()

    return session


def chain_but_last(model, names: Sequence[str]) -> Callable[[float], Any]:
    """The chain whose last node alone runs again, with the file that it has kept."""
    before = core(model, names[:-1]) if names[1:] else model
    node = nodes.LoraLoader()
    return lambda last: node.load_lora(before, None, names[-1], last, 0.0)[0]


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
    variants[f"{OURS}, {CHANGE}"] = changing(lambda last: ours(model, names, last))
    variants[f"{CORE}, {CHANGE}"] = changing(chain_but_last(model, names))
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


def compare_few_bits(label: str, model, names: Sequence[str], adapters: Sequence[Adapter]) -> None:
    """Compare the errors of a linear layer with fp8 weights: `auto` runs beside it, `weights` and core round
    stochastically into it."""
    name = next(iter(adapters[0].layers))
    module = model.model.get_submodule(name)
    base = module.weight.detach().double()
    delta = sum(a.layers[name].to(torch.float64).scaled(STRENGTH).delta_weight() for a in adapters)
    x = torch.randn(256, base.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    bias = 0 if module.bias is None else module.bias.double()
    wanted, change = x.double() @ (base + delta).T + bias, x.double() @ delta.T
    rows = []
    made = {OURS: lambda: ours(model, names), f"{OURS}, weights": lambda: ours(model, names, apply="weights")}
    for who, make in (made | {CORE: lambda: core(model, names)}).items():
        patcher = make()
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        rows.append((who, f"{float((module(x).double() - wanted).norm() / change.norm()):.4g}"))
        comfy.model_management.unload_all_models()
    nearest = (base + delta).to(module.weight.dtype).double() - base - delta
    rows.append(("nearest fp8", f"{float((x.double() @ nearest.T).norm() / change.norm()):.4g}"))
    table(f"{label}, fp8_e4m3fn: {len(names)} LoRAs of rank {RANK}, output in bf16", ("", "error"), rows)


def compare_reading(label: str, model, name: str, rounds: int) -> None:
    """One file to patches that fit the model. `names` is the table of spellings, which core's node builds anew for each
    file and ours once for a model. Ours looks at every number, so that the file's pages are read into memory; core does
    that when it patches."""
    path = _comfy.LORAS / name
    known, key_map, files = NameTable(model), comfy.lora.model_lora_keys_unet(model.model, {}), Store(lambda: False)

    def core_read() -> dict:
        tensors, _ = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
        return comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), key_map)

    variants = {
        f"{OURS}, file and names known": plain(lambda: known.resolve(files.read(path), name)),
        f"{OURS}, names known": plain(lambda: known.resolve(formats.read(path), name)),
        f"{OURS}, names built": plain(lambda: NameTable(model).resolve(formats.read(path), name)),
        "core, names known": plain(core_read),
        "core, LoraLoader": plain(lambda: nodes.LoraLoader().load_lora(model, None, name, STRENGTH, 0.0)),
    }
    for variant in variants.values():
        with variant() as step:
            step()
    times = alternate(variants, rounds)
    known_names = f"{OURS}, names known"
    rows = [(n, times.milliseconds(n), times.ratio(n, known_names)) for n in variants]
    size = f"{len(formats.read(path).layers)} layers, {mebibytes(path.stat().st_size)} MiB"
    table(f"{label}: reading a file of {size}", ("", "ms", "time / ours, names known"), rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--counts", default="1,2,4,8", help="numbers of LoRAs (%(default)s)")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="of the weights (%(default)s)")
    parser.add_argument("--only", default="", help="models whose name has this; `reading`: only the reading of files")
    options = begin(parser)
    kept = 1 if options.quick else None
    counts = [int(count) for count in options.counts.split(",") if not options.quick or int(count) <= 2]
    for label, row in [model for model in MODELS if options.only in model[0]][:kept]:
        for dtype in options.dtypes.split(",")[:kept]:
            model = _comfy.build(row, getattr(torch, dtype))
            names, adapters = _comfy.write_loras(model, max(counts), RANK)
            for count in counts:
                compare_stack(label, model, names[:count], adapters[:count], options.rounds)
        model = _comfy.build(row, torch.float8_e4m3fn, cast=torch.bfloat16)
        names, adapters = _comfy.write_loras(model, 4, RANK)
        for count in (1, 4):
            compare_few_bits(label, model, names[:count], adapters[:count])
    for label, row in REAL_MODELS[:kept] if options.only in ("", "reading") else []:
        model = _comfy.build(row, weights=False)
        for rank in (1, 16):
            compare_reading(label, model, _comfy.write_loras(model, 1, rank)[0][0], options.rounds)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
