"""Measures what only real size shows: plans, steps, files and their proof, on random SDXL and FLUX.2 klein 4B.

The architectures are those that ComfyUI detects from weights of the published shapes; the numbers in them are noise.
Each model is a process of its own, and needs its weights in RAM and half as much again: 9 GB for SDXL, 12 GB for klein
4B; what needs more is left out where it is not free. `s` is wall time, `CPU s` that of the process. `grown` is what the
process held at most beyond what it held before (Linux; elsewhere empty); `counted` is what the meter of the predictions
counts in a real step, operator by operator. On Linux the C library keeps much of what is freed between blocks that are
still held, so `grown` is more: on SDXL 0.91 GB where 0.27 are counted. MALLOC_MMAP_THRESHOLD_=262144 in the environment
has it give all of that back, for time: 0.35 GB, of which 0.06 are weights of convolutions as oneDNN lays them out.
"""

from __future__ import annotations

import ctypes
import gc
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import _comfy  # first: makes comfy importable
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import memory
import psutil
import torch
from _measure import arguments, begin, table
from _real import REAL
from harness.calls import run_node
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.files.label import Label
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.meter import Meter
from lora_loom.lora_core.training.plan import GB, Measures
from lora_loom.lora_core.training.targets import select
from lora_loom.lora_core.training.tasks import add_gradient
from lora_loom.nodes.bridge.merging.save import save_adapter
from lora_loom.nodes.bridge.model.denoiser import ComfyDenoiser
from lora_loom.nodes.bridge.model.names import NameTable
from lora_loom.nodes.bridge.model.trained_layers import PREFIX
from lora_loom.nodes.bridge.session.memory_plan import Planner
from lora_loom.nodes.bridge.session.rehearsal import Job, stored_bytes
from lora_loom.nodes.bridge.session.session import loaded, trainable
from lora_loom.nodes.extract_lora import ExtractLora
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.resize_lora import ResizeLora
from safetensors.torch import save_file

MODELS = ("SDXL", "FLUX.2 klein 4B")
RANK, STEPS, FILES = 16, 2, 4
_NOISE = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).bfloat16()


@dataclass
class Row:
    """Holds what one piece of work took: wall and CPU seconds, and bytes by which the process grew at most."""

    name: str
    seconds: float = 0.0
    cpu: float = 0.0
    grown: int | None = None
    more: str = ""

    def cells(self) -> tuple[str, ...]:
        grown = "" if self.grown is None else f"{self.grown / GB:.2f}"
        return self.name, f"{self.seconds:.1f}", f"{self.cpu:.1f}", grown, self.more


class Rows:
    """Collects the rows of one model; each is printed when it is there, and the table when all are."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @contextmanager
    def of(self, name: str) -> Iterator[Row]:
        row = Row(name)
        gc.collect()
        before, wall, cpu = _lowest(), time.perf_counter(), time.process_time()
        yield row
        row.seconds, row.cpu = time.perf_counter() - wall, time.process_time() - cpu
        highest = _highest()
        row.grown = None if highest is None else highest - before
        self.rows.append(row)
        print("  ".join(row.cells()), flush=True)


def _lowest() -> int:
    """Bytes that the process holds without what the C library keeps of freed ones; Linux counts its most from here."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # glibc
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return psutil.Process().memory_info().rss


def _highest() -> int | None:
    if sys.platform != "linux":
        return None
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def build(name: str):
    """A MODEL of bf16 noise, made in place: nothing is held beside its weights."""
    row = REAL[name].row
    shapes = _comfy.build(row, torch.bfloat16, weights=False).model.diffusion_model.state_dict()
    config = comfy.model_detection.model_config_from_unet(shapes, "")
    config.set_inference_dtype(torch.bfloat16, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    print(f"{name}: detected as {type(config).__name__}, {sum(map(torch.numel, shapes.values())) / 1e9:.2f} billion")
    with torch.no_grad():
        for key, weight in model.diffusion_model.named_parameters():
            _fill(key, weight.data)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))


def _fill(key: str, weight: torch.Tensor) -> None:
    if weight.ndim < 2:
        weight.fill_(0.0 if key.endswith("bias") else 1.0)
        return
    noise = _NOISE * weight[0].numel() ** -0.5
    for part in weight.view(-1).split(len(noise)):
        part.copy_(noise[: len(part)])


def job_of(name: str, model, pixels: int) -> Job:
    real = REAL[name]
    return memory.job_of(real.conditioning(torch.Generator().manual_seed(1)), real.latent(model, pixels), rank=RANK)


def step(patcher, job: Job, factors: Factors, meter: Meter | None = None) -> None:
    denoiser = ComfyDenoiser(patcher)
    x0 = torch.randn(1, *job.latent, generator=torch.Generator().manual_seed(2))
    conditions, sigma = [denoiser.condition(job.conditioning, x0[0])], denoiser.sigma(torch.tensor([0.5]))
    with meter or nullcontext():
        add_gradient(job.config, factors, denoiser, x0, torch.randn_like(x0), sigma, conditions, [])


