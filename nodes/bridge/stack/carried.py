"""The LoRAs that a MODEL and a CLIP carry when a run begins: what is learned is learned on top of them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ....lora_core import nested_hash
from ....lora_core.nested_hash import HashSpelling
from ....lora_core.stored import as_text
from ..host import picture_metadata
from ..host.wires import Clip, Model
from . import bypass_injection
from .apply_chain import KindPatch
from .quick_patchers import FusedLoRA

BELOW = "LoRAs below"  # their key in the settings of a run
_WHOLE = 2**22  # numbers of a tensor that are all looked at; of a larger one, as many at even distances


def _sampled(tensor: Tensor) -> Tensor:
    flat = getattr(tensor, "_qdata", tensor).as_subclass(Tensor).detach().flatten()
    return flat[:: -(-flat.numel() // _WHOLE) or 1]


def _count(value: Any) -> str:
    return f"{len(value) if isinstance(value, tuple) else ''};"


_WEIGHTS = HashSpelling(as_text, taken=_sampled)
_KINDS = HashSpelling(as_text, record=";{tag!r}", field=_count, taken=_sampled)
_KNOWN: WeakKeyDictionary[Any, dict[bool, tuple[tuple, list[dict[str, Any]]]]] = WeakKeyDictionary()


class Patch(NamedTuple):
    """One correction of the weight `key`; `loaded` is the same for all that a loader read of a file, and `spelling` how
    it is hashed."""

    key: str
    strength: float
    value: Any
    loaded: int | None
    spelling: HashSpelling = _WEIGHTS


@dataclass
class _Lora:
    digest: Any = field(default_factory=hashlib.sha256)
    layers: int = 0


def carried(model: Model, clip: Clip | None, printed: bool = False) -> list[dict[str, Any]]:
    """Return what is known of each LoRA, JSON throughout; nothing of a MODEL and CLIP without. Rows of our stacks have
    the names and hashes of their files, what other loaders applied a hash of its weights and the number of its layers.
    The hash of all that hangs beside the weights of the MODEL and of the CLIP, too.

    `printed` gives what version 0.1.0 knew: each layer of ours that is no plain LoRA stood alone, and its hash was
    made of tensors as torch prints them, which is another text when someone has changed how torch prints.
    """
    keys = ("name", "sha256", "strength", "text_strength")
    named = [{key: each[key] for key in keys} for each in picture_metadata.attached(model)]
    text = getattr(clip, "patcher", None)
    parts = {"model": model, **({"text": text} if text is not None else {})}
    found = [{**each, "part": part} for part, patcher in parts.items() for each in _applied(patcher, printed)]
    return named + found


def check_everywhere(model: Model) -> None:
    """Raises ValueError when a LoRA that a MODEL carries is on in a part of the picture only: no step of a run is."""
    for ways in bypass_injection.hung(model)[0]:
        if region := next((each.region for way in ways.values() for each in way.timeline if each.region), None):
            raise ValueError(
                f"the connected MODEL has a LoRA that is on in {region.name} only, but a run learns whole pictures; "
                "take mask= out of its row, or connect the MODEL without the stack"
            )


def in_words(loras: Iterable[dict[str, Any]]) -> list[str]:
    """Return a line for each, short, with the first digits of its hash."""
    return [
        f"{each.get('name', each.get('part'))} {(each.get('sha256') or each.get('weights') or each['beside'])[:8]}"
        + (f" at {each['strength']:g}" if "strength" in each else "")
        for each in loras
    ]


def _applied(patcher: Model, printed: bool) -> list[dict[str, Any]]:
    """By the weights, the LoRAs that are on a ModelPatcher, ours as one: their patches are sums. Hashed once."""
    printed = printed and any(isinstance(each[1], KindPatch) for own in patcher.patches.values() for each in own)
    stamp = patcher.patches_uuid, *patcher.injections
    known = _KNOWN.setdefault(patcher, {})
    if printed not in known or known[printed][0] != stamp:
        known[printed] = stamp, _hashed(patcher, printed)
    return known[printed][1]


def _hashed(patcher: Model, printed: bool) -> list[dict[str, Any]]:
    groups: dict[tuple[int | None, float], _Lora] = {}
    for patch in sorted(_patches(patcher, printed), key=lambda patch: patch.key):
        group = groups.setdefault((patch.loaded, patch.strength), _Lora())
        group.digest.update(patch.key.encode())
        nested_hash.add(group.digest, patch.value, patch.spelling)
        group.layers += 1
    found = [
        {"weights": group.digest.hexdigest()[:32], "strength": strength, "layers": group.layers}
        for (_, strength), group in groups.items()
    ]
    hung = [{"beside": text[:32]} for text in bypass_injection.contents(patcher)]
    return sorted(found, key=lambda each: (each["weights"], each["strength"])) + hung


def _patches(patcher: Model, printed: bool) -> Iterator[Patch]:
    for key, patches in patcher.patches.items():
        for strength, value, *_ in patches:
            if isinstance(value, FusedLoRA):
                yield Patch(key, float(strength), value.weights, None)
            elif isinstance(value, KindPatch) and not printed:
                yield Patch(key, float(strength), value.weights[:2], None, _KINDS)  # the third are tensors of the first
            elif isinstance(value, WeightAdapterBase):
                yield Patch(key, float(strength), value.weights, id(value.loaded_keys))
            elif isinstance(value, tuple):  # a whole difference; a list is of a merge of models
                yield Patch(key, float(strength), value, None)
    for injection in (each for own in patcher.injections.values() for each in own):
        for key, (adapter, strength) in _bypassed(injection.inject).items():
            yield Patch(f"{key}.weight", float(strength), adapter.weights, id(adapter.loaded_keys))


def _bypassed(inject: Any) -> dict[str, tuple[WeightAdapterBase, float]]:
    """Return what ComfyUI's bypass loader runs beside the layers; its injections tell of it only by their closure."""
    manager = inspect.getclosurevars(inject).nonlocals.get("self") if inspect.isfunction(inject) else None
    adapters = getattr(manager, "adapters", {})
    return {key: held for key, held in adapters.items() if isinstance(held[0], WeightAdapterBase)}
