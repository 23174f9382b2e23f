"""Defines what those optimisers share that look at matrices instead of single numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..stacks import Stacks


class OnMatrices(Optimizer):
    """Each group's `params` are the matrices that fill its `flat` buffer, one after the other; `parts` are the buffers,
    and how the matrices lie in them. States are kept for each matrix."""

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]):
        self.parts = [(group.pop("flat"), Stacks([param.shape for param in group["params"]])) for group in groups]
        self._whole: dict[tuple[str, int], tuple[Tensor, Sequence[Tensor]]] = {}
        super().__init__(groups, defaults)

    def kept(
        self, name: str, params: Sequence[Tensor], zeros: Callable[[], Tensor], parts: Callable[[Tensor], Any]
    ) -> Tensor:
        """Return the states of these parameters in one tensor, of which each state is one of the `parts`: those that
        there are, which may have been restored, or else `zeros`."""
        states, key = [self.state[param] for param in params], (name, id(params[0]))
        whole, own = self._whole.get(key, (None, ()))
        if whole is None or any(state.get(name) is not part for state, part in zip(states, own, strict=True)):
            whole = zeros()
            own = parts(whole)
            for state, part in zip(states, own, strict=True):
                if name in state:
                    part.copy_(state[name])
                state[name] = part
            self._whole[key] = whole, own
        return whole

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group, (flat, stacks) in zip(self.param_groups, self.parts, strict=True):
            moved = self._moves(group, flat.view(-1), flat.grad.view(-1), stacks)
            flat.view(-1).mul_(1 - group["lr"] * group["weight_decay"]).add_(stacks.flat(moved))

    def _moves(self, group: dict[str, Any], values: Tensor, grad: Tensor, stacks: Stacks) -> list[Tensor]:
        """Return what is added to the matrices of each shape (matrices, rows, columns), beside the weight decay."""
        raise NotImplementedError
