"""One training step on a two-level SD 1.5: ours, ComfyUI's TrainLoraNode, peft, and the frozen model as the limit.

`frozen` is a forward and a backward to the input, without a LoRA or an optimiser. `native` is TrainLoraNode with its
defaults: weight wrappers on every weight and bias, autocast, the whole network recomputed; `linear+conv` is ours on the
same matrices. `recomputed` is our own checkpointing, the default of Train LoRA. `ours alike` is our step on the same
layers without it. `ms` is median [lowest..highest]; `launches` are operators, of which a GPU runs about one kernel
each, and `stalls` how often the host waits for a device. `FLOP` is relative to frozen; `saved` is what autograd holds
between forward and backward, parameters not counted, and what is recomputed shows in `peak`.
"""

from __future__ import annotations

from functools import partial

import _comfy  # first: makes comfy importable
import comfy.model_management
import peft
import torch
from _cost import flops, launches_and_stalls, saved_bytes
from _measure import Variant, alternate, arguments, begin, mebibytes, peak, table
from _native import native
from _training import RANK, Case, frozen, in_session, ours
from harness.inprocess import PRETEND
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.targets import select
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser

IMAGES, SHAPE = 4, (4, 16, 16)
FROZEN = "frozen"


def with_peft(case: Case, preset: str) -> Variant:
    """peft's layers in the place of ours, factors in fp32 as peft keeps them, and our objective."""
    model = case.model()
    network = model.model.diffusion_model
    names = list(select(network, LoraConfig(RANK, RANK, preset)))
    peft.inject_adapter_in_model(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names), network)
    factors = [factor for factor in network.parameters() if factor.requires_grad]
    for factor in factors:
        factor.data = factor.data.float()
    denoiser, optimizer = ComfyDenoiser(model), torch.optim.AdamW(factors, lr=1e-4)
    samples = case.samples(denoiser)

    def step() -> None:
        case.loss(denoiser, samples).backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return in_session(model, step)


def variants_of(case: Case, dtype: torch.dtype, quick: bool) -> dict[str, Variant]:
    model, plain = case.model(), case.load()
    found = {FROZEN: frozen(case, model)}
    found |= {f"ours, {preset}": ours(case, model, preset) for preset in ("attention", "all-linear", "linear+conv")}
    found["ours, all-linear, recomputed"] = ours(case, model, "all-linear", checkpointing=True)
    if PRETEND:  # which has no autocast, as TrainLoraNode wants it
        return found
    found["native"] = native(case, plain, dtype)
    if not quick:
        found["native, nothing recomputed"] = native(case, plain, dtype, checkpointing=False)
        found |= {f"peft, {preset}": with_peft(case, preset) for preset in ("attention", "all-linear")}
    return found


def counterpart(name: str) -> str:
    """Our step on the same layers, nothing recomputed."""
    who, _, what = name.partition(", ")
    return FROZEN if who == FROZEN else f"ours, {'linear+conv' if who == 'native' else what.partition(',')[0]}"


def compare(case: Case, dtype: torch.dtype, rounds: int, quick: bool) -> None:
    variants, facts, device = variants_of(case, dtype, quick), {}, comfy.model_management.get_torch_device()
    for name, variant in variants.items():
        with variant() as step:
            step()
            launched = launches_and_stalls(step, device)
            facts[name] = (flops(step), *launched, mebibytes(saved_bytes(step)), mebibytes(peak(step)[1]))
    times = alternate(variants, rounds, patience=120)
    least = facts[FROZEN][0]
    rows = []
    for name, (count, launches, stalls, *held) in facts.items():
        ratios = (times.ratio(name, FROZEN), times.ratio(name, counterpart(name)))
        rows.append((name, times.milliseconds(name), *ratios, launches, stalls, f"{count / least:.2f}", *held))
    title = f"batch {case.batch}, {str(dtype)[6:]}, latents {SHAPE}, rank {RANK}; frozen is {least / 1e9:.1f} GFLOP"
    header = ("", "ms", "time / frozen", "time / ours alike", "launches", "stalls", "FLOP", "saved MiB", "peak MiB")
    table(title, header, rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = begin(parser)
    dtype = getattr(torch, options.dtype)
    load = partial(_comfy.build, _comfy.SD_TWO_LEVELS, dtype)
    torch.manual_seed(0)
    texts = [[[text, {}]] for text in torch.randn(IMAGES, 1, 77, 768)]
    for batch in (1,) if options.quick else (1, 4):
        case = Case(load, torch.randn(IMAGES, *SHAPE), texts, batch)
        compare(case, dtype, options.rounds, options.quick)


if __name__ == "__main__":
    main()
