"""LoRAs on quantised bases: the slow-down of sampling and of a training step with 1 and 4, ours and ComfyUI's own.

`LoraLoader` quantises the patched weights again when it loads them: nothing to do in a step, at the price of rounding
(`dev.py bench stack` has its error). `anew` is the same where the weights have no room on the device, so that ComfyUI
patches them in every forward. `bypass` is LoraModelLoader's, of whose chain only the last LoRA works. `native` and
`native, bypass` are TrainLoraNode, on all weights and biases, recomputed, its default; `recomputed` is ours.
A sampling step of a network is a whole run of a KSampler with one step, so its time holds what a run does once, such as
hanging the branches.

Times are a CPU's, whose kernels for these layouts are emulations; give --cpu-time on a machine that is shared. What
carries over to a GPU are operators, FLOP and bytes: per call of a layer of real width, and, in networks of real depth
and tiny width, operators per step. Bytes are those that operators read and write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any

import _comfy  # noqa: F401  first: makes comfy importable
import _packed
import _training
import torch
from _measure import Variant, alternate, arguments, begin, table
from _native import native
from harness.calls import sampled
from harness.operators import Cost, cost
from lora_loom.lora_core.training.inject import Factors, attached
from tiny.families import Tiny
from tiny.stored import LAYOUTS, one_layer

COUNTS, RANK = (1, 4), 16
NONE, OURS, LOADER, ANEW, BYPASS = "no LoRA", "ours", "LoraLoader", "LoraLoader, anew", "bypass"
FORMS = (
    "int8_tensorwise", "int8_rowwise", "int8_convrot", "scaled_fp8", "float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8",
)  # fmt: skip
DEEP = ("int8_convrot", "float8_e4m3fn", "nvfp4")  # of networks: what a further layout changes shows in one layer
LATENTS = {"SDXL": (4, 16, 16), "FLUX.1": (16, 16, 16)}


def with_count(who: str, count: int) -> str:
    return f"{who}, {count} LoRA{'s' * (count > 1)}"


# -- one layer of real width -------------------------------------------------------------------------------------------


def sampling_a_layer(form: str, width: int, tokens: int) -> dict[str, Variant]:
    model = one_layer(form, width)
    layer, x = model.model.layer, torch.randn(1, tokens, width, dtype=torch.bfloat16)
    loras = _packed.adapters({"layer": layer}, max(COUNTS), RANK)
    step = partial(layer, x)
    found = {NONE: _packed.in_sampling(model, step)}
    for count in COUNTS:
        some = loras[:count]
        found[with_count(OURS, count)] = _packed.in_sampling(_packed.ours(model, some), step)
        found[with_count(LOADER, count)] = _packed.in_sampling(_packed.core(model, some), step)
        found[with_count(ANEW, count)] = _packed.in_sampling(_packed.core(model, some), step, resident=False)
    found[with_count(BYPASS, 1)] = _packed.in_sampling(_packed.bypass(model, loras[:1]), step)
    return found


def compare_a_layer(form: str, width: int, tokens: int, rounds: int) -> None:
    title = f"{form}: a call of a layer {width} x {width}, {tokens} tokens, rank {RANK}"
    compare(f"{title}, sampling", sampling_a_layer(form, width, tokens), rounds)
    compare(f"{title}, forward and backward", training_a_layer(form, width, tokens), rounds)


def training_a_layer(form: str, width: int, tokens: int) -> dict[str, Variant]:
    """One LoRA is trained; further ones lie beside the layer, as Load LoRA Stack has put them there."""
    model = one_layer(form, width)
    loras = _packed.adapters({"layer": model.model.layer}, max(COUNTS) - 1, RANK)
    return {
        NONE: training_session(model, False, tokens),
        with_count(OURS, 1): training_session(model, True, tokens),
        with_count(OURS, max(COUNTS)): training_session(_packed.ours(model, loras), True, tokens),
    }


def training_session(model: Any, trained: bool, tokens: int) -> Variant:
    layer = model.model.layer
    factors = Factors({"layer": layer}, RANK, float(RANK), torch.Generator().manual_seed(0))
    x = torch.randn(1, tokens, layer.in_features, dtype=torch.bfloat16)

    def step() -> None:
        out = layer(x.detach().requires_grad_())
        out.backward(torch.ones_like(out))

    return _packed.in_training(model, step, lambda: attached(factors.branches if trained else {}))


# -- networks of real depth --------------------------------------------------------------------------------------------


def sampling_a_network(row: Tiny, form: str, shape: tuple[int, ...]) -> dict[str, Variant]:
    model, text = _packed.network(row, form), _packed.text_of(row)
    loras = _packed.adapters(_packed.linear_layers(model), max(COUNTS), RANK)
    made = {NONE: model}
    for count in COUNTS:
        made[with_count(OURS, count)] = _packed.ours(model, loras[:count])
        made[with_count(LOADER, count)] = _packed.core(model, loras[:count])
    made[with_count(BYPASS, 1)] = _packed.bypass(model, loras[:1])
    latent = torch.zeros(1, *shape)
    return {
        name: _packed.in_sampling(each, partial(sampled, each, text, latent, steps=1)) for name, each in made.items()
    }


def training_a_network(row: Tiny, form: str, shape: tuple[int, ...]) -> dict[str, Variant]:
    texts = [_packed.text_of(row) for _ in range(2)]
    load = partial(_packed.network, row, form)
    case = _training.Case(load, torch.randn(2, *shape), texts, batch=1)
    model = case.model()
    loras = _packed.adapters(_packed.linear_layers(model), max(COUNTS) - 1, RANK)
    found = {NONE: _training.frozen(case, model), f"{NONE}, recomputed": _training.frozen(case, model, True)}
    for count, base in zip(COUNTS, (model, _packed.ours(model, loras)), strict=True):
        found[with_count(OURS, count)] = _training.ours(case, base, "attention+mlp")
        found[f"{with_count(OURS, count)}, recomputed"] = _training.ours(case, base, "attention+mlp", True)
    for name, around in (("native", False), ("native, bypass", True)):
        try:
            found[name] = native(case, case.load(), torch.bfloat16, bypass=around)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            print(f"{name} on {form}: {type(error).__name__}: {str(error).splitlines()[0][:160]}", flush=True)
    return found


# -- tables ------------------------------------------------------------------------------------------------------------


def compare(title: str, variants: Mapping[str, Variant], rounds: int) -> None:
    costs = {}
    for name, variant in variants.items():
        with variant() as step:
            step()
            costs[name] = cost(step)
    times = alternate(variants, rounds, patience=60)
    rows = [(name, times.milliseconds(name), times.ratio(name, NONE), *beside(costs, name)) for name in variants]
    table(title, ("", "ms", f"time / {NONE}", "operators", "FLOP", "bytes"), rows)


def beside(costs: Mapping[str, Cost], name: str) -> Iterable[str]:
    """Operators, and what FLOP and bytes are of those without a LoRA."""
    own, least = costs[name], costs[NONE]
    return str(own.operators), f"{own.flops / least.flops:.3f}", f"{own.moved / least.moved:.3f}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=LAYOUTS, help="layouts (%(default)s)")
    parser.add_argument("--widths", nargs="*", type=int, default=[1280, 3072], help="of one layer (%(default)s)")
    parser.add_argument("--tokens", nargs="*", type=int, default=[1024, 4096], help="of one layer (%(default)s)")
    parser.add_argument("--networks", nargs="*", default=list(_packed.NETWORKS), choices=list(_packed.NETWORKS))
    options = begin(parser)
    torch.manual_seed(0)
    kept = 1 if options.quick else None
    for width, tokens, form in product(options.widths[:kept], options.tokens[:kept], options.forms[:kept]):
        compare_a_layer(form, width, tokens, options.rounds)
    for name, form in product(options.networks[:kept], [form for form in DEEP if form in options.forms][:kept]):
        row, shape = _packed.NETWORKS[name], LATENTS[name]
        title = f"{form}: {name} of real depth and tiny width, rank {RANK} on attention and mlp"
        compare(f"{title}, a sampling step", sampling_a_network(row, form, shape), options.rounds)
        compare(f"{title}, a training step", training_a_network(row, form, shape), options.rounds)


if __name__ == "__main__":
    main()
