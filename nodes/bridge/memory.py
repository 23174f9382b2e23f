"""What a run would need: one step on tensors without memory, so that nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from ...lora_core.training import plan
from ...lora_core.training.config import LoraConfig, TrainConfig
from ...lora_core.training.inject import Factors, attached
from ...lora_core.training.meter import Meter, Work
from ...lora_core.training.plan import Measures, Need, Plan
from ...lora_core.training.start import Start
from ...lora_core.training.trainer import add_gradient
from .denoiser import ComfyDenoiser
from .device import free_bytes, rates_of, shares_ram
from .frozen import cast_layers
from .offload import Stream, own_slots, shared_out, slots
from .session import blocks, prepared
from .start import chosen_layers
from .text import TextDenoiser
from .weights import ComfyFrozen


@dataclass(frozen=True)
class Preview:
    """A picture drawn while a run trains: its latent (channels, ...) and the VAE that decodes it."""

    latent: tuple[int, ...]
    vae: Any

    def halved(self) -> Preview:
        """Of half the width and height."""
        *rest, height, width = self.latent
        return replace(self, latent=(*rest, max(8, height // 16 * 8), max(8, width // 16 * 8)))

    def decoding(self, device: torch.device) -> int:
        """Bytes on this device to decode it, in ComfyUI's estimate; the VAE, if it is not there already, included."""
        if self.vae.device != device:
            return 0
        shape = (1, *self.latent)
        flat = self.vae.latent_dim == 2 and len(shape) == 5
        used = self.vae.memory_used_decode((*shape[:2], *shape[3:]) if flat else shape, self.vae.vae_dtype)
        return round(used) + (0 if shares_ram(device) else stored_bytes(self.vae.first_stage_model))


@dataclass(frozen=True)
class Job:
    """A run as far as memory and time depend on it: the largest latent (channels, ...) and the longest conditioning,
    which holds tokens when text encoders are trained, at `text_rank`; the LoRA that it goes on from, and a preview, if
    any."""

    lora: LoraConfig
    config: TrainConfig
    latent: tuple[int, ...]
    conditioning: list
    resolution: int
    text_rank: int = 0
    start: Start | None = None
    preview: Preview | None = None


@dataclass(frozen=True)
class Trace:
    """One forward and backward pass: peak bytes beside weights and factors, work, and how many numbers are trained; of
    a forward alone also the bytes that stay afterwards, which are casts of weights."""

    peak: int
    work: Work
    trained: int
    kept: int = 0


class UnforeseeableError(Exception):
    """A layer of a third party cannot run on tensors without memory."""


_traces: dict[tuple, Trace] = {}  # of this process: a whole model takes seconds, and a graph is queued many times
_MOST_TRACES = 64


