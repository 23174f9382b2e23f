"""One training step on a two-level SD 1.5: ours, ComfyUI's TrainLoraNode, peft, and the frozen model as the limit.

`frozen` is a forward and a backward to the input, without a LoRA or an optimiser. `native` is TrainLoraNode with its
defaults: weight wrappers on every weight and bias, autocast, the whole network recomputed; `linear+conv` is ours on the
same matrices. `recomputed` is our own checkpointing, the default of Train LoRA. `ours alike` is our step on the same
layers without it. `FLOP` is relative to frozen; `saved` is what autograd holds between forward and backward, parameters
not counted, and what is recomputed shows in `peak`.
"""

from __future__ import annotations

import _comfy  # first: makes comfy importable
import peft
import torch
from _cost import flops, saved_bytes
from _measure import Variant, alternate, arguments, begin, mebibytes, peak, table
from _native import native
from _training import SHAPE, Case, in_session
from lora_loom.lora_core.training.batches import Batches
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors
from lora_loom.lora_core.training.targets import select
from lora_loom.lora_core.training.trainer import TrainState, make_optimizer, train
from lora_loom.nodes.bridge.denoiser import ComfyDenoiser

RANK = 16
FROZEN = "frozen"


def frozen(case: Case, model) -> Variant:
    denoiser = ComfyDenoiser(model)
    samples = case.samples(denoiser)
    return in_session(model, lambda: case.loss(denoiser, samples).backward())


def ours(case: Case, model, preset: str, checkpointing: bool = False) -> Variant:
    config = TrainConfig(steps=1_000_000, batch_size=case.batch, caption_dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    factors = Factors(select(model.model.diffusion_model, LoraConfig(RANK, RANK, preset)), RANK, RANK, generator)
    batches = Batches([SHAPE] * len(case.latents), case.batch, 1, generator)
    state = TrainState(factors, batches, generator, make_optimizer(factors, config))
    denoiser = ComfyDenoiser(model)
    samples = case.samples(denoiser)
    steps = train(config, state, denoiser, samples)
    return in_session(model, lambda: next(steps), checkpointing, factors.branches)


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


def variants_of(case: Case, quick: bool) -> dict[str, Variant]:
    model, plain = case.model(), _comfy.build(_comfy.SD_TWO_LEVELS, case.dtype)
    found = {FROZEN: frozen(case, model)}
    found |= {f"ours, {preset}": ours(case, model, preset) for preset in ("attention", "all-linear", "linear+conv")}
    found["ours, all-linear, recomputed"] = ours(case, model, "all-linear", checkpointing=True)
    setting = (plain, case.latents, case.texts, case.batch, RANK, case.dtype)
    found["native"] = native(*setting, checkpointing=True)
    if not quick:
        found["native, nothing recomputed"] = native(*setting, checkpointing=False)
        found |= {f"peft, {preset}": with_peft(case, preset) for preset in ("attention", "all-linear")}
    return found


def counterpart(name: str) -> str:
    """Our step on the same layers, nothing recomputed."""
    who, _, what = name.partition(", ")
    return FROZEN if who == FROZEN else f"ours, {'linear+conv' if who == 'native' else what.partition(',')[0]}"


def compare(case: Case, rounds: int, quick: bool) -> None:
    variants, facts = variants_of(case, quick), {}
    for name, variant in variants.items():
        with variant() as step:
            step()
            facts[name] = (flops(step), mebibytes(saved_bytes(step)), mebibytes(peak(step)[1]))
    times = alternate(variants, rounds, patience=120)
    least = facts[FROZEN][0]
    rows = []
    for name, (count, *held) in facts.items():
        ratios = (times.ratio(name, FROZEN), times.ratio(name, counterpart(name)))
        rows.append((name, times.milliseconds(name), *ratios, f"{count / least:.2f}", *held))
    title = (
        f"batch {case.batch}, {str(case.dtype)[6:]}, latents {SHAPE}, rank {RANK}; frozen is {least / 1e9:.1f} GFLOP"
    )
    table(title, ("", "ms", "time / frozen", "time / ours alike", "FLOP", "saved MiB", "peak MiB"), rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = begin(parser)
    for batch in (1,) if options.quick else (1, 4):
        torch.manual_seed(0)
        compare(Case(batch, getattr(torch, options.dtype)), options.rounds, options.quick)


if __name__ == "__main__":
    main()
