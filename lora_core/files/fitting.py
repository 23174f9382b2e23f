"""Header text made to fit: what is worth least goes first, and is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .label import without_picture_hashes
from .lineage import MERGE, PARENTS, parents_of, without_headers, younger
from .metadata import frequency_text, text_of
from .nested import table_of

_PREVIEW = ("modelspec.thumbnail", "ssmd_cover_images")
_TAGS = "ss_tag_frequency"


def fitted(metadata: Mapping[str, str], size: Callable[[Mapping[str, str]], int], limit: int) -> tuple[dict, list[str]]:
    """The metadata with as much left out as it takes for `size` to be at most `limit` bytes, and what was left out.

    First the preview, then the rarest tags of captions, then the hashes of single pictures, then what a merge lost in
    each layer, then the headers of its parents, then its oldest ancestors. It may still not fit.
    """
    kept, left_out = dict(metadata), []
    if size(kept) > limit and kept.keys() & set(_PREVIEW):
        kept = {key: value for key, value in kept.items() if key not in _PREVIEW}
        left_out.append("the preview")
    if size(kept) > limit and _TAGS in kept:
        kept, lost = _fewer_tags(kept, size, limit)
        left_out.append(f"the {lost} rarest tags of the captions" if _TAGS in kept else "tags that cannot be read")
    if size(kept) > limit and (fewer := without_picture_hashes(kept)) != kept:
        kept = fewer
        left_out.append("the hashes of single pictures")
    if size(kept) > limit and (fewer := _without_errors(kept)) != kept:
        kept = fewer
        left_out.append("the errors of single layers")
    if size(kept) > limit and PARENTS in kept:
        kept[PARENTS] = json.dumps(without_headers(parents_of(kept)), sort_keys=True, ensure_ascii=False)
        left_out.append("details from the headers of the merged files")
    while size(kept) > limit and (generations := _generations(parents_of(kept))) > 1:
        fewer = younger(parents_of(kept), generations - 1)
        kept[PARENTS] = json.dumps(fewer, sort_keys=True, ensure_ascii=False)
        left_out.append(f"the ancestors of generation {generations}")
    return kept, left_out


def _generations(parents: list[Any]) -> int:
    count = 0
    while parents:
        count, parents = count + 1, [one for each in parents for one in each.get("parents") or ()]
    return count


def _without_errors(metadata: Mapping[str, str]) -> dict[str, str]:
    if MERGE not in metadata:
        return dict(metadata)
    told = json.loads(metadata[MERGE])  # which is ours, as `inherited` drops that of a file
    parts = [_without_its_errors(part) for part in told.get("converted", ())]
    return {**metadata, MERGE: text_of(_without_its_errors(told) | ({"converted": parts} if parts else {}))}


def _without_its_errors(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "errors"}


def _fewer_tags(metadata: Mapping[str, str], size: Callable[[Mapping[str, str]], int], limit: int) -> tuple[dict, int]:
    """The metadata with the most frequent tags that fit, one at least, and the number of those that do not; without
    `ss_tag_frequency` when it tells of none."""
    tags = sorted(_counted(table_of(metadata[_TAGS])), key=lambda tag: -tag[0])
    if not tags:
        return {key: value for key, value in metadata.items() if key != _TAGS}, 0
    trigger = metadata.get("modelspec.trigger_phrase", "")

    def text(count: int) -> str:
        few: dict[str, dict[str, int]] = {}
        for number, folder, tag in tags[:count]:
            few.setdefault(folder, {})[tag] = number
        return frequency_text(few, trigger)

    fewest, most = 1, len(tags)
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if size({**metadata, _TAGS: text(middle)}) > limit:
            most = middle - 1
        else:
            fewest = middle
    return {**metadata, _TAGS: text(fewest)}, len(tags) - fewest


def _counted(folders: Mapping[str, Any]) -> Iterator[tuple[int, str, str]]:
    """(count, folder, tag) of {folder: {tag: count}}."""
    for folder, tags in folders.items():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                yield count, folder, tag
