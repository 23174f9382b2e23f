"""Describes what Train LoRA learns from: pictures with captions, in groups of one origin and weight."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..stored import as_text, stored
from .buckets import PictureSize
from .captions import literal
from .decoding import SUFFIXES
from .pictures import Masks, Origin
from .references import Reference
from .task import PICTURES, Task, shared
from .views import Crops, View

Role = Literal["concept", "class"]


@stored(
    "flip crops shuffle_tags keep_tokens caption_variants resolutions weight class_images masks caption_weights "
    "references?"
)
@dataclass(frozen=True)
class Options:
    """Says how a set is read, beyond where its pictures and captions are; the defaults add nothing to them.

    `resolutions`: each picture is taken at every one of them. `caption_variants`: orders of tags per caption, used with
    `shuffle_tags`. `class_images`: the set shows the class that the concept belongs to, not the concept.
    `caption_weights`: parentheses in captions are weights as in prompts, else they are text. `references`: those that a
    folder holds are read.
    """

    flip: bool = False
    crops: int = 0
    shuffle_tags: bool = False
    keep_tokens: int = 1
    caption_variants: int = 4
    resolutions: tuple[int, ...] = ()
    weight: float = 1.0
    class_images: bool = False
    masks: Masks = "off"
    caption_weights: bool = False
    references: bool = True


PLAIN = Options()


@dataclass(frozen=True)
class Group:
    """Describes what the pictures of one set have in common. A pass over the data shows each `repeats * weight` times.

    `step` and `options` tell how the set was read; what they did shows in the digests of its pictures.
    """

    name: str = ""
    trigger: str = ""
    repeats: int = 1
    weight: float = 1.0
    role: Role = "concept"
    step: int = field(default=0, compare=False)
    options: Options = field(default=PLAIN, compare=False)

    @property
    def times(self) -> float:
        return self.repeats * self.weight

    def prompt(self, text: str) -> str:
        """Return what text encoders are given for a caption or trigger of this set."""
        return text if self.options.caption_weights else literal(text)


@dataclass(frozen=True)
class Example:
    """One picture at one resolution: where it came from, its caption, its bucket (width, height) and a hash of all.

    `pixels` (height, width, 3) in 0..1 are its centre crop, fp16 to keep large sets small; `mask` (height, width) uint8
    tells where to learn. `captions` are all orders of its tags, as written first, each as text encoders are given it.
    `written` is false where the trigger stands in for a caption. `partner` is the other picture of a pair, of as many
    views. `references` are pictures that it is made from.
    """

    source: str
    caption: str
    size: PictureSize
    pixels: Tensor
    digest: str
    origin: Origin
    group: Group
    captions: tuple[str, ...]
    mask: Tensor | None = None
    crops: Crops | None = None
    flip: bool = False
    written: bool = True
    partner: Example | None = None
    references: tuple[Reference, ...] = ()

    def views(self) -> Iterator[View]:
        """The centre crop first, then further crops, each followed by its mirror image where pictures are flipped."""
        for view in (View(self.pixels, self.mask), *(self.crops.cut(self.size) if self.crops else ())):
            yield view
            if self.flip:
                yield view.mirrored()

    def masks(self) -> list[Tensor | None]:
        """Return the mask of each of its views."""
        return [None] * self.num_views if self.mask is None else [view.mask for view in self.views()]

    def references_of_views(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the pixels of its references for each of its views: of a mirror image those are mirrored, too."""
        shown = tuple(each.pixels for each in self.references)
        for number in range(self.num_views):
            yield tuple(pixels.flip(1) for pixels in shown) if self.flip and number % 2 else shown

    @property
    def num_views(self) -> int:
        return (1 + (len(self.crops.boxes) if self.crops else 0)) * (1 + self.flip)


