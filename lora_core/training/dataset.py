"""What Train LoRA learns from: pictures with captions, in groups of one origin and weight."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from .buckets import Size
from .pictures import Masks, Origin
from .views import Crops, View

Role = Literal["concept", "class"]


@dataclass(frozen=True)
class Options:
    """How a set is read, beyond where its pictures and captions are; the defaults add nothing to them.

    `resolutions`: each picture is taken at every one of them. `caption_variants`: orders of tags per caption, used with
    `shuffle_tags`. `class_images`: the set shows the class that the concept belongs to, not the concept.
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


PLAIN = Options()


@dataclass(frozen=True)
class Group:
    """What the pictures of one set have in common. A pass over the data shows each `repeats * weight` times.

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


@dataclass(frozen=True)
class Example:
    """One picture at one resolution: where it came from, its caption, its bucket (width, height) and a hash of all.

    `pixels` (height, width, 3) in 0..1 are its centre crop, fp16 to keep large sets small; `mask` (height, width) uint8
    tells where to learn. `captions` are all orders of its tags, as written first.
    """

    source: str
    caption: str
    size: Size
    pixels: Tensor
    digest: str
    origin: Origin
    group: Group
    captions: tuple[str, ...]
    mask: Tensor | None = None
    crops: Crops | None = None
    flip: bool = False

    def views(self) -> Iterator[View]:
        """The centre crop first, then further crops, each followed by its mirror image where pictures are flipped."""
        for view in (View(self.pixels, self.mask), *(self.crops.cut(self.size) if self.crops else ())):
            yield view
            if self.flip:
                yield view.mirrored()

    def masks(self) -> list[Tensor | None]:
        """The mask of each of its views."""
        return [None] * self.num_views if self.mask is None else [view.mask for view in self.views()]

    @property
    def num_views(self) -> int:
        return (1 + (len(self.crops.boxes) if self.crops else 0)) * (1 + self.flip)


@dataclass(frozen=True)
class Dataset:
    """What Train LoRA learns from. `left_out` names every file that was not taken, with the reason."""

    examples: tuple[Example, ...]
    resolutions: tuple[int, ...]
    left_out: tuple[tuple[str, str], ...] = ()

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

    def times(self) -> list[float]:
        """How often a pass over the data shows each example."""
        return [example.group.times for example in self.examples]

    def fingerprint(self) -> str:
        """Changes when a picture, a caption, their order, the trigger, or how they are drawn changes."""
        groups = (example.group for example in self.examples)
        text = "".join(example.digest for example in self.examples)
        text += "".join(f"{group.repeats} {group.weight} {group.role} {group.trigger};" for group in groups)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def buckets(self) -> Counter[Size]:
        return Counter(example.size for example in self.examples)

    def report(self) -> str:
        """Counts, buckets, shares and everything left out, as lines of plain text."""
        lines = [f"{self._counted()} at resolution {', '.join(str(each) for each in self.resolutions)}"]
        lines += [f"  bucket {w} x {h}: {count}" for (w, h), count in sorted(self.buckets().items())]
        lines += self._shares() if len(self.groups) > 1 else self._plain(self.groups[0])
        lines += self._variants()
        lines += [f"left out {name}: {reason}" for name, reason in self.left_out]
        return "\n".join(lines)

    def _counted(self) -> str:
        if len(self.groups) > 1:
            return f"{self.num_pictures()} images of {len(self.groups)} sets"
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
            lines.append(f"each picture in {most} views, of which every step draws one")
        if (most := max(len(example.captions) for example in self.examples)) > 1:
            lines.append(f"captions in up to {most} orders of their tags")
        if masked := sum(example.mask is not None for example in self.examples):
            lines.append(f"masks: {masked} of {len(self.examples)}")
        return lines


def combined(datasets: Sequence[Dataset]) -> Dataset:
    """All sets as one, each with its own repeats, weight, trigger and captions. Raises ValueError for none."""
    if not datasets:
        raise ValueError("no data set is connected; connect at least one LoRA Dataset")
    examples = tuple(example for dataset in datasets for example in dataset.examples)
    resolutions = tuple(sorted({each for dataset in datasets for each in dataset.resolutions}))
    return Dataset(examples, resolutions, tuple(left for dataset in datasets for left in dataset.left_out))


def check_preservation(dataset: Dataset, weight: float, words: Sequence[str]) -> None:
    """Raises ValueError when output preservation is asked for without what it needs."""
    if weight and not dataset.trigger:
        raise ValueError(f"preservation is {weight:g} but LoRA Dataset has no trigger word; give one, or set it to 0")
    for group in dataset.groups:
        if weight and not group.trigger and group.role == "concept":
            raise ValueError(
                f"preservation is {weight:g} but the set {Path(group.name).name} has no trigger word; "
                "give one, or set it to 0"
            )
    if weight and not words:
        raise ValueError(f"preservation is {weight:g} but preserve names no class word; give one, or set it to 0")
