"""LoRAs that are made of LoRAs: what must not be lost on the way, and what their header tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ....lora_core.adapter import Adapter
from ....lora_core.families.loose_names import is_text
from ....lora_core.files import lineage, metadata
from ....lora_core.files.lineage import CONTRACT, Parent
from ....lora_core.files.mismatch import Misfit
from ....lora_core.low_rank import LowRank
from ....lora_core.trust.written import contract_text


def refuse_losses(name: str, unmatched: Sequence[str], has_text: bool) -> None:
    """Raises ValueError when layers of text encoders would be lost only because no CLIP is connected. What has no place
    in the connected models is left out, and named."""
    text = [] if has_text else [each for each in unmatched if is_text(each)]
    if text:
        raise ValueError(
            f"{name}: {len(text)} layers of the text encoder would be lost, for example {text[0]}; connect CLIP"
        )


def lost_layers(name: str, unmatched: Sequence[str], misfits: Sequence[Misfit]) -> list[dict[str, Any]]:
    """For the file: the layers of a parent that are not in it. Nothing when all are."""
    names = [*unmatched, *(misfit.name for misfit in misfits)]
    return [{"name": name, "layers": names}] if names else []


def described(
    layers: Mapping[str, LowRank], parents: Sequence[Parent], headers: Sequence[Mapping[str, str]],
    base: tuple[str, str], made_by: Mapping[str, Any],
) -> Adapter:  # fmt: skip
    """Return the layers with a header: parents, what they have in common, and how the layers were made of them. Of one
    header alone what is still true of it stays. `base` are its names of the architecture and of sd-scripts."""
    before = lineage.inherited(headers[0]) if len(headers) == 1 else {}
    made = Adapter(layers)
    facts = metadata.Facts(
        title=before.get("modelspec.title") or " + ".join(parent.name for parent in parents)[:120],
        architecture=base[0], base_version=base[1], base_name=_common(p.base for p in parents),
        trigger=lineage.triggers(parents), tag_frequency=lineage.tags(headers), merged_from=tuple(parents),
        made_by=made_by,
    )  # fmt: skip
    told = metadata.build(facts, made)
    if "ss_datasets" in before:  # which says more than the trigger that is told of it here
        told.pop("ss_datasets", None)
    text = contract_text(None, told)
    return Adapter(layers, {**before, **told, **({CONTRACT: text} if text else {})})


def _common(names: Iterable[str]) -> str:
    found = set(names)
    return found.pop() if len(found) == 1 else ""