@dataclass(frozen=True)
class Planner:
    """Plans for one ModelPatcher that is not loaded yet, and for the CLIP that is trained along with it, if any."""

    patcher: Any
    clip: Any = None

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def settle(self, job: Job, asked: Measures, automatic: bool) -> tuple[Plan, str]:
        """The plan of the job and a line that describes it.

        Raises ValueError when it would not fit into what is free, and UnforeseeableError.
        """
        free = free_bytes(self.device)
        network, dtype = self.patcher.model.diffusion_model, self.patcher.model.get_dtype_inference()
        spare = automatic and not asked.offload and bool(cast_layers(network, dtype))
        asked = replace(asked, keep_casts=spare)
        settled = plan.choose(asked, automatic, lambda measures: self.need(job, measures), free)
        if settled.need.total > free:
            raise ValueError(plan.refusal(settled, free, dict(self.changes(job, settled.measures))))
        if settled.measures.offload:
            self._check_ram()
        return settled, plan.describe(settled, free, self.seconds(job, settled.measures), job.config.steps)

    def _check_ram(self) -> None:
        """Offloaded weights that lie on the device now, as after sampling, come back to RAM first."""
        outside = sum(_stored(own[name]) for own, name in slots(self.patcher.model) if own[name].device.type != "cpu")
        free = comfy.model_management.get_free_memory(torch.device("cpu"))
        if outside > free and not shares_ram(self.device):
            raise ValueError(
                f"offload keeps the weights in RAM, where {plan.in_gb(free)} GB is free and {plan.in_gb(outside)} GB "
                "is needed; close other programs, or set offload to 0"
            )

    def need(self, job: Job, measures: Measures) -> Need:
        trace = self.trace(job, measures)
        shared = shares_ram(self.device)  # the weights are in it already
        weights = 0 if shared else self.resident(measures)
        optimizer = job.config.optimizer
        factors = plan.optimiser_bytes(trace.trained, optimizer.name, optimizer.ema_decay > 0)
        return Need(weights, factors, trace.peak, 0 if shared else plan.WORK_SPACE, self._previews(job, measures))

    def _previews(self, job: Job, measures: Measures) -> int:
        """Bytes that a preview takes in the place of a step. A batch of one is counted: with little free, ComfyUI's
        sampler evaluates the prompt and the negative prompt one after the other."""
        if job.preview is None:
            return 0
        config = replace(job.config, batch_size=1, preservation=0.0)
        sampling = self._traced(sampled, replace(job, latent=job.preview.latent, config=config), measures)
        return max(sampling.peak, sampling.kept + job.preview.decoding(self.device))

    def trace(self, job: Job, measures: Measures) -> Trace:
        return self._traced(traced, job, measures)

    def _traced(self, trace: Callable[..., Trace], job: Job, measures: Measures) -> Trace:
        model = self.patcher.model
        models = [model] if self.clip is None else [model, self.clip.patcher.model]
        weights = tuple((own[name].shape, own[name].dtype) for each in models for own, name in slots(each))
        layer = None if self.clip is None else self.clip.layer_idx
        network = (type(model), model.get_dtype_inference(), hash(weights), str(self.device), layer)
        conditioning = tuple(_looks(value) for value in tree_leaves(job.conditioning))
        choices = (job.lora, job.config.batch_size, job.config.preservation > 0, job.latent, job.text_rank)
        key = (trace, network, conditioning, choices, str(job.start and job.start.identity()), measures)
        if key not in _traces:
            if len(_traces) >= _MOST_TRACES:
                _traces.clear()
            try:
                _traces[key] = trace(self.patcher, job, measures, self.clip)
            except (AttributeError, TypeError, RuntimeError) as error:
                raise UnforeseeableError(f"{type(error).__name__}: {error}") from error
        return _traces[key]

    def resident(self, measures: Measures) -> int:
        """Bytes of the weights that lie on the device."""
        model = self.patcher.model
        streamed = shared_out(blocks(model.diffusion_model), measures.offload)
        return stored_bytes(model) + self._text() - sum(map(stored_bytes, streamed))

    def _text(self) -> int:
        """Bytes of the text encoders' weights."""
        return 0 if self.clip is None else stored_bytes(self.clip.patcher.model)

    def seconds(self, job: Job, measures: Measures) -> float:
        """Of one optimiser step."""
        streamed = shared_out(blocks(self.patcher.model.diffusion_model), measures.offload)
        rates = rates_of(self.device, self.patcher.model.get_dtype_inference())
        work = self.trace(job, measures).work
        return job.config.accumulation * rates.seconds(work, sum(map(stored_bytes, streamed)))

    def changes(self, job: Job, measures: Measures) -> Iterator[tuple[str, float]]:
        """Total bytes with each change that a person could make."""
        config, lora = job.config, job.lora

        def total(changed: Job = job, taken: Measures = measures) -> float:
            return self.need(changed, taken).total

        if config.batch_size > 1:
            yield "batch_size 1", total(replace(job, config=replace(config, batch_size=1)))
        *rest, height, width = job.latent
        smaller = (*rest, max(8, height * 3 // 32 * 8), max(8, width * 3 // 32 * 8))
        if smaller != job.latent:
            yield f"resolution {job.resolution * 3 // 4} in LoRA Dataset", total(replace(job, latent=smaller))
        if lora.preset != "attention":
            yield "targets attention", total(replace(job, lora=replace(lora, preset="attention")))
        if lora.rank > 1:
            yield f"rank {lora.rank // 2}", total(replace(job, lora=replace(lora, rank=lora.rank // 2)))
        if job.preview is not None:
            yield "smaller previews (half as wide and high)", total(replace(job, preview=job.preview.halved()))
        if config.preservation:
            yield "preservation 0", total(replace(job, config=replace(config, preservation=0.0)))
        if self._text() and not shares_ram(self.device):
            yield "text_rank 0", total() - self._text()  # and less: its activations are not taken off
        if not measures.checkpointing:
            yield "gradient_checkpointing on", total(taken=replace(measures, checkpointing=True))
        if measures.offload < 1 and not shares_ram(self.device):
            yield "offload 1.0", total(taken=Measures(True, 1.0))
        if not shares_ram(self.device) and self.patcher.model_dtype().itemsize > 1:
            saved = (self.resident(measures) - self._text()) * (1 - 1 / self.patcher.model_dtype().itemsize)
            yield "the base model in fp8", total() - saved


def _looks(value: object) -> object:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else repr(value)


def traced(patcher, job: Job, measures: Measures, clip=None) -> Trace:
    """Run the training loss forward and backward on fake tensors of the device, text encoders of a `clip` included.

    Exact but for what operators allocate inside, beyond their results.
    """
    with _rehearsed(patcher, job, measures, clip) as (denoiser, factors, x0, sigma, conditions, meter):
        preserved = conditions if job.config.preservation else []
        with meter:
            add_gradient(job.config, factors, denoiser, x0, torch.zeros_like(x0), sigma, conditions, preserved)
    return Trace(meter.peak, meter.work, factors.flat.numel())


def sampled(patcher, job: Job, measures: Measures, clip=None) -> Trace:
    """The same of one forward as a sampler runs it, without a gradient."""
    with _rehearsed(patcher, job, measures, clip) as (denoiser, factors, x, sigma, conditions, meter):
        with torch.no_grad(), meter:
            denoiser.denoised(x, sigma, conditions)
        return Trace(meter.peak, meter.work, factors.flat.numel(), meter.held)


@contextmanager
def _rehearsed(patcher, job: Job, measures: Measures, clip) -> Iterator[tuple]:
    """A training session on fake tensors: its denoiser, its attached factors, a batch, and a meter for what comes."""
    device, config = patcher.load_device, job.config
    streamed = shared_out(blocks(patcher.model.diffusion_model), measures.offload)
    with ExitStack() as undo:
        undo.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        undo.enter_context(_without_memory(patcher.model, streamed, device))
        denoiser, meter = ComfyDenoiser(patcher), Meter(device)
        encoders = None if clip is None else clip.patcher.model
        if clip is not None:
            undo.enter_context(_without_memory(encoders, (), device))
            denoiser = TextDenoiser(patcher, clip)
        layers, kept = chosen_layers(patcher.model.diffusion_model, encoders, job.lora, job.start)
        conditions = [_condition(denoiser, job) for _ in range(config.batch_size)]
        lora = job.lora
        sizes = (lora.rank, lora.alpha, torch.Generator(), job.text_rank, device, lora.options)
        factors = Factors(layers, *sizes, job.start, kept, ComfyFrozen())
        x0 = torch.zeros((config.batch_size, *job.latent), device=device)
        sigma = denoiser.sigma(torch.full((config.batch_size,), 0.5)).to(device)
        stream = Stream(device, ahead=not shares_ram(device))
        with prepared(patcher, measures, stream, clip and clip.patcher), attached(factors.branches):
            yield denoiser, factors, x0, sigma, conditions, meter


def _condition(denoiser: ComfyDenoiser, job: Job) -> Any:
    """Of the job's conditioning: fake, or, for the families that count the tokens of the text, real and in RAM."""
    if isinstance(denoiser, TextDenoiser):
        caption = denoiser.condition(job.conditioning, torch.zeros(job.latent))
        return replace(caption, tokens=dict(caption.tokens))  # one that comes again would be encoded once
    try:
        return denoiser.condition(job.conditioning, torch.zeros(job.latent))
    except DataDependentOutputException:
        with unset_fake_temporarily():
            return denoiser.condition(job.conditioning, torch.zeros(job.latent), torch.device("cpu"))


@contextmanager
def _without_memory(model: nn.Module, streamed: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Fake tensors in the place of all weights, on the device or, for `streamed` modules, in RAM.

    Some networks remember tensors between calls; on leaving, the modules have what they had before.
    """
    apart = {inner for module in streamed for inner in module.modules()}
    places = [
        (own, name, torch.device("cpu") if module in apart else device)
        for module in model.modules()
        for own, name in own_slots(module)
    ]
    originals = [own[name] for own, name, _ in places]
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    try:
        for own, name, home in places:
            own[name] = _fake(own[name], home)
        yield
    finally:
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)
        for (own, name, _), original in zip(places, originals, strict=True):
            own[name] = original


def _fake(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of a quantised layout becomes an ordinary one of as many bytes, which is cast for every use, too."""
    dtype = torch.float8_e4m3fn if is_traceable_wrapper_subclass(tensor) else tensor.dtype
    fake = torch.empty(tensor.shape, dtype=dtype, device=device)
    return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake


def stored_bytes(module: nn.Module) -> int:
    """Of all parameters and buffers, each counted once."""
    tensors = {id(own[name]): own[name] for own, name in slots(module)}
    return sum(map(_stored, tensors.values()))


def _stored(tensor: Tensor) -> int:
    if is_traceable_wrapper_subclass(tensor):
        return sum(_stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes
