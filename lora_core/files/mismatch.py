"""Tells in sentences why a file does not suit a model, or not in all of its layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from ..adapter import TEXT_PREFIX
from ..families.loose_names import is_text
from ..families.signs import named, takes
from ..kinds import Correction
from ..low_rank import LowRank
from .faults import quote

_NAMED = 3  # examples in a sentence
_VERSIONS_DIFFER = 2  # kinds of layers at most, of a model
Shape = tuple[int, ...]


class Misfit(NamedTuple):
    """A layer of a file that corrects a weight of shape `held`, where the model's `layer` is `wanted`."""

    name: str
    held: Shape
    layer: str
    wanted: Shape

    @property
    def is_text(self) -> bool:
        return self.layer.startswith(TEXT_PREFIX)

    @property
    def on_both_sides(self) -> bool:
        return self.held[0] != self.wanted[0] and prod(self.held[1:]) != prod(self.wanted[1:])


def misfit_of(name: str, change: LowRank | Sequence[Correction], layer: str, wanted: Shape) -> Misfit | None:
    """Return what does not fit when `change`, which a file calls `name`, is to correct a weight of shape `wanted`."""
    if isinstance(change, LowRank):
        fits = change.lora_B.shape[0] == wanted[0] and change.lora_A.shape[1] == prod(wanted[1:])
        return None if fits else Misfit(name, change.shape, layer, wanted)
    odd = next((item for item in change if not item.fits(wanted)), None)
    return odd and Misfit(f"{name} ({odd.kind})", odd.shape, layer, wanted)


def is_another_size(misfits: Sequence[Misfit], fitting: int) -> bool:
    """Return whether a file is plainly for another size of model, when beside `misfits` so many layers fit.

    The width of a model is a side of nearly every layer. A file for another width fits almost nowhere and misses on
    both sides, while versions of one size (inpainting, image to video, control) differ in a layer at the edge, of which
    one side is still the model's.
    """
    return not fitting or sum(misfit.on_both_sides for misfit in misfits) > fitting


def is_another_model(misfits: Sequence[Misfit], fitting: int, unmatched: int) -> bool:
    """Return whether a file whose layers do not tell its family is plainly for another: versions of one model differ in
    a layer or two (not in those for pictures, for text and for the output), and have nearly all layers in common."""
    kinds = {re.sub(r"\d+", "", misfit.layer) for misfit in misfits}
    return len(kinds) > _VERSIONS_DIFFER or unmatched > fitting / 2


def left_out(misfits: Sequence[Misfit]) -> str:
    """`1 not applied (...)` with both shapes; "" when there is none."""
    if not misfits:
        return ""
    told = [
        f"{each.name} is {_shape(each.held)}, but {each.layer} of this model is {_shape(each.wanted)}"
        for each in misfits[:_NAMED]
    ]
    more = [f"and {len(misfits) - _NAMED} more"] if len(misfits) > _NAMED else []
    return f"{len(misfits)} not applied (wrong shape: {'; '.join([*told, *more])})"


def lacking(unmatched: Sequence[str], has_text: bool = True) -> str:
    """`2 not applied (not in this model, for example x)` of names that the connected models do not have; "" when there
    is none. A bias without its layer beside it is told apart: the model has no bias there."""
    names = set(unmatched)
    biases = [name for name in unmatched if name.endswith(".bias") and name.removesuffix(".bias") not in names]
    rest = names.difference(biases)
    parts = (
        [f"{len(biases)} not applied (biases that this model does not have, for example {biases[0]})"] if biases else []
    )
    if rest:
        text_only = not has_text and all(map(is_text, rest))
        first = next(name for name in unmatched if name in rest)
        reason = "text encoder layers; connect CLIP" if text_only else f"not in this model, for example {first}"
        parts.insert(0, f"{len(rest)} not applied ({reason})")
    return "; ".join(parts)


def another_size(source: str, misfits: Sequence[Misfit], fitting: int, family: str, families: tuple[str, ...]) -> str:
    """Return a sentence for a file of which too many layers have other shapes; `families` are those it may be for."""
    first, others = misfits[0], _others(family, families)
    itself = (f"another size of {family}",) if len(others) < len(families) else ()
    made_for = named((*others, *itself)) if families else "another model"
    return (
        f"{source} was made for {made_for}: {len(misfits)} of its {len(misfits) + fitting} layers do not fit this "
        f"{family} model, for example {first.name}, which changes a weight of shape {first.held}, but {first.layer} is "
        f"{first.wanted}; use a LoRA made for this model"
    )


def another_family(source: str, names: Sequence[str], matching: int, family: str, families: tuple[str, ...]) -> str:
    """A sentence for a file whose layers tell that it is for others than this family, or are not those of it."""
    others = _others(family, families)
    return (
        f"{source} is a LoRA for {named(others) if others else 'another model'} and matches {matching or 'none'} of "
        f"this {family} model's layers (its first key is {names[0]}); use a LoRA made for {family}"
    )


def unknown_names(source: str, names: Sequence[str], family: str, families: tuple[str, ...], known: str) -> str:
    """A sentence for a file of which no name is known, though its layers do not tell of another family; `known` is the
    model's own name of a layer."""
    path = known.partition(".")[2]
    flat = quote("lora_unet_" + path.replace(".", "_"))
    layers = f", though by its layers it may be for {named(families)}" if families else ""
    return (
        f"{source}: none of its {len(names)} layer names is known for this {family} model{layers}. Its keys begin with "
        f"{', '.join(map(quote, names[:_NAMED]))}; known names are, for example, {quote(known)}, {quote(path)}, {flat} "
        f"or the name in diffusers. Choose a LoRA that was made for {family}, or rename the keys"
    )


def text_alone(source: str, names: Sequence[str], has_text: bool) -> str:
    """A sentence for a file that holds nothing but layers of text encoders, none of which is there."""
    if not has_text:
        return f"{source} changes only the text encoder; connect CLIP"
    return (
        f"{source} changes only text encoders, and the connected CLIP has none of its {len(names)} layers (its first "
        f"key is {quote(names[0])}); connect the CLIP of the model that it was made for"
    )


def _others(family: str, families: Sequence[str]) -> tuple[str, ...]:
    """Those of `families` whose LoRAs a model of `family` does not take."""
    return tuple(each for each in families if not takes(family, (each,)))


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape))
