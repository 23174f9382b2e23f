"""The base model as LoRAs are measured beside it: heads of its attentions and norms of its weights, without LoRAs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from comfy.model_patcher import get_key_weight
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ....lora_core.adapter import TEXT_PREFIX
from ....lora_core.analysis.base_norms import head_norms, norms
from ....lora_core.analysis.cross_terms import KINDS, Attention
from ....lora_core.analysis.parts import WeightPart, attentions
from ..host.wires import Clip, Model
from .names import names_of
from .weights import stored

_HEADS = ("heads", "num_heads", "n_heads", "n_local_heads", "nhead")
_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()  # figures by network, worked out once


class Base:
    """The weights behind a MODEL and, when given, a CLIP, one at a time and dense, whatever they are stored as.

    Figures are kept for as long as ComfyUI keeps the network.
    """

    def __init__(self, model: Model, clip: Clip | None = None):
        names = names_of(model, clip)
        self.shapes, self.parameters = names.shapes, names.parameters
        self.patchers = {"": model} | ({TEXT_PREFIX: clip.patcher} if clip is not None else {})
        self.device = model.load_device

    def norms(self, layers: Iterable[str], tick: Callable[[], object] = lambda: None) -> dict[str, tuple[float, float]]:
        """Frobenius and spectral norm by layer. Layers of third parties' own tensors are left out."""
        found = {}
        for name in layers:
            made = self._once(name, ("norms", name), partial(self._norms, name))
            found |= {name: made} if made else {}
            tick()
        return found

    def attention(self, layers: Iterable[str], tick: Callable[[], object] = lambda: None) -> Attention:
        """Heads, and the base's own products, of all attentions of which these layers are part."""
        heads: dict[str, int] = {}
        products: dict[tuple[str, str], list[float]] = {}
        for home, roles in attentions({name: self._flat(name) for name in layers}).items():
            if not (count := self._heads(roles)):
                continue
            heads[home] = count
            for kind, ends in KINDS.items():
                left, right = (tuple(roles.get(role, ())) for role in ends)
                if left and right:
                    made = self._once(left[0].layer, (kind, left, right), partial(self._products, left, right, count))
                    products |= {(home, kind): made} if made else {}
                    tick()
        return Attention(heads, products)

    def _once(self, layer: str, key: tuple, work: Callable[[], Any]) -> Any:
        known = _KNOWN.setdefault(self._patcher(layer)[0].model, {})
        if key not in known:
            known[key] = work()
        return known[key]

    def _norms(self, name: str) -> tuple[float, float] | None:
        weight = self.dense(name)
        return None if weight is None else norms(weight)

    def _products(self, left: tuple[WeightPart, ...], right: tuple[WeightPart, ...], heads: int) -> list[float] | None:
        found = {part.layer: self.dense(part.layer) for part in (*left, *right)}
        weights = {layer: weight for layer, weight in found.items() if weight is not None}
        return head_norms(weights, left, right, heads) if len(weights) == len(found) else None

    def kept(self, name: str, changed: Tensor) -> Tensor:
        """Return what is left of a layer's weight that was changed where ComfyUI puts it in the place of the old one:
        in fp16, numbers beyond 65504 become infinite; those that fp8 does not have become its largest."""
        if stored(*self._place(name)).dtype is not torch.float16:
            return changed
        return torch.where(changed.half().isinf(), torch.inf, changed)

    @torch.inference_mode()
    def dense(self, name: str) -> Tensor | None:
        """Return a layer's weight, or a parameter that has a name of its own, without patches, fp32 on the device that
        the model computes on; None for a tensor of a third party's own."""
        patcher, key = self._place(name)
        weight, (_, _, convert) = stored(patcher, key), get_key_weight(patcher.model, key)
        if type(weight) not in (Tensor, nn.Parameter) and not isinstance(weight, QuantizedTensor):
            return None
        weight = weight.to(self.device)
        if convert is not None:
            weight = convert(weight)
        weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        fits = weight.is_floating_point() and weight.shape == self.shapes.get(name, self.parameters.get(name))
        return weight.float() if fits else None

    def _heads(self, roles: Mapping[str, list[WeightPart]]) -> int:
        """Return how many heads the queries have; 0 when the network does not say."""
        part = next((part for role in "qo" for part in roles.get(role, ())), None)
        if part is None:
            return 0
        patcher, path = self._patcher(part.layer)
        while path:
            path = path.rpartition(".")[0]
            module = patcher.model.get_submodule(path)
            for name in _HEADS:
                count = getattr(module, name, None)
                if isinstance(count, int) and count > 0:
                    width = (part.columns if part.role == "o" else part.rows)[1]
                    return count if width % count == 0 else 0
        return 0

    def _place(self, name: str) -> tuple[Any, str]:
        """The patcher that has it, and its key there."""
        patcher, path = self._patcher(name)
        return patcher, f"{path}.weight" if name in self.shapes else path

    def _patcher(self, layer: str) -> tuple[Any, str]:
        text = layer.startswith(TEXT_PREFIX)
        return self.patchers[TEXT_PREFIX if text else ""], layer.removeprefix(TEXT_PREFIX)

    def _flat(self, name: str) -> tuple[int, int]:
        shape = self.shapes[name]
        return shape[0], shape[1:].numel()
