"""Keeps what was encoded in `output/lora_loom_cache`, by the content it was made of and the model that made it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfyui_version import __version__
from torch import Tensor, nn

from ....lora_core import nested_hash
from ....lora_core.files.cache import Cache, trim
from ....lora_core.ranks.group import here
from ..host.wires import Clip, Model, Vae

log = logging.getLogger("lora_loom")

MOST_BYTES = 20 * 2**30
MOST_DAYS = 30
_CHANGES = ("weight_wrapper_patches", "injections", "wrappers", "hook_patches", "additional_models")


def cache_folder() -> Path:
    """Beside the folder of runs, so that it can be deleted without a look at what is in it."""
    return Path(folder_paths.get_output_directory()) / "lora_loom_cache"


def tidy() -> None:
    """Delete what was not used for a month, and the longest unused beyond 20 GiB, on the rank that writes."""
    if not here().first:
        return
    if deleted := trim(cache_folder(), MOST_BYTES, MOST_DAYS):
        log.info("%d unused files deleted from %s", deleted, cache_folder())


class Encodings:
    """Keeps what one encoder made of anything. An encoder of unknown content (`identity` None) has nothing kept."""

    def __init__(self, kind: str, identity: str | None):
        self.cache, self.identity = Cache(cache_folder() / kind), identity

    def of(self, content: Any, make: Callable[[], Any]) -> Any:
        """Return what `make` makes of the content, from the disk when it was made before."""
        found = self.find(content)
        if found is None:
            found = kept(make())
            self.keep(content, found)
        return found

    def find(self, content: Any) -> Any:
        """Return what was made of the content before; None when it is not there."""
        key = self._key(content)
        with torch.inference_mode(False):
            return self.cache.get(key) if key else None

    def keep(self, content: Any, value: Any) -> None:
        """Write what was made of the content, on the rank that writes."""
        if here().first and (key := self._key(content)):
            self._put(key, value)

    def _key(self, content: Any) -> str | None:
        digest = hashlib.sha256()
        try:
            nested_hash.add(digest, [self.identity, content], _CONTENT)
        except TypeError:
            return None
        return digest.hexdigest()[:32] if self.identity else None

    def _put(self, key: str, value: Any) -> None:
        try:
            self.cache.put(key, value)
        except TypeError as error:
            log.debug("the cache could not save: %s", error)


def vae_identity(vae: Vae) -> str | None:
    """Changes with a VAE's weights, class, precision, kind of device, and with ComfyUI's version."""
    network = getattr(vae, "first_stage_model", None)
    if not isinstance(network, nn.Module):
        return None
    return _identity(network, vae.patcher, str(vae.vae_dtype), torch.device(vae.device).type)


def clip_identity(clip: Clip) -> str | None:
    """As `vae_identity`; also with the layer of clip skip, and with every patch. None when hooks decide the text."""
    patcher = clip.patcher
    if patcher.forced_hooks is not None or clip.apply_hooks_to_conds:
        return None
    return _identity(clip.cond_stage_model, patcher, clip.layer_idx, patcher.load_device.type)


def model_identity(model: Model) -> str | None:
    """As `vae_identity`, of what a MODEL predicts."""
    network, options = model.model, model.model_options
    if any(_filled(value) for name, value in options.items() if name != "transformer_options"):
        return None
    if _filled(options.get("transformer_options")):
        return None
    choices = str(network.get_dtype_inference()), str(network.manual_cast_dtype), type(network.model_sampling).__name__
    return _identity(network.diffusion_model, model, type(network).__name__, *choices, model.load_device.type)


def works_around_weights(patcher: Model) -> bool:
    """Return whether something else than weights and their patches changes what the network of a ModelPatcher does."""
    return any(_filled(getattr(patcher, name, None)) for name in _CHANGES)


def _identity(network: nn.Module, patcher: Model, *choices: Any) -> str | None:
    """None for a network that was changed in a way that cannot be told apart from others."""
    objects = dict(patcher.object_patches)
    choices = (*choices, objects.pop("manual_cast_dtype", None))  # how every text encoder is told its precision
    if objects or works_around_weights(patcher):
        return None
    digest = hashlib.sha256()
    patched = str(patcher.patches_uuid) if patcher.patches else ""
    known = [__version__, type(network).__name__, patched, [str(choice) for choice in choices]]
    nested_hash.add(digest, known, _CONTENT)
    for name, value in _unpatched(network, patcher.backup):
        stored = getattr(value, "_qdata", value).as_subclass(Tensor).detach()
        if stored.is_meta:
            return None
        flat = stored.flatten()
        sample = flat[:: max(flat.numel() // 16, 1)][:16].float().cpu()
        nested_hash.add(digest, [name, list(stored.shape), str(stored.dtype), sample], _CONTENT)
    return digest.hexdigest()


def _unpatched(network: nn.Module, backup: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Weights as they are without the patches of whichever clone was used last."""
    for name, value in chain(network.named_parameters(), network.named_buffers()):
        yield name, backup[name].weight if name in backup else value


def _filled(value: Any) -> bool:
    return any(map(_filled, value.values())) if isinstance(value, dict) else bool(value)


def _plain(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{type(value).__name__} {value!r};"
    raise TypeError(f"a {type(value).__name__} has no content hash")


_CONTENT = nested_hash.HashSpelling(_plain, tensor="{shape} {dtype}", sequence="[{count}")


def kept(value: Any) -> Any:
    """Tensors copied out of inference mode to the CPU, floating ones as fp32, in lists and dicts too."""
    if torch.is_tensor(value):
        with torch.inference_mode(False):
            return value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
    if isinstance(value, (list, tuple)):
        return [kept(item) for item in value]
    return {name: kept(item) for name, item in value.items()} if isinstance(value, dict) else value
