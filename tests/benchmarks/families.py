"""One training step of every family's tiny model: ours against ComfyUI's TrainLoraNode in both of its modes.

`frozen` is a forward and a backward to the input in our session, without a LoRA or an optimiser. `ours` trains the
attention layers; `recomputed` does so with our checkpointing, the default of Train LoRA. `ours, all` trains every
linear layer and convolution, as `native` (weight wrappers, its default) and `bypass` do, besides norms and biases; both
recompute the whole network, their default. Everything computes in fp32. `saved` is what autograd holds between forward
and backward, parameters not counted; what is recomputed shows in `peak`. Both are MiB of frozen / ours / recomputed /
ours, all / native / bypass. These models are tiny: what is compared is the cost of each operation that is launched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import _comfy  # noqa: F401  first: makes comfy importable
import tiny
import torch
from _cost import saved_bytes
from _measure import Variant, alternate, arguments, begin, growing_table, mebibytes, peak
from _native import native
from _training import Case, frozen, ours
from lora_loom.nodes.bridge.model.encoding import encode_captions

import nodes

FROZEN, OURS, RECOMPUTED, ALL, NATIVE, BYPASS = "frozen", "ours", "recomputed", "ours, all", "native", "bypass"
NAMES = [FROZEN, OURS, RECOMPUTED, ALL, NATIVE, BYPASS]
RATIOS = [(OURS, FROZEN), (RECOMPUTED, FROZEN), (ALL, FROZEN), (NATIVE, ALL), (BYPASS, ALL), (NATIVE, RECOMPUTED)]
CAPTIONS = ["a red heart", "a blue ring", "a green star", "a gray square"]
DEMO = "demo base"
SIDE = 16  # of the latents


def case_of(name: str, folder: Path, batch: int) -> Case:
    trio = _demo() if name == DEMO else tiny.load(name, folder)
    prior = tiny.prior_of(trio.model, torch.Generator().manual_seed(0))
    encoded = encode_captions(trio.clip, CAPTIONS, 1.0, lambda *_: None)
    conditioning = [[[text, {**options, **prior}] for text, options in encoded[caption]] for caption in CAPTIONS]
    shape = tiny.latent_shape(trio.model, len(CAPTIONS))
    load = _demo if name == DEMO else partial(tiny.load, name, folder)
    return Case(lambda: load().model, torch.randn(*shape[:-2], SIDE, SIDE), conditioning, batch)


def _demo() -> tiny.Loaded:
    (model,) = nodes.UNETLoader().load_unet("loom_demo.safetensors", "default")
    (clip,) = nodes.CLIPLoader().load_clip("loom_demo_words.pt", "stable_diffusion")
    return tiny.Loaded(model, clip, None)


def variants_of(case: Case) -> Iterator[tuple[str, Any]]:
    """Each variant and what makes it, which for ComfyUI's own includes a first step."""
    model, plain = case.model(), case.load()
    yield FROZEN, partial(frozen, case, model)
    yield OURS, partial(ours, case, model, "attention")
    yield RECOMPUTED, partial(ours, case, model, "attention", checkpointing=True)
    yield ALL, partial(ours, case, model, "linear+conv")
    yield NATIVE, partial(native, case, plain, torch.float32)
    yield BYPASS, partial(native, case, plain, torch.float32, bypass=True)


def compare(name: str, folder: Path, batch: int, rounds: int, faults: list[str]) -> list[str]:
    """A row of the table; why a variant is missing from it is added to `faults`."""
    variants: dict[str, Variant] = {}
    saved, most = dict.fromkeys(NAMES, "-"), dict.fromkeys(NAMES, "-")
    for variant, make in variants_of(case_of(name, folder, batch)):
        try:
            session = make()
            with session() as step:
                step()
                saved[variant], most[variant] = mebibytes(saved_bytes(step)), mebibytes(peak(step)[1])
            variants[variant] = session
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
            if variant not in (NATIVE, BYPASS):
                raise
            faults.append(f"{name}, {variant}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    times = alternate(variants, rounds)
    ratios = [str(times.ratio(a, b)) if a in variants and b in variants else "-" for a, b in RATIOS]
    return [name, *ratios, " / ".join(saved.values()), " / ".join(most.values())]


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--family", nargs="+", default=[*tiny.FAMILIES, DEMO])
    options = begin(parser)
    names = options.family[:3] if options.quick else options.family
    header = ["", *(f"{a} / {b}" for a, b in RATIOS), "saved", "peak"]
    with tempfile.TemporaryDirectory() as folder:
        for batch in options.batch:
            torch.manual_seed(0)
            faults: list[str] = []
            rows = (compare(name, Path(folder), batch, options.rounds, faults) for name in names)
            growing_table(f"batch {batch}", header, rows, [max(map(len, names)), *[16] * len(RATIOS), 34, 0])
            print("\n".join(faults), flush=True)


if __name__ == "__main__":
    main()
