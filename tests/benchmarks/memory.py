"""Measures what checkpointing and offload save on tiny models, and predicts what training needs at real sizes.

`peak` is what a step holds beside weights and factors; `saved` what autograd keeps between forward and backward. On the
CPU an offloaded block is copied although it is in RAM already, so its copies add to the peak; on a device they replace
its weights there. Predictions run on tensors without memory: nothing is loaded, and nothing has been measured on a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import _comfy  # first: makes comfy importable
import tiny
import torch
from _cost import saved_bytes
from _measure import Step, Variant, alternate, arguments, begin, growing_table, mebibytes, peak
from harness.calls import encode
from lora_loom.lora_core.training.config import LoraConfig, TrainConfig
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.plan import Measures, in_gb, optimiser_bytes
from lora_loom.lora_core.training.targets import select
from lora_loom.lora_core.training.trainer import add_gradient
from lora_loom.nodes.bridge.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.offload import shared_out
from lora_loom.nodes.bridge.rehearsal import Job, stored_bytes, traced
from lora_loom.nodes.bridge.session import blocks, loaded, trainable
from lora_loom.nodes.bridge.start import PREFIX

PLAIN = "plain"
WAYS = {
    PLAIN: Measures(False),
    "checkpointing": Measures(),
    "offload 0.5": Measures(True, 0.5),
    "offload 1.0": Measures(True, 1.0),
}
# Published sizes: the row, text tokens and their width, pooled width, and how many pixels one latent cell covers.
SDXL = replace(
    tiny.FAMILIES["sdxl"],
    unet={
        **tiny.FAMILIES["sdxl"].unet, "model_channels": 320, "channel_mult": [1, 2, 4], "context_dim": 2048,
        "adm_in_channels": 2816, "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_heads": -1, "num_head_channels": 64,
    },
)  # fmt: skip
FLUX_2_KLEIN_4B = replace(
    tiny.FAMILIES["flux2"],
    unet={
        **tiny.FAMILIES["flux2"].unet, "hidden_size": 3072, "num_heads": 24, "context_in_dim": 7680, "depth": 5,
        "depth_single_blocks": 20,
    },
)  # fmt: skip
SD_3_5_MEDIUM = replace(
    tiny.FAMILIES["sd35_medium"],
    unet={
        **tiny.FAMILIES["sd35_medium"].unet, "depth": 24, "adm_in_channels": 2048, "num_patches": 384**2,
        "pos_embed_max_size": 384, "x_block_self_attn_layers": list(range(13)),
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536},
        },
    },
)  # fmt: skip
REAL = {
    "SD 1.5": (_comfy.SD_REAL, 77, 768, 0, 8),
    "SDXL": (SDXL, 77, 2048, 1280, 8),
    "SD 3.5 medium": (SD_3_5_MEDIUM, 154, 4096, 2048, 8),
    "FLUX.1": (_comfy.FLUX_REAL, 512, 4096, 768, 8),
    "FLUX.2 klein 4B": (FLUX_2_KLEIN_4B, 512, 7680, 0, 16),
}


def job_of(model, conditioning: list, latent: tuple[int, ...], batch: int = 1, rank: int = 16) -> Job:
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
    row, tokens, width, pooled, cell = REAL[name]
    model = _comfy.build(row, storage, weights=False, cast=None if storage == torch.bfloat16 else torch.bfloat16)
    model.load_device = torch.device("cpu")
    extra = {"pooled_output": torch.zeros(1, pooled)} if pooled else {}
    conditioning = [[torch.zeros(1, tokens, width), {**extra, "guidance": 1.0}]]
    latent = (model.model.latent_format.latent_channels, side // cell, side // cell)
    job = job_of(model, conditioning, latent, batch)
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
    models = ["SD 1.5"] if options.quick else list(REAL)
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
