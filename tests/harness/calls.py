"""Calls into the ComfyUI of this process, made as its executor and its samplers make them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import execution
import torch
from lora_loom.nodes import comfy_entrypoint
from torch import Tensor, nn

import nodes
from harness.inprocess import PRETEND

Graph = dict[str, dict[str, Any]]


def pack_nodes() -> list[type]:
    """Return the pack's node classes, from the entry point that ComfyUI calls."""

    async def listed() -> list[type]:
        return await (await comfy_entrypoint()).get_node_list()

    return asyncio.run(listed())


def register_pack() -> None:
    """Makes the pack's nodes known to this ComfyUI."""
    nodes.NODE_CLASS_MAPPINGS.update({node.GET_SCHEMA().node_id: node for node in pack_nodes()})


def refusals(graph: Graph) -> str:
    """Return what ComfyUI answers when the graph is queued: every reason, one per line; empty when it would run."""
    valid, error, _, by_node = asyncio.run(execution.validate_prompt("test", graph, None))
    reasons = [reason for node in by_node.values() for reason in node["errors"]]
    text = "\n".join(f"{reason['message']}: {reason['details']}" for reason in reasons or ([error] if error else []))
    assert valid or text  # what can run without the refused node does
    return text


def run_node(node: type, **inputs: Any) -> tuple[Any, ...]:
    """The outputs of a V3 node, run under inference mode on a locked class as the executor runs it."""
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).result or ()


@torch.inference_mode()
def encode(clip: Any, text: str, **extra: Any) -> list:
    """CONDITIONING of a text; `extra` such as `guidance` goes into its options."""
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return [[tensor, {**options, **extra}] for tensor, options in encoded]


@torch.inference_mode()
def sampled(model: Any, conditioning: list, latent: Tensor, steps: int = 2, seed: int = 5) -> Tensor:
    """The latents a KSampler makes from pure noise."""
    (out,) = nodes.common_ksampler(
        model, seed, steps, 1.0, "euler", "simple", conditioning, conditioning, {"samples": latent}
    )
    return out["samples"]


def loaded(model: Any) -> Mapping[str, Tensor]:
    """Return the weights of a MODEL or CLIP with its patches applied, as sampling sees them; copies in RAM."""
    patcher = getattr(model, "patcher", model)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        return {name: value.to("cpu", copy=True) for name, value in patcher.model.state_dict().items()}


def identities(network: nn.Module) -> list[int]:
    """By which its parameters are known as the same ones later; none on the pretend device, where PyTorch makes a new
    parameter to move one (it moves those of CUDA in place)."""
    return [] if PRETEND else [id(parameter) for parameter in network.parameters()]


def relative_error(value: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted, in fp64."""
    value, wanted = value.cpu().double(), wanted.cpu().double()
    return float((value - wanted).norm() / wanted.norm())