@dataclass(frozen=True)
class Dataset:
    """Holds what Train LoRA learns from. `left_out` names every file that was not taken, with the reason, and `notes`
    files that were taken with a reservation. `task` is what a run on it minimises; `apart` tells that its concepts are
    to be kept apart (`kept_apart`)."""

    examples: tuple[Example, ...]
    resolutions: tuple[int, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    task: Task = PICTURES
    apart: bool = False

    @property
    def resolution(self) -> int:
        return max(self.resolutions)

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(dict.fromkeys(example.group for example in self.examples))

    @property
    def trigger(self) -> str:
        return ", ".join(dict.fromkeys(group.trigger for group in self.groups if group.trigger))

    @property
    def role(self) -> Role:
        """`class` when nothing in it shows the concept."""
        return "class" if all(group.role == "class" for group in self.groups) else "concept"

    def num_pictures(self) -> int:
        """Pictures, however many resolutions they are taken at."""
        return len({id(example.origin) for example in self.examples})

    def pictures(self) -> list[Example]:
        """Return an example of each picture."""
        return list({id(example.origin): example for example in reversed(self.examples)}.values())[::-1]

    def times(self) -> list[float]:
        """Return how often a pass over the data shows each example."""
        return [example.group.times for example in self.examples]

    def fingerprint(self) -> str:
        """Changes when a picture, a caption, their order, the trigger, how they are drawn, or the task changes."""
        groups = (example.group for example in self.examples)
        text = "".join(example.digest for example in self.examples)
        text += "".join(
            f"{group.repeats} {group.weight} {group.role} {group.prompt(group.trigger)};" for group in groups
        )
        text += as_text(self.task) if self.task != PICTURES else ""
        return hashlib.sha256((text + "apart;" * self.apart).encode()).hexdigest()[:16]

    def buckets(self) -> Counter[PictureSize]:
        return Counter(example.size for example in self.examples)

    def report(self) -> str:
        """Return what matters most, counts, buckets, shares and everything left out, as lines of plain text."""
        lines = [*self._captioned(), *self._lost()]
        lines += [f"{self._counted()} at resolution {', '.join(str(each) for each in self.resolutions)}"]
        lines += [f"  bucket {w} x {h}: {count}" for (w, h), count in sorted(self.buckets().items())]
        lines += self._shares() if self.groups[1:] else self._plain(self.groups[0])
        lines += [f"concepts kept apart: {self.trigger}"] if self.apart else []
        lines += self._variants()
        lines += [f"note on {', '.join(names)}: {why}" for why, names in by_reason(self.notes).items()]
        lines += [f"left out {', '.join(names)}: {why}" for why, names in by_reason(self.left_out).items()]
        return "\n".join(lines)

    def _captioned(self) -> list[str]:
        """Return how many pictures have captions, and which have none."""
        pictures = self.pictures()
        bare = [Path(each.source).name for each in pictures if not each.written]
        if not bare:
            return [f"{_number(len(pictures), 'caption')}, one for every picture"]
        groups = {each.group for each in pictures if not each.written}
        instead = "class word" if all(group.role == "class" for group in groups) else "trigger"
        instead = instead if any(group.trigger or group.role == "class" for group in groups) else "folder's name"
        if len(bare) == len(pictures):
            return [f"no captions: {_number(len(pictures), 'picture')} with only the {instead}"]
        captions, others = _number(len(pictures) - len(bare), "caption"), _number(len(bare), "picture")
        return [f"{captions}, {others} with only the {instead}: {', '.join(bare)}"]

    def _lost(self) -> list[str]:
        """Pictures that were left out, for which the reasons follow at the end."""
        lost = [name for name, _ in self.left_out if Path(name).suffix.lower() in SUFFIXES]
        return [f"{_number(len(lost), 'picture')} left out: {', '.join(lost)}"] if lost else []

    def _counted(self) -> str:
        if self.groups[1:]:
            return f"{self.num_pictures()} images in {len(self.groups)} sets"
        weight = f" x {self.groups[0].weight:g}" if self.groups[0].weight != 1 else ""
        return f"{self.num_pictures()} images x {self.groups[0].repeats} repeats{weight}"

    def _plain(self, group: Group) -> list[str]:
        lines = [f"trigger: {group.trigger}"] if group.trigger else []
        return lines + (["class images, for prior preservation"] if group.role == "class" else [])

    def _shares(self) -> list[str]:
        """In what share each set is drawn."""
        total, lines = sum(self.times()), []
        for group in self.groups:
            members = [example for example in self.examples if example.group == group]
            count, share = len({id(m.origin) for m in members}), len(members) * group.times / total
            tail = f", trigger {group.trigger}" if group.trigger else ""
            tail += ", class images" if group.role == "class" else ""
            name, times = Path(group.name).name, f"{group.repeats} repeats x {group.weight:g}"
            lines.append(f"  {share:.1%} {name}: {count} images x {times}{tail}")
        return lines

    def _variants(self) -> list[str]:
        lines = []
        if (most := max(example.num_views for example in self.examples)) > 1:
            lines.append(f"each picture has {most} views; each step uses one of them at random")
        if (most := max(len(example.captions) for example in self.examples)) > 1:
            lines.append(f"captions with up to {most} orders of their tags")
        if masked := sum(example.mask is not None for example in self.examples):
            lines.append(f"masks: {masked} of {len(self.examples)}")
        if counts := [len(example.references) for example in self.pictures() if example.references]:
            each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
            whole = "all" if len(counts) == self.num_pictures() else f"{len(counts)} of {self.num_pictures()}"
            lines.append(f"references: {each} for each of {whole} pictures")
        return lines


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def combined(datasets: Sequence[Dataset]) -> Dataset:
    """Return all sets as one, each with its own repeats, weight, trigger and captions. Raises ValueError for none, and
    for sets of several tasks."""
    if not datasets:
        raise ValueError("no data set is connected; connect at least one LoRA Dataset")
    examples = tuple(example for dataset in datasets for example in dataset.examples)
    resolutions = tuple(sorted({each for dataset in datasets for each in dataset.resolutions}))
    left_out = tuple(each for dataset in datasets for each in dataset.left_out)
    notes = tuple(each for dataset in datasets for each in dataset.notes)
    task, apart = shared(dataset.task for dataset in datasets), any(dataset.apart for dataset in datasets)
    return Dataset(examples, resolutions, left_out, notes, task=task, apart=apart)


def by_reason(told: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """(name, reason) as the names for each reason: every name is kept, and what many share is said once."""
    found: dict[str, list[str]] = {}
    for name, why in told:
        found.setdefault(why, []).append(name)
    return found


def check_preservation(dataset: Dataset, weight: float, words: Sequence[str]) -> None:
    """Raises ValueError when output preservation is asked for without what it needs: class words and, where pictures
    are learned, a trigger that they stand in for."""
    if weight and not words:
        raise ValueError(
            f"preservation is {weight:g} but preserve has no class word; write one, or set preservation to 0"
        )
    if dataset.task != PICTURES:
        return
    if weight and not dataset.trigger:
        raise ValueError(
            f"preservation is {weight:g} but LoRA Dataset has no trigger word; write one, or set preservation to 0"
        )
    for group in dataset.groups:
        if weight and not group.trigger and group.role == "concept":
            raise ValueError(
                f"preservation is {weight:g} but the set {Path(group.name).name} has no trigger word; "
                "write one, or set preservation to 0"
            )