def train(rows: Rows, model, job: Job, measures: Measures) -> Adapter:
    """Plan, take a few steps, one of them counted operator by operator."""
    with trainable(model) as patcher:
        with rows.of(f"plan: {measures}") as row:
            planner = Planner(patcher)
            found, seconds = planner.trace(job, measures), planner.seconds(job, measures)
            row.more = f"predicted {found.peak / GB:.2f} GB, {seconds:.0f} s, {found.trained / 1e6:.1f} million numbers"
        with loaded(patcher, measures):
            layers = select(patcher.model.diffusion_model, job.lora, PREFIX)
            factors = Factors(layers, RANK, float(RANK), torch.Generator().manual_seed(0), device=patcher.load_device)
            with attached(factors.branches):
                for index in range(STEPS):
                    meter = Meter(patcher.load_device) if index else None
                    with rows.of(f"step {index + 1}: {measures}") as row:
                        step(patcher, job, factors, meter)
                        row.more = f"counted {meter.peak / GB:.2f} GB" if meter else ""
        factors.flat.add_(factors.flat.grad, alpha=1e-3 / float(factors.flat.grad.abs().max()))
        return factors.adapter()


def files(rows: Rows, model, adapter: Adapter) -> None:
    """Save, and what the other nodes make of four such files."""
    with rows.of("Save LoRA, proof included") as row:
        name, report = save_adapter(adapter, "real_size", "comfyui", "fp16", model, None, True, Label(), False)
        path = _comfy.LORAS / name
        row.more = f"{path.stat().st_size / 1e6:.1f} MB, header {_header(path) / 1e3:.0f} kB"
    print(report.split("\n")[1])
    table_, names = NameTable(model), []
    for seed in range(FILES):
        names.append(f"real_size_{seed}.safetensors")
        random = _comfy.random_adapter(model, RANK, seed)
        save_file(
            formats.encode(random, "kohya", table_.file_names("kohya", list(random.layers))), _comfy.LORAS / names[-1]
        )
    lines = "\n".join(f"<lora:{name.removesuffix('.safetensors')}:0.5>" for name in names)
    with rows.of(f"Load LoRA Stack, {FILES} files"):
        stacked, _, stack, *_ = run_node(LoadLoraStack, model=model, rows=lines)
    if psutil.virtual_memory().available > 1.2 * stored_bytes(model.model):  # it keeps what it patches
        with rows.of("patching, as ComfyUI loads the model"), torch.inference_mode():
            comfy.model_management.load_models_gpu([stacked], force_full_load=True)
        comfy.model_management.unload_all_models()
    with rows.of("Merge LoRA, exact sum"):
        run_node(MergeLora, model=model, rank=0, strengths="", lora_stack=stack)
    with rows.of(f"Merge LoRA, cut to rank {RANK}"):
        run_node(MergeLora, model=model, rank=RANK, strengths="", lora_stack=stack)
    with rows.of(f"Extract LoRA, rank {RANK}"):
        run_node(ExtractLora, model_a=stacked, model_b=model, rank=RANK, energy=1.0)
    with rows.of(f"Resize LoRA to rank {RANK // 2}"):
        off = {"energy": 1.0, "size_mb": 0.0, "strength": 1.0, "text_strength": 1.0}
        run_node(ResizeLora, model=model, lora_name=names[0], rank=RANK // 2, **off)


def _header(path: Path) -> int:
    with open(path, "rb") as file:
        return 8 + struct.unpack("<Q", file.read(8))[0]


def measure(name: str, pixels: int, only_plan: bool) -> None:
    rows = Rows()
    with rows.of("weights") as row, torch.inference_mode():
        model = build(name)
        row.more = f"{stored_bytes(model.model) / GB:.2f} GB"
    job = job_of(name, model, pixels)
    if only_plan:
        for measures in (Measures(False), Measures(), Measures(True, 1.0)):
            with rows.of(f"plan: {measures}"), trainable(model) as patcher:
                Planner(patcher).trace(job, measures)
    else:
        adapter = train(rows, model, job, Measures())
        train(rows, model, job, Measures(True, 1.0))
        files(rows, model, adapter)
    table(
        f"{name}, {pixels} px, rank {RANK} on attention",
        ("", "s", "CPU s", "grown GB", ""),
        [r.cells() for r in rows.rows],
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=MODELS, help="one model, in this process")
    parser.add_argument("--pixels", type=int, default=512, help="width and height of the picture (%(default)s)")
    parser.add_argument("--plans", action="store_true", help="only the planning")
    options = begin(parser)
    if options.only:
        measure(options.only, options.pixels, options.plans)
        return
    for name in MODELS[: 1 if options.quick else None]:
        subprocess.run([sys.executable, __file__, "--only", name, *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
