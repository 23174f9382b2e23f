"""Measures what checkpointing and offload save on tiny models, and predicts what training needs at real sizes.

`peak` is what a step holds beside weights and factors; `saved` what autograd keeps between forward and backward. On the
CPU an offloaded block is copied although it is in RAM already, so its copies add to the peak; on a device they replace
its weights there. Predictions run on tensors without memory: nothing is loaded, and nothing has been measured on a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import _comfy  # first: makes comfy importable
import tiny
import torch
from _cost import saved_bytes
from _measure import Step, Variant, alternate, arguments, begin, growing_table, mebibytes, peak
from _real import REAL
from harness.calls import encode
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.plan import Measures, in_gb, optimiser_bytes
from lora_loom.lora_core.training.targets import select
from lora_loom.lora_core.training.tasks import add_gradient
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from lora_loom.nodes.bridge.session.offload import shared_out
from lora_loom.nodes.bridge.session.rehearsal import Job, stored_bytes, traced
from lora_loom.nodes.bridge.session.session import blocks, loaded, trainable

PLAIN = "plain"
WAYS = {
    PLAIN: Measures(False),
    "checkpointing": Measures(),
    "offload 0.5": Measures(True, 0.5),
    "offload 1.0": Measures(True, 1.0),
}
MODELS = ("SD 1.5", "SDXL", "SD 3.5 medium", "FLUX.1", "FLUX.2 klein 4B")


def job_of(conditioning: list, latent: tuple[int, ...], batch: int = 1, rank: int = 16) -> Job:
    return Job(LoraConfig(rank), TrainConfig(batch_size=batch), latent, conditioning, 1024)


def tiny_ways(trio: tiny.Loaded) -> dict[str, Variant]:
    conditioning = encode(trio.clip, "a red heart", guidance=1.0)
    latent = tiny.latent_shape(trio.model, tall=2)[1:]

    def variant(measures: Measures) -> Variant:
        @contextmanager
        def session() -> Iterator[Step]:
            with trainable(trio.model) as patcher, loaded(patcher, measures):
                yield from _stepping(patcher, conditioning, latent)

        return session

    return {name: variant(measures) for name, measures in WAYS.items()}


def _stepping(patcher, conditioning: list, latent: tuple[int, ...]) -> Iterator[Step]:
    denoiser, config = ComfyDenoiser(patcher), TrainConfig(batch_size=2)
    layers = select(patcher.model.diffusion_model, LoraConfig(16), PREFIX)
    factors = Factors(layers, 16, 16.0, torch.Generator(), device=patcher.load_device)
    x0 = torch.randn(2, *latent)
    conditions = [denoiser.condition(conditioning, latent) for latent in x0]
    sigma = denoiser.sigma(torch.tensor([0.4, 0.7]))
    with attached(factors.branches):
        yield lambda: add_gradient(config, factors, denoiser, x0, torch.randn_like(x0), sigma, conditions, [])


def measured(name: str, trio: tiny.Loaded, rounds: int) -> list[tuple[object, ...]]:
    ways, facts = tiny_ways(trio), {}
    for way, variant in ways.items():
        with variant() as step:
            step()
            facts[way] = (peak(step)[1], saved_bytes(step))
    times = alternate(ways, rounds)
    return [
        (name, way, mebibytes(most), f"{most / facts[PLAIN][0]:.2f}", mebibytes(saved), times.ratio(way, PLAIN))
        for way, (most, saved) in facts.items()
    ]


def predicted(name: str, side: int, batch: int, storage: torch.dtype) -> tuple[object, ...]:
    """With bf16 activations; `storage` is the type of the weights."""
    real = REAL[name]
    model = _comfy.build(real.row, storage, weights=False, cast=None if storage == torch.bfloat16 else torch.bfloat16)
    model.load_device = torch.device("cpu")
    job = job_of(real.conditioning(), real.latent(model, side), batch)
    cells = []
    with trainable(model) as patcher:
        for measures in (Measures(False), Measures(), Measures(True, 1.0)):
            trace = traced(patcher, job, measures)
            streamed = shared_out(blocks(patcher.model.diffusion_model), measures.offload)
            weights = stored_bytes(patcher.model) - sum(map(stored_bytes, streamed))
            factors = optimiser_bytes(trace.trained)
            cells.append((weights + factors + trace.peak, trace))
    return (
        name, side, batch, str(storage)[6:], in_gb(stored_bytes(model.model)), in_gb(optimiser_bytes(trace.trained)),
        *(in_gb(total) for total, _ in cells), f"{cells[1][1].work.flops / 1e12:.1f}",
    )  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=3)
    options = begin(parser)
    families = ["sd15"] if options.quick else list(tiny.FAMILIES)
    header = ("", "", "peak MiB", "of plain", "saved MiB", "time / plain")
    widths = (max(map(len, families)), max(map(len, WAYS)), 0, 0, 0, 0)
    growing_table("measured, batch 2", header, _all_measured(families, options.rounds), widths)
    models = MODELS[:1] if options.quick else MODELS
    cases = product(models, (512, 1024), (1, 4), (torch.bfloat16, torch.float8_e4m3fn))
    header = ("", "px", "batch", "weights in", "GB", "LoRA GB", *(list(WAYS)[i] for i in (0, 1, 3)), "TFLOP a pass")
    widths = (max(map(len, models)), 4, 0, 13, 4, 0, 0, 0, 0, 0)
    title = "predicted GB in all, rank 16 on attention, bf16 activations"
    growing_table(title, header, (predicted(*case) for case in cases), widths)


def _all_measured(families: list[str], rounds: int) -> Iterator[tuple[object, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        for name in families:
            with torch.inference_mode():
                trio = tiny.load(name, Path(folder))
            yield from measured(name, trio, rounds)


if __name__ == "__main__":
    main()
