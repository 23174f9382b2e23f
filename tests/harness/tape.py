"""A graph of a device, played by the CPU: operators are recorded with the memory that they met, and run on it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Tape:
    """Satisfies `lora_core.training.replayed.Graphs`. Nothing of Python runs again, as on a GPU; what an operator had
    made is NaN from one run to the next. `spoil` may change what was recorded."""

    def __init__(self, spoil: Callable[[list[Call]], list[Call]] = list) -> None:
        self.spoil, self.captured, self.replayed, self.closed = spoil, 0, 0, 0

    def run(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        with Recorder() as recorder:
            work()
        self.captured += 1
        calls = self.spoil(recorder.calls)

        def replay() -> None:
            self.replayed += 1
            with torch.no_grad():
                for call in calls:
                    call.again()
                for call in calls:
                    call.forget()

        return replay

    def close(self) -> None:
        self.closed += 1


class Call(NamedTuple):
    """An operator with the tensors that went into it and that it made; `fresh` lie on memory of their own."""

    operator: Any
    args: tuple
    kwargs: dict[str, Any]
    fresh: list[tuple[int, Tensor]]

    def again(self) -> None:
        made = tree_leaves(self.operator(*self.args, **self.kwargs))
        for place, tensor in self.fresh:
            tensor.copy_(made[place])

    def forget(self) -> None:
        for _, tensor in self.fresh:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))


class Recorder(TorchDispatchMode):
    """Raises RuntimeError for what a GPU's capture refuses: looks from the host, and draws that nobody told it of."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None) -> Any:  # noqa: ANN001
        kwargs = kwargs or {}
        drawn = torch.get_rng_state()
        made = operator(*args, **kwargs)
        if _READS & set(operator.tags) or kwargs.get("generator") or not torch.equal(drawn, torch.get_rng_state()):
            raise RuntimeError(f"{operator} is not permitted when a stream is captured\nas here")
        given = {_place(each) for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        results = list(enumerate(tree_leaves(made)))
        fresh = [(i, each.detach()) for i, each in results if torch.is_tensor(each) and _place(each) not in given]
        empty = operator.overloadpacket.__name__ in _EMPTY
        if not empty and (fresh or operator._schema.is_mutable):
            args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
            self.calls.append(Call(operator, args, kwargs, fresh))
        return made


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def without_last(calls: list[Call]) -> list[Call]:
    """Without the last sum into the gradient."""
    last = max(n for n, call in enumerate(calls) if call.operator.overloadpacket.__name__ in ("add_", "addmm_"))
    return calls[:last] + calls[last + 1 :]


def without_casts(calls: list[Call]) -> list[Call]:
    """Without the cast of the factors, which is right for as long as they do not move."""
    first = next(n for n, call in enumerate(calls) if call.operator.overloadpacket.__name__ == "copy_")
    return calls[:first] + calls[first + 1 :]
