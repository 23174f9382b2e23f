"""Names of an unknown spelling: compared with a model's without what trainers put before them, dots and underscores
alike, and taken only where all of a file, or nearly all, agree.

The names before a layer's own are those of peft (`base_model.model.`), of torch's wrappers (`module.`, `_orig_mod.`),
of the part of a pipeline or checkpoint (`transformer.`, `model.diffusion_model.`), and of kohya's scripts and their
relatives (`lora_unet_`, `lycoris_`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

_Place = TypeVar("_Place")

NEARLY_ALL = 0.9  # of a file's names, when nothing else tells that it is for this model
MOST = 0.5  # when its layers tell the family

_WRAPPERS = re.compile(
    r"(?<![A-Za-z0-9])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_model[._]model)[._]"
    r"|^(?:(?:module|model)\.)+"
)
_PART = re.compile(r"^(?:(?:module|model|diffusion_model|transformer|unet|net|dit|pipe|denoiser)\.)+")
_FLAT_PART = re.compile(
    r"^_?(?:(?:lora_unet|lora_transformer|lora_prior_(?:unet|prior)|lycoris|model|diffusion_model|unet)_)+"
)
_BETWEEN = re.compile(r"[._]+")
_OTHER_WORDS = {"sformer_blocks": "transformer_blocks", "text_conditioner": "llm_adapter"}  # exports for FLUX.2; Anima
_OTHER_WORD = re.compile(rf"^(?:{'|'.join(_OTHER_WORDS)})(?=_)")

_ENCODER = re.compile(
    r"(?:lora_)?(?:prior_)?(?:te|text_encoders?)_?(?P<number>[1-9])?_|cond_stage_model_|conditioner_embedders_(?P<at>\d)_"
)
_INSIDE = re.compile(r"^(?:(?:transformer|text_model|model|language_model)_)+")
_TEXT = re.compile(
    rf"{_ENCODER.pattern}|(?:clip_[lgh]|u?m?t5xxl)_|[a-z0-9]+(?:_\d+b)?_transformer_(?:text_model|model|encoder)_"
    r"|text_model_|encoder_(?:layers|block)_\d|(?:language_model_)?layers_\d+_(?:self_attn|mlp)_"
)


def unwrapped(name: str) -> str:
    """The name without what peft and torch wrap around a module, wherever it stands."""
    return _WRAPPERS.sub("", _WRAPPERS.sub("", name))


def bare(name: str) -> str:
    """The name of a layer of a network, without any prefix, flat."""
    flat = _FLAT_PART.sub("", _flat(_PART.sub("", unwrapped(name))))
    return _OTHER_WORD.sub(lambda found: _OTHER_WORDS[found[0]], flat)


def is_text(name: str) -> bool:
    """Whether it is the name of a layer of a text encoder, in any spelling."""
    return bool(_TEXT.match(_flat(unwrapped(name))))


class _Encoders(NamedTuple):
    """Text encoders that a name may mean: the likeliest first when they are `ordered`, else only one of them."""

    names: tuple[str, ...]
    ordered: bool


class LooseNames(Generic[_Place]):
    """Finds what the names of one model mean, however they are spelled. `network` and `text` are the known names of
    layers, each with its place; one of `text` begins with the name of its encoder."""

    def __init__(self, network: Mapping[str, _Place], text: Mapping[str, _Place]):
        self._network = _index((bare(name), place) for name, place in network.items())
        by_encoder: dict[str, list[tuple[str, _Place]]] = {}
        for name, place in text.items():
            encoder, _, path = name.partition(".")
            by_encoder.setdefault(encoder, []).append((_INSIDE.sub("", _flat(path)), place))
        self._text = {encoder: _index(names) for encoder, names in by_encoder.items()}

    def places(self, names: Iterable[str], vouched: bool) -> dict[str, _Place]:
        """Where each of a file's names belongs; none of them when too few agree. `vouched`: the file's layers tell that
        it is for this family, so that most will do."""
        network: dict[str, str] = {}
        text: dict[_Encoders, dict[str, str]] = {}
        names = list(names)
        of_text = self.of_text(names)
        for name in names:
            if name in of_text:
                encoders, path = self._text_parts(name)
                text.setdefault(encoders, {})[name] = path
            else:
                network[name] = bare(name)
        found = _agreeing(network, self._network, MOST if vouched else NEARLY_ALL)
        for encoders, paths in text.items():
            found |= self._of_encoders(encoders, paths)
        return found

    def of_text(self, names: Iterable[str]) -> set[str]:
        """Those of a file's names that are of text encoders. One that the network shares with these, as Ernie-Image's
        `layers.0.mlp.up_proj`, is the network's where another of the file is its alone."""
        told = {name: is_text(name) for name in names}
        network = any(bare(name) in self._network for name, text in told.items() if not text)
        return {name for name, text in told.items() if text and not (network and bare(name) in self._network)}

    def _text_parts(self, name: str) -> tuple[_Encoders, str]:
        """The encoders that a name may mean, and its path inside them."""
        flat, encoders = _flat(unwrapped(name)), tuple(self._text)
        said = _ENCODER.match(flat)
        path = flat[said.end() :] if said else flat
        if own := [encoder for encoder in encoders if path.startswith(f"{encoder}_")]:
            return _Encoders((own[0],), True), _INSIDE.sub("", path[len(own[0]) + 1 :])
        number = 0 if said is None else int(said["number"] or int(said["at"] or 0) + 1)
        first = encoders[number - 1 : number] if number else ()
        others = tuple(each for each in encoders if each not in first) if number <= len(encoders) else ()
        return _Encoders((*first, *others), bool(number)), _INSIDE.sub("", path)

    def _of_encoders(self, encoders: _Encoders, paths: Mapping[str, str]) -> dict[str, _Place]:
        found = [_agreeing(paths, self._text[name], NEARLY_ALL) for name in encoders.names]
        found = [each for each in found if each]
        return found[0] if found and (encoders.ordered or len(found) == 1) else {}


def numbered_slices(slices: Iterable[tuple[str, tuple[int, int]]]) -> dict[str, tuple[str, tuple[int, int]]]:
    """OneTrainer's names for slices (layer, (start, length)) of fused weights: the layer's and a number, top first."""
    of_layer: dict[str, set[tuple[int, int]]] = {}
    for layer, rows in slices:
        of_layer.setdefault(layer, set()).add(rows)
    names: dict[str, tuple[str, tuple[int, int]]] = {}
    for layer, rows in of_layer.items():
        start = number = 0
        while lengths := [length for first, length in rows if first == start]:
            names[f"{layer}.{number}"] = layer, (start, min(lengths))
            start, number = start + min(lengths), number + 1
    return names


def _flat(name: str) -> str:
    return _BETWEEN.sub("_", name)


def _index(names: Iterable[tuple[str, _Place]]) -> dict[str, _Place | None]:
    """None for a flat name that means two layers."""
    index: dict[str, _Place | None] = {}
    for name, place in names:
        index[name] = place if index.get(name, place) == place else None
    return index


def _agreeing(names: Mapping[str, str], index: Mapping[str, _Place | None], share: float) -> dict[str, _Place]:
    found = {name: place for name, flat in names.items() if (place := index.get(flat)) is not None}
    return found if len(found) >= share * len(names) else {}
