"""Works out what a run would need on its device, and which measures make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ....lora_core.training import plan
from ....lora_core.training.plan import Measures, Need, Plan
from ....lora_core.training.reality import Expected
from ....lora_core.training.tasks import PICTURES
from ..host.device import free_bytes, leaves_weights_in_ram, shares_ram, unused
from ..host.wires import Clip, Model
from ..model.guests import Guests
from ..model.recast import cast_layers
from .offload import largest, shared_out, slots
from .rates import rates_of
from .rehearsal import Job, Trace, sampled, stored, stored_bytes, traced, tried
from .session import blocks
from .staging import COUNT, STAGED, WAYS, foreseen


class UnforeseeableError(Exception):
    """A step cannot be tried on tensors without memory, which says nothing of a real one."""


_traces: dict[tuple, Trace] = {}  # of this process: a whole model takes seconds, and a graph is queued many times
_MOST_TRACES = 64
_PASSES = 3  # forwards in the time of a step of one picture


@dataclass(frozen=True)
class Planner:
    """Plans for one ModelPatcher that is not loaded yet, and for the CLIP that is trained along with it, if any."""

    patcher: Model
    clip: Clip | None = None

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def settle(self, job: Job, asked: Measures, automatic: bool) -> tuple[Plan, str]:
        """Return the plan of the job and a line that describes it.

        Raises ValueError when it would not fit into what is free, and UnforeseeableError.
        """
        free = free_bytes(self.device)
        if automatic and leaves_weights_in_ram(self.device):
            asked = replace(asked, offload=1.0)
        network, dtype = self.patcher.model.diffusion_model, self.patcher.model.get_dtype_inference()
        spare = automatic and not asked.offload and bool(cast_layers(network, dtype))
        asked = replace(asked, keep_casts=spare)
        settled = plan.choose(asked, automatic, lambda measures: self.need(job, measures), free)
        if settled.need.total > free:
            raise ValueError(plan.refusal(settled, free, dict(self.changes(job, settled.measures))))
        if settled.measures.offload:
            self._check_ram()
        staged = self.way(settled.measures) == STAGED
        pinned = COUNT * largest(self._streamed(settled.measures)) if staged else 0
        seconds = self.seconds(job, settled.measures)
        once = seconds * job.quiet.forwards / (_PASSES * job.config.batch_size * job.config.accumulation)
        return settled, plan.describe(settled, free, seconds, job.config.steps, pinned, once)

    def unforeseen(self, asked: Measures, automatic: bool, reason: UnforeseeableError) -> tuple[Measures, float, str]:
        """Measures for a run of which `settle` could not say what it needs, the bytes to make free for its steps, which
        are all that there are, and a line that says so."""
        free = free_bytes(self.device)
        if automatic and leaves_weights_in_ram(self.device):
            asked = replace(asked, offload=1.0)
        measures = plan.blind(asked, automatic, self._weights, free)
        weights = self._weights(measures)
        line = (
            f"the memory of a step could not be predicted ({reason}); training uses {measures}, which leaves "
            f"{plan.in_gb(max(free - weights, 0))} of {plan.in_gb(free)} GB free for it. If memory runs out, lower "
            "batch_size or resolution, or set offload to 1"
        )
        return measures, max(free - weights, 0), line

    def expected(self, job: Job, settled: Plan, way: str = "") -> Expected:
        """Return what is expected of each step, once the run goes on; `way` is how offloaded weights are really copied
        to the device."""
        measures = settled.measures
        seconds = self.seconds(job, measures, way) * (1 + measures.replays)  # a graph is held to a step at first
        return Expected(settled.need.step, seconds, measures.offload > 0)

    def otherwise(self, job: Job, settled: Plan, foreseen: str, way: str) -> str:
        """Return a sentence where offloaded weights are copied in a slower way than was foreseen."""
        if not way or WAYS.index(way) <= WAYS.index(foreseen):
            return ""
        through = "through two buffers" if way == STAGED else "from unpinned memory, while the GPU waits"
        return (
            f"training is slower, about {self.seconds(job, settled.measures, way):.2g} s a step: not all offloaded "
            f"weights could be pinned, so they are copied {through}; close other programs if RAM is short"
        )

    def _check_ram(self) -> None:
        """Offloaded weights that lie on the device now, as after sampling, come back to RAM first."""
        outside = sum(stored(own[name]) for own, name in slots(self.patcher.model) if own[name].device.type != "cpu")
        free = unused(torch.device("cpu"))
        if outside > free and not shares_ram(self.device):
            raise ValueError(
                f"not enough RAM for offload: the weights need {plan.in_gb(outside)} GB and {plan.in_gb(free)} GB is "
                "free; close other programs, or set offload to 0"
            )

    def need(self, job: Job, measures: Measures) -> Need:
        trace, optimizer = self.trace(job, measures), job.config.optimizer
        averaged, quiet = optimizer.ema_decay > 0, job.config.quiet > 0
        factors = plan.optimiser_bytes(trace.trained, optimizer.name, averaged, quiet)
        work_space = 0 if shares_ram(self.device) else plan.WORK_SPACE
        graphs = trace.peak + 12 * trace.trained if measures.replays else 0  # and three gradients, to compare
        return Need(
            self._weights(measures), factors, trace.peak, work_space,
            previews=self._previews(job, measures), graphs=graphs, quiet=job.quiet,
        )  # fmt: skip

    def _weights(self, measures: Measures) -> int:
        """Bytes that loading the weights takes of what is free; where that is RAM, they are in it already."""
        return 0 if shares_ram(self.device) else self.resident(measures)

    def _previews(self, job: Job, measures: Measures) -> int:
        """Bytes that a preview takes in the place of a step. A batch of one is counted: with little free, ComfyUI's
        sampler evaluates the prompt and the negative prompt one after the other."""
        if job.preview is None:
            return 0
        config = replace(job.config, batch_size=1, preservation=0.0)
        sampling = self._traced(
            sampled, replace(job, latent=job.preview.latent, config=config, task=PICTURES), measures
        )
        return max(sampling.peak, sampling.kept + job.preview.decoding(self.device))

    def trace(self, job: Job, measures: Measures) -> Trace:
        return self._traced(traced, job, measures)

    def _traced(self, trace: Callable[..., Trace], job: Job, measures: Measures) -> Trace:
        measures = replace(measures, graph=False)  # which changes what is kept, not what a step is
        base_model = self.patcher.model
        models = [base_model] if self.clip is None else [base_model, self.clip.patcher.model]
        weights = tuple((own[name].shape, own[name].dtype) for each in models for own, name in slots(each))
        layer = None if self.clip is None else self.clip.layer_idx
        network = (type(base_model), base_model.get_dtype_inference(), hash(weights), str(self.device), layer)
        conditioning = tuple(_looks(value) for value in tree_leaves(job.conditioning))
        choices = (job.lora, job.config.batch_size, job.config.preservation > 0, job.latent, job.text_rank, job.task)
        guests = tuple(map(id, Guests(self.patcher).calls()))
        key = (trace, network, conditioning, choices, str(job.start and job.start.identity()), measures, guests)
        if key not in _traces:
            if len(_traces) >= _MOST_TRACES:
                _traces.clear()
            found = tried(trace, self.patcher, job, measures, self.clip)
            if isinstance(found, Exception):
                raise UnforeseeableError(f"{type(found).__name__}: {found}") from found
            _traces[key] = found
        return _traces[key]

    def resident(self, measures: Measures) -> int:
        """Return bytes of the weights that lie on the device."""
        streamed = self._streamed(measures)
        return stored_bytes(self.patcher.model) + self._text() - sum(map(stored_bytes, streamed))

    def _streamed(self, measures: Measures) -> list[nn.Module]:
        return shared_out(blocks(self.patcher.model.diffusion_model), measures.offload)

    def way(self, measures: Measures) -> str:
        """Return how offloaded weights will be copied to the device, as far as that is known before they are pinned."""
        streamed = self._streamed(measures)
        weights = [own[name] for module in streamed for own, name in slots(module)]
        return foreseen(self.device, weights, largest(streamed))

    def _text(self) -> int:
        """Bytes of the text encoders' weights."""
        return 0 if self.clip is None else stored_bytes(self.clip.patcher.model)

    def seconds(self, job: Job, measures: Measures, way: str = "") -> float:
        """Estimate the seconds of one optimiser step, in the mean over those that preserve and those that do not."""
        config = job.config
        if config.preservation and config.preserve_every > 1:
            rest, every = replace(job, config=replace(config, preservation=0.0)), config.preserve_every
            whole = replace(job, config=replace(config, preserve_every=1))
            plain, preserving = (self.seconds(each, measures, way) for each in (rest, whole))
            return plain + (preserving - plain) / every
        streamed = self._streamed(measures)
        rates = rates_of(self.device, self.patcher.model.get_dtype_inference(), way or self.way(measures))
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
        if job.quiet.sketches:
            loud = replace(job, config=replace(config, quiet=0.0), quiet=plan.QuietNeed())
            yield "quiet off", total(loud)
        if config.preservation:
            off = "quiet directions" if config.preserve_every > 1 else "preservation 0"
            yield off, total(replace(job, config=replace(config, preservation=0.0)))
        if self._text() and not shares_ram(self.device):
            yield "text_rank 0", total() - self._text()  # and less: its activations are not taken off
        if not measures.checkpointing:
            yield "gradient_checkpointing on", total(taken=replace(measures, checkpointing=True))
        if measures.offload < 1 and not shares_ram(self.device):
            yield "offload 1.0", total(taken=Measures(True, 1.0))
        dtype = self.patcher.model_dtype()
        if not shares_ram(self.device) and dtype is not None and dtype.itemsize > 1:
            saved = (self.resident(measures) - self._text()) * (1 - 1 / dtype.itemsize)
            yield "the base model in fp8", total() - saved


def _looks(value: object) -> object:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else repr(value)
