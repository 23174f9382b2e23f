"""ModelPatchers that change weights from one stack to the next without unloading the model.

ComfyUI's own restore every weight, move the model off its device, and patch all of it again whenever a patch differs;
and each patch widens the weight to fp32 before it is added to. These know what the loaded weights carry, so only what
differs is written, from the unpatched weight that ComfyUI keeps: nothing drifts, and the result has the bits of a
fresh load. Whatever is not simply ours - another node's patches on the same weight, quantised layouts, saving - goes
ComfyUI's way. A clone that loses these classes loses speed and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast
from uuid import uuid4
from weakref import WeakKeyDictionary

import comfy.utils
import torch
from comfy.hooks import HookGroup
from comfy.model_patcher import LowVramPatch, ModelPatcher, ModelPatcherDynamic, get_key_weight
from comfy.patcher_extension import CallbacksMP
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn

from ....lora_core.low_rank import LowRank
from ....lora_core.weight_sum import write_sum


class FusedLoRA(WeightAdapterBase):
    """A patch that is the sum of plain LoRAs. State lives in `weights` alone, as ComfyUI requires of adapters that it
    moves between devices: a (lora_B, lora_A, scaling) for each term, strengths and alphas folded into `scaling`."""

    name = "lora"
    weights: tuple[tuple[Tensor, Tensor, float], ...]

    def __init__(self, loaded_keys: set[str], weights: tuple[tuple[Tensor, Tensor, float], ...]):
        self.loaded_keys, self.weights = loaded_keys, weights

    @classmethod
    def of(cls, terms: Iterable[LowRank]) -> FusedLoRA:
        return cls(set(), tuple((term.lora_B, term.lora_A, term.scaling) for term in terms))

    def terms(self, strength: float = 1.0) -> list[LowRank]:
        return [LowRank(down, up, scaling * strength * len(down)) for up, down, scaling in self.weights]

    def calculate_weight(
        self, weight: Tensor, key: str, strength: float, strength_model: float, offset: Any, function: Any,
        intermediate_dtype: torch.dtype = torch.float32, original_weight: Any = None,
    ) -> Tensor:  # fmt: skip
        return write_sum(weight, self.terms(strength), weight)


class Kept(NamedTuple):
    """An entry of `ModelPatcher.backup`."""

    weight: Tensor
    inplace_update: bool


class Carried(NamedTuple):
    """Describes what the weights of a loaded model were patched with."""

    uuid: Any
    patches: dict[str, list[tuple]]
    wrappers: dict[str, list]
    cast: bool


_CARRIED: WeakKeyDictionary[nn.Module, Carried] = WeakKeyDictionary()


class StaticPatcher(ModelPatcher):
    """For models that ComfyUI loads in whole or in parts."""

    def patch_weight_to_device(
        self, key: str, device_to: torch.device | None = None, inplace_update: bool = False,
        return_weight: bool = False, force_cast: bool = False,
    ) -> Any:  # fmt: skip
        fused = _alone(self.patches.get(key))
        if fused is None or return_weight or inplace_update or self.weight_inplace_update or not _plain(self, key):
            return super().patch_weight_to_device(key, device_to, inplace_update, return_weight, force_cast)
        weight = comfy.utils.get_attr(self.model, key)
        if key not in self.backup:
            self.backup[key] = Kept(weight.to(device=self.offload_device), False)
        patched = torch.empty_like(weight, device=device_to)
        comfy.utils.set_attr_param(self.model, key, write_sum(weight, fused.terms(), patched))

    def load(self, *args: Any, **kwargs: Any) -> None:
        super().load(*args, **kwargs)
        self._move_off_what_does_not_fit()
        _remember(self)

    def _move_off_what_does_not_fit(self) -> None:
        """ComfyUI has the weights that no longer fit patched in every forward, and forgets that some are patched
        already: as the order in which weights are loaded follows from the patches, those may now be others."""
        twice = {
            name: module for name, module in self.model.named_modules()
            if getattr(module, "comfy_patched_weights", False) and _lowvram_patches(module)
        }  # fmt: skip
        if not twice:
            return
        self.unpatch_hooks()
        for name, module in twice.items():
            for kind in ("weight", "bias"):
                if kept := self.backup.pop(f"{name}.{kind}", None):
                    comfy.utils.set_attr_param(self.model, f"{name}.{kind}", kept.weight)
            module.to(self.offload_device)
            module.comfy_patched_weights = False
        self.apply_hooks(cast(HookGroup, self.forced_hooks), force_apply=True)  # None is for none

    def partially_load(self, device_to: torch.device, extra_memory: int = 0, force_patch_weights: bool = False) -> Any:
        if not force_patch_weights:
            self._exchange(device_to)
        return super().partially_load(device_to, extra_memory, force_patch_weights)

    def _exchange(self, device: torch.device) -> None:
        """Turn what a loaded model carries into this patcher's patches, or leave everything to ComfyUI."""
        changed = _changed(self)
        if changed is None or self.model.device != device or any(kept.inplace_update for kept in self.backup.values()):
            return
        self.unpatch_model(self.offload_device, unpatch_weights=False)
        modules = {key: comfy.utils.get_attr(self.model, key.rpartition(".")[0]) for key in changed}
        resident = {key for key, module in modules.items() if getattr(module, "comfy_patched_weights", False)}
        if any(key not in resident and not hasattr(modules[key], "prev_comfy_cast_weights") for key in changed):
            return
        self.unpatch_hooks()
        self.model.current_weight_patches_uuid = uuid4()  # nobody's, if this is broken off
        for key in resident:
            self._rewrite(key, device)
        if self.model.model_lowvram:
            self._renew_forward_patches()
        self.model.current_weight_patches_uuid = self.patches_uuid
        _remember(self)

    def _rewrite(self, key: str, device: torch.device) -> None:
        kept, fused, live = self.backup.get(key), _alone(self.patches.get(key)), comfy.utils.get_attr(self.model, key)
        if kept and fused and _plain(self, key) and _rewritable(live, kept.weight, device):
            write_sum(kept.weight, fused.terms(), live)
            return
        if kept:
            comfy.utils.set_attr_param(self.model, key, self.backup.pop(key).weight.to(device))
        if key in self.patches:
            self.patch_weight_to_device(key, device_to=device)

    def _renew_forward_patches(self) -> None:
        """Renew the patches of modules that stay off the device and are patched in every forward."""
        for name, module in self.model.named_modules():
            if not hasattr(module, "prev_comfy_cast_weights"):
                continue
            for kind in ("weight", "bias"):
                key, functions = f"{name}.{kind}", getattr(module, f"{kind}_function")
                others = [function for function in functions if not getattr(function, "is_lowvram_patch", False)]
                if key in self.patches and not getattr(module, "comfy_patched_weights", False):
                    _, set_func, convert_func = get_key_weight(self.model, key)
                    others.insert(0, LowVramPatch(key, self.patches, convert_func, set_func))
                self.model.lowvram_patch_counter += len(others) - len(functions)
                setattr(module, f"{kind}_function", others)


