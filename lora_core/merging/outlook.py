"""Tells what a merge would be at another rank, energy or size, by the rule that cuts it and without doing it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from weakref import ref

import torch
from torch import Tensor

from ..adapter import TEXT_PREFIX
from ..low_rank import LowRank, cut_error
from .merge import Merged
from .truncation import Limits, shared_ranks


@dataclass(frozen=True)
class Loss:
    """Says what is kept of each layer, 0 of one that goes entirely, the relative errors of the layers and of the whole,
    and the numbers in all factors. `spectra` are the singular values before the cut; there are none where some are not
    known. `what` is what the errors are relative to, such as "the sum"."""

    what: str
    ranks: Mapping[str, int]
    errors: Mapping[str, float]
    error: float
    parameters: int
    spectra: Mapping[str, Tensor]
    widths: Mapping[str, int]

    @classmethod
    def of(cls, merged: Merged, what: str) -> Loss:
        layers, errors = merged.layers, {n: e for n, e in merged.errors.items() if n not in merged.cancelled}
        ranks = {name: layers[name].rank if name in layers else 0 for name in errors}
        size = sum(layer.num_parameters() for layer in layers.values())
        whole = merged.spectra if layers.keys() <= merged.spectra.keys() else {}
        return cls(what, ranks, errors, merged.error, parameters=size, spectra=whole, widths=merged.widths)


class Outlook:
    """The spectra of a merge. Those of layers that were not cut are found when they are first asked for, of what is
    still there of the merge. `header` are the bytes beside the layers in a file that tells of the limits `told`; `cut`
    is whether the merge was cut, and `plain` whether it is a sum."""

    def __init__(self, merged: Merged, what: str, header: int, told: Limits, cut: bool, plain: bool = True):
        self.what = what
        self._told, self._header, self._uncut, self._widths = told, header, merged.uncut, merged.widths
        self._spatial = merged.spatial
        self._spectra = {name: merged.spectra[name] for name in merged.uncut} if cut else {}
        self._layers = {} if cut else {name: ref(layer) for name, layer in merged.layers.items()}
        self._members = merged.members if plain and not cut else {}

    def at(self, limits: Limits, factors: Sequence[tuple[float, float]] = ((1.0, 1.0),)) -> Loss:
        """Cut to these limits, at so many times the strengths on the model and on the text encoders: of each part, or
        of all parts.

        Raises ValueError when nothing fits or is left, and LookupError when what it takes is gone, or was never there:
        of a merge that was cut, no other proportions are known.
        """
        spectra, uncut = self._mixed(factors) if len(set(factors)) > 1 else self._scaled(*factors[0])
        if not spectra:
            raise ValueError("nothing is left at these strengths; set one that is not 0")
        more = _letters(limits) - _letters(self._told)
        return self._cut(spectra, uncut, replace(limits, header=self._header + more))

    def _scaled(self, strength: float, text: float) -> tuple[dict[str, Tensor], Mapping[str, int]]:
        found = {}
        for name, sigma in self._known().items():
            if factor := abs(text if name.startswith(TEXT_PREFIX) else strength):
                found[name] = sigma * factor if factor != 1 else sigma
        return found, self._uncut

    def _mixed(self, factors: Sequence[tuple[float, float]]) -> tuple[dict[str, Tensor], Mapping[str, int]]:
        """Return the spectra and uncut ranks of the sum of parts at other strengths."""
        if not self._members:
            raise LookupError("only a sum that was not cut tells of other proportions")
        spectra, uncut = {}, {}
        for name in self._layers:
            layer = self._layer(name)
            ranks = [rank for _, rank in self._members[name]]
            if layer.rank != sum(ranks):
                raise LookupError(name)
            each = [factors[index][name.startswith(TEXT_PREFIX)] for index, _ in self._members[name]]
            scale = torch.tensor(each, dtype=torch.float64).repeat_interleave(torch.tensor(ranks))
            if kept := int((scale != 0).sum()):
                lora_A, lora_B = layer.lora_A[scale != 0], (layer.lora_B * scale)[:, scale != 0]
                spectra[name] = LowRank(lora_A, lora_B, layer.scaling * kept, layer.kernel).decompose().sigma
                uncut[name] = kept
        return spectra, uncut

    def _known(self) -> Mapping[str, Tensor]:
        for name in self._layers.keys() - self._spectra.keys():
            self._spectra[name] = self._layer(name).decompose().sigma
        return {name: self._spectra[name] for name in self._layers or self._spectra}

    def _layer(self, name: str) -> LowRank:
        if (found := self._layers[name]()) is None:
            raise LookupError(name)
        return found

    def _cut(self, spectra: Mapping[str, Tensor], uncut: Mapping[str, int], limits: Limits) -> Loss:
        """Return what `merge` makes of layers with these singular values."""
        if not limits:
            ranks = {name: uncut[name] for name in spectra}
        else:
            ranks = {name: limits.most(sigma, name in self._spatial) for name, sigma in spectra.items()}
            ranks = shared_ranks(spectra, self._widths, limits, ranks) if limits.megabytes else ranks
        errors = {name: cut_error(sigma, ranks[name]) for name, sigma in spectra.items()}
        size = sum(ranks[name] * self._widths[name] for name in spectra)
        whole = _together(spectra, ranks)
        return Loss(self.what, ranks, errors, whole, parameters=size, spectra=spectra, widths=self._widths)


def _together(spectra: Mapping[str, Tensor], ranks: Mapping[str, int]) -> float:
    """Return the relative error of all layers together."""
    kept = sum(float(sigma.square().sum()) for sigma in spectra.values())
    lost = sum(float(sigma[ranks[name] :].square().sum()) for name, sigma in spectra.items())
    return sqrt(lost / kept) if kept else 0.0


def _letters(limits: Limits) -> int:
    """The settings stand in a file's header."""
    return len(json.dumps(limits.told()))
