"""Runs a forward for each part of the picture that masks give LoRAs of its own, and mixes what the forwards answer.

It wraps ComfyUI's `calc_cond_batch`, in which a step's prompts are answered: areas, masks and hooks of conditioning,
ControlNet and windows over long videos are inside of it, and hold in each forward as they do without masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4, uuid5

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....lora_core.stack.regions import Region, laid, shares
from ..host.wires import Model
from ..model.spans import Span, When, off_at

_KEY = "lora_loom_regions"  # of transformer_options: the region that a forward is for, by stack
_OWN_WAY = "sampler_calc_cond_batch_function"


class Regional:
    """The regions of one stack, each with the spans of the rows that are on in it."""

    def __init__(self, whens: Iterable[When]):
        self.regions: dict[Region, set[Span]] = {}
        for when in whens:
            if when.region is not None:
                self.regions.setdefault(when.region, set()).add(when.span)
        self.key = uuid4().hex
        self._kept: dict[Any, list[tuple[Region | None, Tensor]]] = {}

    def __deepcopy__(self, memo: dict) -> Regional:
        """Itself: some nodes copy a MODEL's options deep, and `named` looks for the key."""
        return self

    def attach(self, patcher: Model, key: str) -> None:
        if self.regions:
            patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, self._checked)
            patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, key, self._mixed)

    def named(self, c_concat: Any = None, c_crossattn: Any = None, control: Any = None, transformer_options: Any = None,
              **_: Any) -> str:  # fmt: skip
        """Return the digest of the region that a forward is for, by the arguments of `BaseModel.apply_model` that come
        after `t`; "" for what masks leave. Raises ValueError when nobody has said it."""
        if not self.regions:
            return ""
        try:
            return (transformer_options or {})[_KEY][self.key]
        except KeyError:
            raise ValueError(
                "a LoRA has a mask, which only samplers of ComfyUI know to heed, but the model was called by something "
                "else; take mask= out of the rows of Load LoRA Stack, or use another node"
            ) from None

    def _checked(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A wrapper of `CFGGuider.outer_sample`, before anything is loaded."""
        guider = executor.class_obj
        if _OWN_WAY in guider.model_options:
            raise ValueError(
                "a LoRA has a mask, but another node of this model answers prompts in a way of its own "
                f"({_OWN_WAY}), where masks have no effect; remove that node, or take mask= out of the rows"
            )
        for region in self.regions:
            laid(region, noise.shape, _frames_each(guider.model_patcher.model))
        try:
            return executor(noise, *args, **kwargs)
        finally:
            self._kept.clear()

    def _mixed(
        self, executor: Any, base_model: Any, conds: Sequence[Any], x: Tensor, t: Tensor, options: dict[str, Any]
    ) -> list[Tensor]:
        """A wrapper of `calc_cond_batch`, which answers each list of `conds` with a tensor as large as `x`."""
        mixed: list[Tensor] = []
        parts = self._parts(base_model, x, t, options)
        for region, share in parts:
            digest = region.digest if region else ""
            answers = executor(base_model, _told_apart(conds, digest), x, t, self._for(options, digest))
            if len(parts) == 1:
                return answers
            shared = [share.to(answer.dtype) * answer for answer in answers]
            mixed = [one + other for one, other in zip(mixed, shared, strict=True)] if mixed else shared
        return mixed

    def _for(self, options: dict[str, Any], digest: str) -> dict[str, Any]:
        inner = options.get("transformer_options", {})
        return {**options, "transformer_options": {**inner, _KEY: {**inner.get(_KEY, {}), self.key: digest}}}

    def _parts(
        self, base_model: Any, x: Tensor, t: Tensor, options: dict[str, Any]
    ) -> list[tuple[Region | None, Tensor]]:
        """Return the regions for which a forward is needed, with their shares of each place; None for what is left,
        that of regions whose rows are all off now included."""
        off = off_at(set().union(*self.regions.values()), base_model, t)
        window = options.get("transformer_options", {}).get("context_window")
        key = tuple(x.shape), x.device, off, tuple(getattr(window, "index_list", ()))
        if key not in self._kept:
            on = [region for region, spans in self.regions.items() if not spans <= off]
            laid_out = [_windowed(region, x, window, _frames_each(base_model)) for region in self.regions]
            *each, left = shares(laid_out)
            own = dict(zip(self.regions, each, strict=True))
            left = sum((own[region] for region in self.regions if region not in on), left)
            parts = [*((region, own[region]) for region in on), (None, left)]
            self._kept[key] = [(region, share.to(x.device)) for region, share in parts if share.any()]
        return self._kept[key]


def _told_apart(conds: Sequence[Any], digest: str) -> list[Any]:
    """Prompts under ids of their own for each region: what other nodes keep from step to step, they keep by these."""
    if not digest:
        return [*conds]
    return [own and [{**each, "uuid": uuid5(each["uuid"], digest)} for each in own] for own in conds]


def _windowed(region: Region, x: Tensor, window: Any, frames_each: int) -> Tensor:
    """A mask as it lies on what is answered now: of a long video or batch it may be a window."""
    whole = [*x.shape]
    if window is not None:
        whole[window.dim] = window.total_frames
    mask = laid(region, whole, frames_each)
    return mask if window is None or mask.shape[window.dim] == 1 else window.get_tensor(mask).clone()


def _frames_each(base_model: Any) -> int:
    return getattr(base_model.latent_format, "temporal_downscale_ratio", 1)
