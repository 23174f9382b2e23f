"""A training step, or a forward of a preview, on tensors without memory: nothing is computed, all bytes are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import comfy.model_management
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ....lora_core.swap import swapped
from ....lora_core.training.config import LoraConfig, TrainConfig
from ....lora_core.training.inject import Factors, attached
from ....lora_core.training.meter import Meter, OperatorWork
from ....lora_core.training.plan import Measures, QuietNeed
from ....lora_core.training.repeats import BlockPass, Repeats
from ....lora_core.training.start import Start
from ....lora_core.training.tasks import PICTURES, Task
from ..host.device import shares_ram
from ..host.wires import Clip, Conditioning, Model, Vae
from ..model.denoiser import ComfyDenoiser
from ..model.guests import Guests
from ..model.text_encoders import TextDenoiser
from ..model.trained_layers import chosen_layers
from ..model.weights import ComfyWeightReader
from .experts import shared_evenly
from .offload import Stream, own_slots, seen_through, shared_out, slots
from .session import blocks, prepared

_TORCH = logging.getLogger("torch._subclasses.fake_tensor")


@dataclass(frozen=True)
class Preview:
    """A picture drawn while a run trains: its latent (channels, ...) and the VAE that decodes it."""

    latent: tuple[int, ...]
    vae: Vae

    def halved(self) -> Preview:
        """Return the preview at half the width and height."""
        *rest, height, width = self.latent
        return replace(self, latent=(*rest, max(8, height // 16 * 8), max(8, width // 16 * 8)))

    def decoding(self, device: torch.device) -> int:
        """Return bytes on this device to decode it, in ComfyUI's estimate; the VAE, if it is not there already,
        included."""
        if self.vae.device != device:
            return 0
        shape = (1, *self.latent)
        flat = self.vae.latent_dim == 2 and len(shape) == 5
        used = self.vae.memory_used_decode((*shape[:2], *shape[3:]) if flat else shape, self.vae.vae_dtype)
        return round(used) + (0 if shares_ram(device) else stored_bytes(cast(nn.Module, self.vae.first_stage_model)))


@dataclass(frozen=True)
class Job:
    """A run as far as memory and time depend on it: the largest latent (channels, ...) and the longest conditioning,
    which holds tokens when text encoders are trained, at `text_rank`; the LoRA that it goes on from, and a preview, if
    any; its quiet directions, and what it minimises."""

    lora: LoraConfig
    config: TrainConfig
    latent: tuple[int, ...]
    conditioning: Conditioning
    resolution: int
    text_rank: int = 0
    start: Start | None = None
    preview: Preview | None = None
    quiet: QuietNeed = QuietNeed()
    task: Task = PICTURES


@dataclass(frozen=True)
class Trace:
    """One forward and backward pass: peak bytes beside weights and factors, work, and how many numbers are trained; of
    a forward alone also the bytes that stay afterwards, which are casts of weights."""

    peak: int
    work: OperatorWork
    trained: int
    kept: int = 0


def tried(trace: Callable[..., Trace], *args: Any) -> Trace | Exception:
    """Return the trace, or what it ended with. Other nodes' layers and torch's own tensors without memory may raise
    anything, and of neither follows that a real step fails; torch would log each with a trace of its own."""
    level = _TORCH.level
    try:
        _TORCH.setLevel(logging.CRITICAL + 1)
        return trace(*args)
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:
        return error
    finally:
        _TORCH.setLevel(level)


def traced(patcher: Model, job: Job, measures: Measures, clip: Clip | None = None) -> Trace:
    """Run the training loss forward and backward on fake tensors of the device, text encoders of a `clip` included.

    Exact but for what operators allocate inside, beyond their results.
    """
    with _rehearsed(patcher, job, measures, clip) as (denoiser, factors, x0, sigma, conditions, meter):
        preserved = conditions if job.config.preservation else []
        told = [job.task.condition(each) for each in conditions]
        batch = x0, torch.zeros_like(job.task.shown(x0)), sigma, told, preserved
        _metered(meter, measures, lambda: job.task.add_gradient(job.config, factors, denoiser, *batch))
    return Trace(meter.peak, meter.work, factors.flat.numel())


def sampled(patcher: Model, job: Job, measures: Measures, clip: Clip | None = None) -> Trace:
    """Return the same of one forward as a sampler runs it, without a gradient."""
    with _rehearsed(patcher, job, measures, clip) as (denoiser, factors, x, sigma, conditions, meter):
        with torch.no_grad():
            _metered(meter, measures, lambda: denoiser.denoised(x, sigma, conditions))
        return Trace(meter.peak, meter.work, factors.flat.numel(), meter.held)


def _metered(meter: Meter, measures: Measures, step: Callable[[], object]) -> None:
    """One step of many: blocks are copied ahead in the order of the step before."""
    with meter:
        step()
        if measures.offload and not shares_ram(meter.device):
            meter.restart()
            step()


@contextmanager
def _rehearsed(patcher: Model, job: Job, measures: Measures, clip: Clip | None) -> Iterator[tuple]:
    """A training session on fake tensors: its denoiser, its attached factors, a batch, and a meter for what comes."""
    device, config = patcher.load_device, job.config
    streamed = shared_out(blocks(patcher.model.diffusion_model), measures.offload)
    level = float(ComfyDenoiser(patcher).sigma(torch.tensor([0.5])))
    with ExitStack() as undo:
        undo.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        undo.enter_context(torch.autograd.set_multithreading_enabled(False))  # the mode's state is of all threads
        undo.enter_context(_without_memory(patcher.model, streamed, device))
        denoiser, meter = ComfyDenoiser(patcher), Meter(device)
        encoders = None
        if clip is not None:
            encoders = clip.patcher.model
            undo.enter_context(_without_memory(encoders, (), device))
            denoiser = TextDenoiser(patcher, clip)
        layers, kept = chosen_layers(patcher.model.diffusion_model, encoders, job.lora, job.start)
        conditions = [_condition(denoiser, job) for _ in range(config.batch_size)]
        lora = job.lora
        factors = Factors(
            layers, lora.rank, lora.alpha, None, job.text_rank, device=device, options=lora.options,
            start=job.start, kept=kept, frozen=ComfyWeightReader(), leaf=_leaf,
        )  # fmt: skip
        x0 = torch.zeros((config.batch_size, *job.latent), device=device)
        denoiser.level = level
        sigma = torch.full((config.batch_size,), level, device=device)
        stream = _Stream(device, ahead=not shares_ram(device))
        with prepared(patcher, measures, stream, clip and clip.patcher), attached(factors.branches):
            repeats = Repeats(meter, factors.branches, factors.twins)
            ways = _ways(patcher.model.diffusion_model, encoders, streamed, stream)
            with nullcontext() if Guests(patcher).calls() or measures.keep_casts else repeats.over(ways):
                yield denoiser, factors, x0, sigma, conditions, meter


class _Stream(Stream):
    """Leaves blocks as they are inside `still`."""

    resting = False

    @contextmanager
    def on_device(self, block: nn.Module, again: bool) -> Iterator[None]:
        with nullcontext() if self.resting else super().on_device(block, again):
            yield

    @contextmanager
    def still(self, block: nn.Module) -> Iterator[None]:
        """Inside, all weights of this block are on the device."""
        self.resting = True
        try:
            with seen_through(slots(block), self.device):
                yield
        finally:
            self.resting = False


def _ways(
    network: nn.Module, encoders: nn.Module | None, streamed: Sequence[nn.Module], stream: _Stream
) -> dict[nn.Module, BlockPass]:
    """Return how all blocks run, and blocks of one type inside of them."""
    ways: dict[nn.Module, BlockPass] = {}
    for part, own in ((network, blocks(network)), (encoders, blocks(encoders) if encoders is not None else [])):
        for block in own:
            brought = partial(stream.still, block), partial(stream.on_device, block)
            ways[block] = BlockPass(*brought, "streamed") if block in streamed else BlockPass(kind=part is network)
            ways |= {inner: BlockPass(kind="inside") for inner in _repeated(blocks(block))}
    return ways


def _repeated(found: list[nn.Module]) -> list[nn.Module]:
    """Those that come again but for the last: recomputing stops inside it, once it has all that is kept of it."""
    types = [type(block) for block in found]
    return [block for block in found[:-1] if types.count(type(block)) > 1]


def _leaf(flat: Tensor, grad: Tensor, at: int, shape: tuple[int, int]) -> Tensor:
    """Instead of a view of the buffers one by itself: torch remembers what it has once worked out by offsets, too."""
    leaf = flat.new_empty(shape).requires_grad_()
    leaf.grad = grad.new_empty(shape)
    return leaf


def _condition(denoiser: ComfyDenoiser, job: Job) -> Any:
    """Return what the denoiser makes of the job's conditioning: fake, or, for the families that count the tokens of the
    text, real and in RAM."""
    shown = job.task.shown(torch.zeros((1, *job.latent)))[0]
    if isinstance(denoiser, TextDenoiser):
        caption = denoiser.condition(job.conditioning, shown)
        return replace(caption, tokens=dict(caption.tokens))  # one that comes again would be encoded once
    try:
        return denoiser.condition(job.conditioning, shown)
    except DataDependentOutputException:
        with unset_fake_temporarily():
            return denoiser.condition(job.conditioning, torch.zeros(shown.shape), torch.device("cpu"))


@contextmanager
def _without_memory(network: nn.Module, streamed: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Fake tensors in the place of all weights, on the device or, for `streamed` modules, in RAM.

    Some networks remember tensors between calls; on leaving, the modules have what they had before.
    """
    apart = {inner for module in streamed for inner in module.modules()}
    places = [
        (own, name, torch.device("cpu") if module in apart else device)
        for module in network.modules()
        for own, name in own_slots(module)
    ]
    attributes = [(module, dict(vars(module))) for module in network.modules()]
    with swapped((own, name, _fake(own[name], home)) for own, name, home in places), shared_evenly():
        try:
            yield
        finally:
            for module, before in attributes:
                vars(module).clear()
                vars(module).update(before)


def _fake(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of a quantised layout becomes an ordinary one of as many bytes, which is cast for every use, too."""
    dtype = torch.float8_e4m3fn if is_traceable_wrapper_subclass(tensor) else tensor.dtype
    fake = torch.empty(tensor.shape, dtype=dtype, device=device)
    return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake


def stored_bytes(module: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, each counted once."""
    tensors = {id(own[name]): own[name] for own, name in slots(module)}
    return sum(map(stored, tensors.values()))


def stored(tensor: Tensor) -> int:
    if is_traceable_wrapper_subclass(tensor):
        return sum(stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes
