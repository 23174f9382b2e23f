"""Everything that must hold while a ComfyUI model is trained, and must be undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import Any, cast

import comfy.ldm.lightricks.model as lightricks
import comfy.model_management
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from ....lora_core.swap import swapped
from ....lora_core.training.plan import Measures
from ..host.device import loading_in_full
from ..host.wires import Model
from ..model.attention import differentiable_attention
from ..model.frozen import check_backward, ordinary_tensors, static_clone
from ..model.guests import Guests
from ..model.recast import recast_in_backward
from ..model.rope import differentiable_rope
from ..model.spans import again, moment
from .offload import Stream, loaded_around, shared_out, stream_to
from .staging import Copying

_NORMS = ("layer_norm", "rms_norm")
_TEXT = torch.float32  # ComfyUI keeps the activations of text encoders in it


@contextmanager
def norms_on_copies() -> Iterator[None]:
    """Give every norm a copy of its input: FLUX-type blocks go on to change the original in place (`x += ...`), while
    the norm's backward needs it as it was. Costs what an out-of-place sum would."""
    with swapped((functional, name, partial(_on_a_copy, getattr(functional, name))) for name in _NORMS):
        yield


def _on_a_copy(norm: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return norm(x.clone() if x.requires_grad else x, *args, **kwargs)


@contextmanager
def queries_on_copies() -> Iterator[None]:
    """Give cross-attention of LTX-Video a copy of its input, which the block goes on to change in place, while the
    backward of the trained layers needs it as it was."""
    with swapped([(lightricks.CrossAttention, "forward", _queried(lightricks.CrossAttention.forward))]):
        yield


def _queried(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def outside(module: nn.Module, x: Tensor, context: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        kept = context is not None and torch.is_grad_enabled()
        return forward(module, x.clone() if kept else x, context, *args, **kwargs)

    return outside


@contextmanager
def aside(text: Model | None) -> Iterator[Model | None]:
    """Yield a ModelPatcher to train for that of a CLIP, not loaded yet; None stays None."""
    with static_clone(text) if text is not None else nullcontext() as encoders:
        yield encoders


@contextmanager
def trainable(model: Model) -> Iterator[Model]:
    """Yield a ModelPatcher of its own for this MODEL, not loaded yet; what it computes has a backward.

    Inference mode is off inside. Attention kernels without a backward are replaced, rotary ones are given one. A MODEL
    under dynamic VRAM gives its weights to a static one for the time.
    """
    with torch.inference_mode(False), torch.enable_grad(), static_clone(model) as patcher:
        _compute_in_range(patcher)
        in_training = swapped([(comfy.model_management, "in_training", True)])
        with in_training, differentiable_rope(), differentiable_attention(), norms_on_copies(), queries_on_copies():
            yield patcher


@contextmanager
def loaded(patcher: Model, measures: Measures, needed: float = 0, text: Model | None = None) -> Iterator[str]:
    """The model on its device, with `needed` bytes free beside its weights, and its measures taken; yields the way in
    which offloaded weights are copied there, which is empty where none are.

    Weights that were created under inference mode are seen through ordinary tensors on the same storage, not as a copy.
    `text`, from `aside`, is loaded beside the model, on its device; its blocks are recomputed like the model's and
    never offloaded. Raises ValueError for a layer without a backward.
    """
    network, encoders = patcher.model.diffusion_model, [text] if text is not None else []
    streamed, way = shared_out(blocks(network), measures.offload), Copying("")
    with ExitStack() as undo:
        for each in encoders:
            each.load_device = patcher.load_device
        if streamed:
            way = undo.enter_context(loaded_around(patcher, streamed, needed))
        together = encoders if streamed else [patcher, *encoders]
        if together:
            with loading_in_full():
                room = cast(int, needed)  # to ComfyUI any number will do
                comfy.model_management.load_models_gpu(together, memory_required=room, force_full_load=True)
        patcher.pre_run()
        undo.callback(patcher.cleanup)
        for each in (patcher, *encoders):
            undo.enter_context(ordinary_tensors(each.model))
        check_backward(network, patcher.model.get_dtype_inference())
        for each in encoders:
            check_backward(each.model, _TEXT)
        stream = stream_to(patcher.load_device, staging=way.staging)
        undo.callback(stream.close)
        with prepared(patcher, measures, stream, text):
            yield way.way


@contextmanager
def prepared(patcher: Model, measures: Measures, stream: Stream, text: Model | None = None) -> Iterator[None]:
    """The networks as they are trained, wherever their weights lie; `stream` brings those of offloaded blocks.

    Weights that are not of the compute type are cast whenever they are needed, or once where the measures say so.
    """
    network = patcher.model.diffusion_model
    streamed = shared_out(blocks(network), measures.offload)
    again, drawing = blocks(network) if measures.checkpointing else streamed, bool(Guests(patcher).calls())
    held = {module for block in again if block not in streamed for module in block.modules()}
    with ExitStack() as undo:
        kept = (measures.keep_casts, held if measures.hold_casts else ())
        undo.enter_context(recast_in_backward(network, patcher.model.get_dtype_inference(), *kept))
        undo.enter_context(_recomputed(again, streamed, stream, drawing))
        if text is not None:
            undo.enter_context(recast_in_backward(text.model, _TEXT))
            undo.enter_context(_recomputed(blocks(text.model) if measures.checkpointing else ()))
        yield


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the outermost repeated blocks of a network: items of its module lists, looked up through plain
    containers."""
    found: list[nn.Module] = []

    def visit(module: nn.Module, listed: bool) -> None:
        for child in module.children():
            container = isinstance(child, (nn.ModuleList, nn.Sequential))
            if listed and not container:
                found.append(child)
            else:
                visit(child, listed or isinstance(child, nn.ModuleList))

    visit(network, False)
    return [block for block in found if any(True for _ in block.parameters())]


def _compute_in_range(patcher: Model) -> None:
    """Compute in a type with enough range for gradients what would be computed in fp16."""
    if (patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()) == torch.float16:
        bf16 = comfy.model_management.should_use_bf16(patcher.load_device)
        patcher.set_model_compute_dtype(torch.bfloat16 if bf16 else torch.float32)


@contextmanager
def _recomputed(
    modules: Sequence[nn.Module],
    streamed: Sequence[nn.Module] = (),
    stream: Stream | None = None,
    drawing: bool = False,
) -> Iterator[None]:
    """Non-reentrant checkpointing of each module; `stream` brings the weights of those in `streamed`. `drawing`: other
    nodes act inside, who may draw random numbers; those are drawn again."""
    wrapped = []
    try:
        for module in modules:
            around = partial(stream.on_device, module) if stream is not None and module in streamed else nullcontext
            module.forward = _checkpointed(module.forward, around, drawing or _drops(module))
            wrapped.append(module)
        yield
    finally:
        for module in wrapped:
            del module.forward
        if stream is not None:
            stream.put_back()


def _drops(module: nn.Module) -> bool:
    """Whether it leaves out activations at random. Nothing else that networks do in a block is random."""
    return any(isinstance(each, _DropoutNd) and each.training and each.p > 0 for each in module.modules())


def _checkpointed(forward: Callable, around: Callable[..., AbstractContextManager], random: bool) -> Callable:
    """`random`: numbers are drawn inside, so that the states of all generators are kept with each call."""

    def outside(*args: Any, **kwargs: Any) -> Any:
        runs, puts, failed = count(), moment(), []

        def inside(*args: Any, **kwargs: Any) -> Any:
            given, named = map(_own, args), {name: _own(value) for name, value in kwargs.items()}
            if next(runs):  # again in the backward pass
                with again(puts), around(True):
                    return forward(*given, **named)
            try:
                with around(False):
                    return forward(*given, **named)
            except BaseException as error:  # not through torch's frame, which would keep its hooks while it is held
                failed.append(error)

        output = checkpoint(inside, *args, use_reentrant=False, preserve_rng_state=random, **kwargs)
        if failed:
            raise failed.pop()
        return output

    return outside


def _own(value: Any) -> Any:
    """A copy of a floating tensor, or of those in a tuple: the block may change it in place, and is run again on the
    original."""
    if type(value) is tuple:
        return tuple(map(_own, value))
    return value.clone() if torch.is_tensor(value) and value.is_floating_point() else value