class DynamicPatcher(ModelPatcherDynamic):
    """For models whose weights ComfyUI brings to the GPU one by one (dynamic VRAM), patching each on the way: only
    weights whose patches differ are fetched again."""

    def load(self, *args: Any, dirty: bool = False, **kwargs: Any) -> None:
        changed = _changed(self) if dirty else None
        super().load(*args, dirty=dirty and changed is None, **kwargs)
        for key in changed or ():
            comfy.utils.get_attr(self.model, key.rpartition(".")[0])._v_signature = None
        _remember(self)


_QUICK = {ModelPatcher: StaticPatcher, ModelPatcherDynamic: DynamicPatcher}


def quicken(patcher: ModelPatcher) -> bool:
    """Give a clone one of these classes; False when its loader has a class of its own, which is left alone."""
    patcher.__class__ = _QUICK.get(type(patcher), type(patcher))
    return isinstance(patcher, (StaticPatcher, DynamicPatcher))


def _alone(patches: list[tuple] | None) -> FusedLoRA | None:
    """Our patch of a weight, when it is the only one and applies as it is."""
    if not patches or len(patches) != 1:
        return None
    strength, value, strength_model, offset, function = patches[0]
    whole = (strength, strength_model, offset, function) == (1.0, 1.0, None, None)
    return value if whole and type(value) is FusedLoRA else None


def _lowvram_patches(module: nn.Module) -> list:
    """Return the functions that patch the weights of a module that is off the device, in every forward."""
    functions = [*getattr(module, "weight_function", ()), *getattr(module, "bias_function", ())]
    return [function for function in functions if getattr(function, "is_lowvram_patch", False)]


def _plain(patcher: ModelPatcher, key: str) -> bool:
    """Whether a weight is a tensor of floats and no more."""
    weight, set_func, convert_func = get_key_weight(patcher.model, key)
    numbers = weight.dtype in (torch.float32, torch.float16, torch.bfloat16) and type(weight) in (Tensor, nn.Parameter)
    return numbers and set_func is None and convert_func is None and not weight.is_meta


def _rewritable(live: Tensor, base: Tensor, device: torch.device) -> bool:
    same = (live.dtype, live.shape, live.device) == (base.dtype, base.shape, device)
    writable = torch.is_inference_mode_enabled() or not live.is_inference()
    return same and writable and live.data_ptr() != base.data_ptr()


def _remember(patcher: ModelPatcher) -> None:
    patches = {key: list(value) for key, value in patcher.patches.items()}
    wrappers = {key: list(value) for key, value in patcher.weight_wrapper_patches.items()}
    _CARRIED[patcher.model] = Carried(patcher.patches_uuid, patches, wrappers, patcher.force_cast_weights)


def _changed(patcher: ModelPatcher) -> list[str] | None:
    """Keys whose patches differ from those that the loaded weights carry; None when there is nothing to change, when
    that is not known, or when more than patches differs."""
    base_model = patcher.model
    carried = _CARRIED.get(base_model)
    if base_model.current_weight_patches_uuid in (None, patcher.patches_uuid):
        return None
    if patcher.get_all_callbacks(CallbacksMP.ON_LOAD):
        return None
    if carried is None or carried.uuid != base_model.current_weight_patches_uuid:
        if patcher.is_dynamic() or not _untouched(patcher):
            return None
        carried = Carried(base_model.current_weight_patches_uuid, {}, {}, False)
    if carried.wrappers != patcher.weight_wrapper_patches or carried.cast != patcher.force_cast_weights:
        return None
    keys = dict.fromkeys([*carried.patches, *patcher.patches])
    return [key for key in keys if not _same(carried.patches.get(key, []), patcher.patches.get(key, []))]


def _untouched(patcher: ModelPatcher) -> bool:
    """Whether all weights are on the device as they came."""
    return (
        not patcher.backup
        and not patcher.model.model_lowvram
        and not any(
            getattr(module, "weight_function", None)
            or getattr(module, "bias_function", None)
            or getattr(module, "comfy_force_cast_weights", False)
            for module in patcher.model.modules()
        )
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two patches are the same tensors at the same strengths."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, WeightAdapterBase):
        mine, theirs = vars(one), vars(other)
        return mine.keys() == theirs.keys() and all(_same(mine[k], theirs[k]) for k in mine if k != "loaded_keys")
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, (int, float, str, torch.Size)) and one == other
