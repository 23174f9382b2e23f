"""Finds what is wrong in captions and triggers, in what was left out, and in what the files themselves say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from . import doctor_captions as words
from .caption_files import ENDINGS, LISTS
from .captions import has_bare, has_weights
from .dataset import Dataset, Example, by_reason
from .decoding import SUFFIXES
from .finding import DatasetFinding, are, is_mask, listed, names

_NEARLY_ALL = 0.9
_NAMED = 4  # tags that a sentence names
_TEXT_FILES = (*ENDINGS, *LISTS)


def captions(dataset: Dataset, pictures: list[Example]) -> Iterator[DatasetFinding]:
    junk = [e for e in pictures if words.has_junk(e.caption)]
    if junk:
        yield DatasetFinding(
            2,
            f"the caption of {names(junk)} contains broken characters: save the .txt file as UTF-8.",
            "text",
            tuple(junk),
        )
    if long := [e for e in pictures if words.tokens(e.caption) > words.CLIP_TOKENS]:
        most = max(words.tokens(e.caption) for e in long)
        yield DatasetFinding(
            1,
            f"the caption of {names(long)} is long (up to about {most} tokens): put what matters first, because CLIP reads {words.CLIP_TOKENS} tokens at a time. T5 and newer text encoders read more.",
            "long",
            tuple(long),
        )
    twice = [e for e in pictures if words.repeated_tags(e.caption)]
    if twice:
        tag = words.repeated_tags(twice[0].caption)[0]
        yield DatasetFinding(
            1,
            f"the caption of {names(twice)} has the same tag twice ('{tag}'): once is enough.",
            "twice",
            tuple(twice),
        )
    concept = [e for e in pictures if e.group.role == "concept"]
    if len(concept) > 3 and len({e.caption for e in concept}) == 1 and concept[0].written:
        yield DatasetFinding(
            2,
            f"all {len(concept)} captions are the same, so the LoRA learns everything in the pictures with them: describe what differs between the pictures (pose, place, light).",
            "",
            (),
        )
    odd = [(name, why) for name, why in dataset.notes if name.lower().endswith(_TEXT_FILES)]
    for why, files in by_reason(odd).items():
        yield DatasetFinding(2, f"{listed(files)} {why}.", "text", tuple(_beside(pictures, files)))


def missing(_: Dataset, pictures: list[Example]) -> Iterator[DatasetFinding]:
    bare = [e for e in pictures if not e.written and e.group.role == "concept" and not is_mask(e)]
    if bare:
        learned = f"'{bare[0].caption}'"
        yield DatasetFinding(
            2,
            f"{names(bare)} {'has' if len(bare) == 1 else 'have'} no caption, so everything in {'it' if len(bare) == 1 else 'them'} is learned as {learned}: add a .txt file for each that describes what should not be learned.",
            "no caption",
            tuple(bare),
        )


def parentheses(_: Dataset, pictures: list[Example]) -> Iterator[DatasetFinding]:
    """Yield findings on parentheses in captions, by what the choice of `caption_weights` makes of them."""
    read = [e for e in pictures if e.group.options.caption_weights and has_bare(e.caption)]
    if read:
        yield DatasetFinding(
            2,
            f"in the caption of {names(read)} parentheses are read as weights, not as text: write \\( and \\) for text, or switch caption_weights off.",
            "weights",
            tuple(read),
        )
    plain = [e for e in pictures if not e.group.options.caption_weights and has_bare(e.caption)]
    meant = [e for e in plain if has_weights(e.caption)]
    if meant:
        yield DatasetFinding(
            2,
            f"the caption of {names(meant)} has weights such as (word:1.2), but caption_weights is off, so they are learned as text: remove them, or switch caption_weights on.",
            "weights",
            tuple(meant),
        )
    if others := [e for e in plain if e not in meant]:
        yield DatasetFinding(
            1,
            f"parentheses in the caption of {names(others)} are learned as text: in prompts write \\( and \\), because ComfyUI reads plain parentheses as weights.",
            "( )",
            tuple(others),
        )


def reserved(_: Dataset, pictures: list[Example]) -> Iterator[DatasetFinding]:
    marked: dict[str, list[Example]] = {}
    for example in pictures:
        if example.origin.reserved:
            marked.setdefault(example.origin.reserved, []).append(example)
    for mark, found in marked.items():
        yield DatasetFinding(
            3,
            f"{names(found)} {are(found)} marked as not allowed for training ({mark}): remove {'it' if len(found) == 1 else 'them'}, unless you have the rights or a licence.",
            "notAllowed",
            tuple(found),
        )


def left_out(dataset: Dataset, _: list[Example]) -> Iterator[DatasetFinding]:
    """One for each reason; pictures that are missing in the set are more urgent than other files."""
    for why, files in by_reason(dataset.left_out).items():
        lost = any(name.lower().endswith(SUFFIXES) for name in files)
        yield DatasetFinding(
            2 if lost else 1, f"{listed(files)} {'was' if len(files) == 1 else 'were'} left out: {why}."
        )


def trigger(dataset: Dataset, pictures: list[Example]) -> Iterator[DatasetFinding]:
    for group in dataset.groups:
        members = [e for e in pictures if e.group == group]
        if group.role == "concept" and not group.trigger:
            name = f" of {Path(group.name).name}" if len(dataset.groups) > 1 else ""
            yield DatasetFinding(
                2,
                f"there is no trigger word{name}, so the LoRA changes every prompt: write one in LoRA Dataset, unless that is intended, as for a style.",
            )
        inside = [e for e in members if words.trigger_inside(e.caption, group.trigger)]
        if inside:
            word = words.trigger_inside(inside[0].caption, group.trigger)
            yield DatasetFinding(
                2,
                f"the trigger '{group.trigger}' is part of another word ('{word}') in the caption of {names(inside)}: choose a trigger that is not part of another word.",
                "trigger",
                tuple(inside),
            )


def tags_of_all(dataset: Dataset, pictures: list[Example]) -> Iterator[DatasetFinding]:
    concept = [e for e in pictures if e.group.role == "concept"]
    captions = [e.caption for e in concept]
    if len(captions) < 5 or len(set(captions)) == 1:
        return
    counts = words.tag_counts(captions, [group.trigger for group in dataset.groups])
    for tag, count in counts.most_common():
        if count < _NEARLY_ALL * len(captions):
            break
        trigger = f"'{dataset.trigger}'" if dataset.trigger else "the concept"
        yield DatasetFinding(
            1,
            f"'{tag}' is in {count} of {len(captions)} captions, so it is learned as part of {trigger}: if it belongs to it, remove the tag from the captions; if not, add pictures without it.",
        )
    single = [tag for tag, count in counts.items() if count == 1]
    if single and words.are_tags(captions):
        named = ", ".join(f"'{tag}'" for tag in single[:_NAMED])
        yield DatasetFinding(
            1,
            f"{len(single)} of {len(counts)} tags are in only one caption ({named}): check the spelling; one example is not enough to learn a tag.",
        )


def _beside(pictures: list[Example], files: list[str]) -> Iterator[Example]:
    """The pictures whose caption is in one of the files."""
    stems = {Path(name).name.casefold() for name in files}
    for example in pictures:
        path = Path(example.source)
        if stems & {f"{name}{end}".casefold() for name in (path.stem, path.name) for end in ENDINGS}:
            yield example
