"""Computes what a run needs, and the mildest measures with which it fits. Sizes are in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from .meter import OperatorWork
from .optimizers import OPTIMIZERS

GB = 2**30
SHARES = (0.25, 0.5, 0.75, 1.0)
# Beside what is counted: memory lost between allocations, and on a device the work space of its libraries.
SLACK, WORK_SPACE = 0.05, 0.3 * GB
SPARE = 0.8  # the most of the free memory that is taken for speed alone


@dataclass(frozen=True)
class Measures:
    """Describes what trades memory for time and changes no result: `checkpointing` recomputes every block's
    activations, `offload` is the share of blocks whose weights stay in RAM and are copied for each run; those are
    always recomputed. `keep_casts` keeps weights that are stored in another type than they are computed in once they
    are cast; `hold_casts` those of a block that is recomputed, from then to the end of its backward pass. `graph`
    replays steps from graphs of the device; it is never taken of its own accord, and only of steps that recompute
    nothing."""

    checkpointing: bool = True
    offload: float = 0.0
    keep_casts: bool = False
    hold_casts: bool = False
    graph: bool = False

    @property
    def replays(self) -> bool:
        return self.graph and not self.checkpointing and not self.offload

    @property
    def for_speed(self) -> bool:
        """Return whether memory is taken for speed alone."""
        return self.keep_casts or self.hold_casts or self.replays

    def __str__(self) -> str:
        checkpointing = "checkpointing" if self.checkpointing else "no checkpointing"
        offload = f"{self.offload:.0%} of blocks offloaded" if self.offload else "no offload"
        casts = (
            ", converted weights kept" * self.keep_casts
            + ", converted weights of recomputed blocks kept" * self.hold_casts
        )
        return f"{checkpointing}, {offload}{casts}{', steps replayed from CUDA graphs' * self.replays}"


@dataclass(frozen=True)
class QuietNeed:
    """Holds what quiet directions take: bytes that are `kept` on the device while they are trained in, bytes of the
    `sketches` that they are made of, which are gone before the first step, and `forwards` of one picture for those."""

    kept: int = 0
    sketches: int = 0
    forwards: int = 0


@dataclass(frozen=True)
class Need:
    """Memory at the peak of a run: weights that lie on the device, factors with their optimiser, and beside them what a
    step takes (`activations`) or a preview, whichever is more: they are never held at once. `graphs` of the step keep
    their memory between steps, beside what runs without them. `quiet` directions lie beside the factors; a forward
    beside their sketches takes no more than a step. `assistants` are there for all of it."""

    weights: int
    factors: int
    activations: int
    work_space: float = 0
    previews: int = 0
    graphs: int = 0
    quiet: QuietNeed = QuietNeed()
    assistants: int = 0

    @property
    def step(self) -> float:
        """Return what a step takes beside weights and factors."""
        return (self.activations + self.graphs) * (1 + SLACK) + self.work_space

    @property
    def total(self) -> float:
        rest = max(self.activations, self.previews) + self.graphs
        begun = self.factors + self.quiet.kept + rest * (1 + SLACK)
        return self.weights + self.assistants + max(begun, self._before) + self.work_space

    @property
    def _before(self) -> float:
        """Return what is taken beside weights before the first step."""
        return self.quiet.sketches + self.activations * (1 + SLACK) if self.quiet.sketches else 0

    def __str__(self) -> str:
        parts = {"weights": self.weights, "LoRA and optimiser": self.factors, "assistants": self.assistants}
        previews = self.previews > self.activations
        parts |= {"previews": self.previews} if previews else {"activations": self.activations}
        parts["graphs of the step"] = self.graphs
        parts["quiet directions"] = max(self.quiet.kept, self.quiet.sketches - self.factors)
        return ", ".join(f"{name} {in_gb(size)}" for name, size in parts.items() if size)


@dataclass(frozen=True)
class Rates:
    """Says what a device does in a second (`flops`, bytes `moved`, bytes `copied` to it from RAM) and the seconds that
    starting one operator takes (`launch`). Copies that are `overlapped` are made while the device computes."""

    flops: float
    moved: float
    launch: float
    copied: float
    overlapped: bool = False

    def seconds(self, work: OperatorWork, streamed: int = 0) -> float:
        """Return the seconds of one forward and backward pass; `streamed` bytes come from RAM for each of the two."""
        compute = max(work.flops / self.flops + work.moved / self.moved, work.launches * self.launch)
        copies = 2 * streamed / self.copied
        return max(compute, copies) if self.overlapped else compute + copies


@dataclass(frozen=True)
class Plan:
    measures: Measures
    need: Need


def optimiser_bytes(trained: int, name: str = "adamw", ema: bool = False, quiet: bool = False) -> int:
    """Return the bytes of so many trained numbers: themselves, their gradients, the optimiser's state, a running mean,
    if kept, and in quiet directions what passes use in their place."""
    return round(4 * trained * (2 + OPTIMIZERS[name].state + ema + quiet))


def in_gb(size: float) -> str:
    return f"{size / GB:.1f}" if size >= GB / 10 else f"{size / GB:.2g}"


def candidates(asked: Measures, automatic: bool) -> Iterator[Measures]:
    """The measures that were asked for, without graphs where these do not fit; then further ones, the mildest first."""
    yield asked
    if asked.graph:
        asked = replace(asked, graph=False)
        yield asked
    if not automatic:
        return
    plain = replace(asked, keep_casts=False)
    recomputed = replace(plain, checkpointing=True)
    if asked.keep_casts and not asked.checkpointing:
        yield plain
    if asked.keep_casts:
        yield replace(recomputed, hold_casts=True)
    if recomputed != asked:
        yield recomputed
    for share in SHARES:
        if share > asked.offload:
            yield Measures(True, share)


def choose(asked: Measures, automatic: bool, need: Callable[[Measures], Need], free: float) -> Plan:
    """Return the mildest plan that fits into `free` bytes; when none does, the one that needs least."""
    plans = []
    for measures in candidates(asked, automatic):
        plans.append(Plan(measures, need(measures)))
        if plans[-1].need.total <= free * (SPARE if measures.for_speed else 1):
            return plans[-1]
    return min(plans, key=lambda plan: plan.need.total)


def blind(asked: Measures, automatic: bool, weights: Callable[[Measures], float], free: float) -> Measures:
    """The measures where what a step takes beside its `weights` is not known: those asked for, or, `automatic`, with
    checkpointing and as little offloaded as leaves a part of the free memory for the step."""
    if not automatic:
        return asked
    shares = [asked.offload, *(share for share in SHARES if share > asked.offload)]
    choices = [Measures(True, share) for share in shares]
    return next((each for each in choices if weights(each) <= free * SPARE), choices[-1])


def refusal(plan: Plan, free: float, changes: Mapping[str, float]) -> str:
    """Says what is missing, and the three of `changes` (their total bytes by name) that would help most."""
    best = sorted((total, name) for name, total in changes.items() if total < plan.need.total)[:3]
    changed = "; ".join(f"{name} needs {in_gb(total)} GB" for total, name in best) or "use a smaller base model"
    return (
        f"not enough memory: training needs {in_gb(plan.need.total)} GB but {in_gb(free)} GB is free ({plan.need}; "
        f"{plan.measures}). What would help most: {changed}"
    )


def describe(plan: Plan, free: float, seconds: float, steps: int, pinned: float = 0, once: float = 0) -> str:
    """Return one line for the node; `pinned` bytes of RAM are buffers that offloaded weights are copied through, and
    `once` are the seconds of what comes before the first step."""
    through = f"; {in_gb(pinned)} GB of pinned RAM is used to copy offloaded blocks" if pinned else ""
    before = f"; before it about {_duration(once)} for quiet directions, unless they are kept" if once else ""
    return (
        f"needs {in_gb(plan.need.total)} of {in_gb(free)} GB free: {plan.need} ({plan.measures}); "
        f"about {seconds:.2g} s a step, {_duration(seconds * steps)}{before}{through}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
