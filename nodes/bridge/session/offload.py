"""Blocks whose weights stay in RAM: copied to the device for each run of the block, and dropped after it.

Only for blocks that are recomputed. In the forward pass a checkpointed block keeps nothing, so its copies die with it;
in the backward pass recomputing brings them back, and autograd holds them just until the block's gradients are done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management
import torch
from torch import Tensor, nn

from ....lora_core.swap import swapped
from ..host.device import release
from ..host.wires import Model
from .staging import Copying, Staging, StagingSide, copying, room_for, side_of

Slot = tuple[dict, str]  # a module's own parameters or buffers, and a name among them


def own_slots(module: nn.Module) -> Iterator[Slot]:
    """Return where a module's own parameters and buffers are kept."""
    for own in (module._parameters, module._buffers):
        yield from ((own, name) for name, tensor in own.items() if tensor is not None)


def slots(module: nn.Module) -> list[Slot]:
    """Return the same of a module and of all inside it."""
    return [slot for inner in module.modules() for slot in own_slots(inner)]


def shared_out(modules: Sequence[nn.Module], share: float) -> list[nn.Module]:
    """That share of the modules, rounded up, spread evenly so that copying one can overlap with running another."""
    count = len(modules)
    wanted = min(count, -int(-share * count // 1))
    return [module for i, module in enumerate(modules) if (i + 1) * wanted // count > i * wanted // count]


@contextmanager
def loaded_around(patcher: Model, streamed: Sequence[nn.Module], needed: float) -> Iterator[Copying]:
    """The model of a ModelPatcher, patched, its weights seen through copies on the device but for `streamed` modules.

    ComfyUI would load all of it first, or cast layer by layer into buffers that autograd must not see. `needed` bytes
    beside the weights are made free on the device before. On leaving, all is unpatched and as it was. Yields how the
    weights of `streamed` will reach the device.
    """
    device, ram = patcher.load_device, torch.device("cpu")
    apart = {inner for module in streamed for inner in module.modules()}
    resident = [slot for module in patcher.model.modules() if module not in apart for slot in own_slots(module)]
    needed += sum(own[name].nbytes for own, name in resident)
    release(patcher)
    comfy.model_management.free_memory(needed + comfy.model_management.extra_reserved_memory(), device)
    try:
        _patch_one_by_one(patcher, device, ram)
        patcher.patch_model(ram)
        weights = dict(_weights_of(patcher.model, apart))
        with copying(patcher, weights, largest(streamed)) as way, seen_through(resident, device):
            patcher.model.device = device
            yield way
    finally:
        patcher.detach()


@contextmanager
def seen_through(places: Sequence[Slot], device: torch.device) -> Iterator[None]:
    """Inside, those of other devices are copies on this one."""
    with swapped((own, name, copied(own[name], device)) for own, name in places if own[name].device != device):
        yield


def copied(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
    """Return a copy on the device, a frozen parameter where the tensor is one."""
    copy = tensor.detach().to(device, non_blocking=non_blocking, copy=True)
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


def _patch_one_by_one(patcher: Model, device: torch.device, ram: torch.device) -> None:
    """Apply the MODEL's patches on the device, as loading it there would, to the same bits; keep the results in RAM."""
    for key in patcher.patches:
        owner = patcher.model.get_submodule(key.rpartition(".")[0])
        patcher.patch_weight_to_device(key, device_to=device)
        owner.to(ram)
    for key in patcher.patches:
        patcher.model.get_submodule(key.rpartition(".")[0]).comfy_patched_weights = True  # loading passes these over


def _weights_of(network: nn.Module, modules: set[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """By the keys that a ModelPatcher has for them."""
    for path, module in network.named_modules():
        if module in modules:
            yield from ((f"{path}.{name}", weight) for name, weight in module.named_parameters(recurse=False))


def largest(modules: Sequence[nn.Module]) -> int:
    """Return bytes of a buffer that takes the weights of any of them."""
    return max((room_for(own[name] for own, name in slots(module)) for module in modules), default=0)


class Stream:
    """Runs blocks on device copies of their weights; at most the copies of the running and of the next block exist.

    `ahead`: the next block, the one that followed the last time, is copied while the running one computes. On CUDA all
    copies are made on a stream beside that first waits for the work queued so far, and that later work waits for: no
    memory is used again too early, whichever stream freed it. With `staging` they are queued from its thread.
    """

    def __init__(
        self, device: torch.device, ahead: bool = False, side: StagingSide | None = None, staging: Staging | None = None
    ):
        self.device, self.ahead, self.side, self.staging = device, ahead, side, staging
        self.follower: dict[tuple[nn.Module, bool], nn.Module] = {}
        self.last: tuple[nn.Module, bool] | None = None
        self.coming: tuple[nn.Module, list[Tensor]] | None = None
        self.swapped: list[tuple[dict, str, Tensor]] = []

    @contextmanager
    def on_device(self, block: nn.Module, again: bool) -> Iterator[None]:
        """Inside, the block's weights are copies on the device. When it is recomputed (`again`), in the backward pass,
        they stay in their places until another block runs: some layers look at them once more for their gradients."""
        self.put_back()
        copies, places = self._take(block), slots(block)
        self.swapped = [(own, name, own[name]) for own, name in places]
        try:
            for own, name in reversed(places):
                own[name] = copies.pop()
            if self.ahead:
                self._foresee(block, again)
            yield
        finally:
            if not again:
                self.put_back()

    def put_back(self) -> None:
        """The originals of whichever block runs on copies."""
        for own, name, original in self.swapped:
            own[name] = original
        self.swapped = []

    def close(self) -> None:
        """Put the originals back and wait for what is still copied: they may be unpinned or changed afterwards."""
        self.put_back()
        self.coming = None
        if self.staging is not None:
            self.staging.close()
        elif self.side is not None:
            self.side.stream.synchronize()

    def _take(self, block: nn.Module) -> list[Tensor]:
        coming, self.coming = self.coming, None
        copies = coming[1] if coming is not None and coming[0] is block else self._fetch(block)
        if self.staging is not None:
            self.staging.queued()
        if self.side is not None:
            self.side.let_computing_wait()
        return copies

    def _foresee(self, block: nn.Module, again: bool) -> None:
        if self.last is not None:
            self.follower[self.last] = block
        self.last = (block, again)
        following = self.follower.get(self.last, block)
        if following is not block:
            self.coming = (following, self._fetch(following))

    def _fetch(self, block: nn.Module) -> list[Tensor]:
        originals = [own[name] for own, name in slots(block)]
        if self.side is None:
            return [copied(original, self.device) for original in originals]
        self.side.wait_for_computing()
        with self.side.entered():
            if self.staging is not None:
                return self.staging.copies(originals)
            return [copied(original, self.device, non_blocking=True) for original in originals]


def stream_to(device: torch.device, staging: Staging | None = None) -> Stream:
    """Return a Stream as suits the device."""
    side = side_of(device) if staging is None else staging.side
    return Stream(device, side is not None, side, staging)
