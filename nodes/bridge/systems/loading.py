"""Reads the stages of Kandinsky 2.2 and Wuerstchen v2 from files, as ComfyUI's Load Diffusion Model reads others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy import model_detection
from comfy.supported_models_base import BASE
from torch import Tensor

from ..host.wires import Model
from .files import refused
from .stages import configured, shapes_of

WEIGHT_TYPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {  # the choices of Load Diffusion Model
        "default": {},
        "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
        "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
        "fp8_e5m2": {"dtype": torch.float8_e5m2},
    }
)
Weights = Mapping[str, Tensor]
_WANTED = "a prior or decoder of Kandinsky 2.2 or Wuerstchen v2"


def file_names(folder: str) -> list[str]:
    """Return what ComfyUI lists in a folder of models, subfolders and all."""
    return folder_paths.get_filename_list(folder)


def load_model(name: str, weight_type: str = "default") -> Model:
    """Load a prior or decoder of that name in diffusion_models. Raises ValueError for any other file, saying what it
    is."""
    return _model(folder_paths.get_full_path_or_raise("diffusion_models", name), dict(WEIGHT_TYPES[weight_type]))


def weights_in(path: str) -> dict[str, Tensor]:
    """Return all weights of a file, by its own names."""
    loaded: Any = comfy.utils.load_torch_file(path, safe_load=True)
    return dict(loaded)


def _network_in(path: str) -> dict[str, Tensor]:
    """Return the weights of a file, without the prefix that ComfyUI's nodes save a model with, scales of fp8 as its
    layers take them."""
    loaded: Any = comfy.utils.load_torch_file(path, return_metadata=True)
    weights, metadata = loaded
    prefix = model_detection.unet_prefix_from_state_dict(weights)
    weights = comfy.utils.state_dict_prefix_replace(dict(weights), {prefix: ""}, filter_keys=True) or weights
    return comfy.utils.convert_old_quants(weights, "", metadata=metadata)[0]


def _model(path: str, options: Mapping[str, Any], disable_dynamic: bool = False) -> Model:
    weights = _network_in(path)
    if (found := configured(shapes_of(weights))) is None:
        raise refused(path, weights, _WANTED)
    stage, config = found
    config.quant_config = comfy.utils.detect_layer_quantization(weights, "")
    device, store = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    _choose_types(config, weights, options, device)
    model = config.get_model(weights, "")
    _check_whole(path, stage.name, model.diffusion_model, weights)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=store)
    if not comfy.model_management.is_device_cpu(store):
        model.to(store)
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    if reach := stage.reach:
        patcher.set_model_sampler_post_cfg_function(lambda args: args["denoised"].clamp(-reach, reach))
    patcher.cached_patcher_init = (_model, (path, options))
    return patcher


def _choose_types(config: BASE, weights: Weights, options: Mapping[str, Any], device: torch.device) -> None:
    """Set the type of the weights, and the one they are cast to, as comfy.sd.load_diffusion_model_state_dict does."""
    management, supported = comfy.model_management, list(config.supported_inference_dtypes)
    stored = None if config.quant_config else comfy.utils.weight_dtype(weights)
    dtype = options.get("dtype") or management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights), supported_dtypes=supported, weight_dtype=stored
    )
    cast = management.unet_manual_cast(None if config.quant_config else dtype, device, supported)
    config.set_inference_dtype(dtype, cast, device=device)
    if options.get("fp8_optimizations"):
        config.optimizations["fp8"] = True


def _check_whole(path: str, name: str, network: torch.nn.Module, weights: Weights) -> None:
    missing = sorted(set(network.state_dict()) - set(weights))
    if missing:
        raise ValueError(
            f"{PurePath(path).name} looks like {name}, but {len(missing)} of its weights are missing, such as "
            f"{missing[0]}; download it again"
        )
