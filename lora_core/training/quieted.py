"""Factors that are trained in quiet directions: passes use A = A~ P, and the optimiser has A~ (see `lora_core.quiet`).

Two flat buffers of one layout share one gradient. `flat` holds A~ and B, for the optimiser, the state and averages;
`shown` holds A and B, for passes, files and norms, and is made anew when `flat` has changed. Backward passes leave the
gradient of A, which `carry_back` turns into that of A~, `grad_A P`, once a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..quiet.directions import Quieting
from ..quiet.sizes import AT_ONCE, is_narrow, numbers
from .pairs import grad_of, leaf_of


@dataclass(frozen=True)
class _Member:
    """All layers with one P: their A~, their A, the gradients of both, and the ranks of each."""

    quieting: Quieting
    trained: Sequence[Tensor]
    shown: Sequence[Tensor]

    @property
    def kind(self) -> tuple:
        """Equal for those that can be worked out side by side."""
        own = self.quieting
        return own.width, 0 if own.is_dense else len(own.gains), sum(map(len, self.trained))


class _Group:
    """Some inputs whose P are of one size, side by side: `matrices` (n, d, d), or `vectors` (n, k, d) with their
    `gains` (n, 1, k) and `scales` (n, 1, 1)."""

    def __init__(self, members: Sequence[_Member], device: torch.device, narrow: bool):
        own = [member.quieting for member in members]
        self.trained = [each for member in members for each in member.trained]
        self.shown = [each for member in members for each in member.shown]
        self.count, self.width, self.ranks = len(own), own[0].width, [len(each) for each in self.trained]
        self.dense = own[0].is_dense
        if self.dense:
            self.matrices = torch.stack([each.dense() for each in own]).to(device)
            return
        kept = torch.float16 if narrow else torch.float32
        self.matrices = torch.stack([each.vectors for each in own]).to(device, kept)
        self.gains = torch.stack([each.gains for each in own]).to(device)[:, None]
        self.scales = torch.tensor([each.scale for each in own], device=device)[:, None, None]

    def carry(self, rows: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Write `rows P` of each layer into its place, which may be where the rows are."""
        side = torch.cat(list(rows)).view(self.count, -1, self.width)
        matrices = self.matrices.float()
        if self.dense:
            found = side @ matrices
        else:
            hidden = (side @ matrices.mT).mul_(self.gains)
            found = torch.baddbmm(side.mul_(self.scales), hidden, matrices)
        pieces = found.view(-1, self.width).split(self.ranks)
        torch._foreach_copy_(list(into), pieces)  # pyright: ignore[reportPrivateImportUsage]  # no other name


class Quieted:
    """`matrices` fill the flat buffer one after the other, by layer and 0 for its A~; `leaves` are the same of what
    passes use. Raises ValueError for a P that is not as wide as its layer."""

    def __init__(
        self, flat: Tensor, matrices: Mapping[tuple[str, int], Tensor], quiet: Mapping[str, Quieting]
    ):  # fmt: skip
        self.flat, self.shown, self.version = flat, torch.empty_like(flat), -1
        self.quiet = {name: quiet[name] for name, number in matrices if number == 0 and name in quiet}
        self.shown.grad, at = grad_of(flat), 0
        self.leaves: dict[tuple[str, int], Tensor] = {}
        for key, matrix in matrices.items():
            self.leaves[key] = leaf_of(self.shown, grad_of(flat), at, (matrix.shape[0], matrix.shape[1]))
            at += matrix.numel()
        for name, own in self.quiet.items():
            if own.width != (columns := matrices[name, 0].shape[1]):
                raise ValueError(f"the quiet directions of {name} are for {own.width} inputs, and it has {columns}")
        trained, shown = ({name: each[name, 0] for name in self.quiet} for each in (matrices, self.leaves))
        groups = _side_by_side(self.quiet, trained, shown)
        self.groups = [_Group(members, flat.device, narrow) for members, narrow in groups]

    def trained(self, name: str, lora_A: Tensor) -> Tensor:
        """Return the A~ of a layer from which its A comes to be this."""
        return self.quiet[name].inverse(lora_A.to(self.flat)) if name in self.quiet else lora_A

    def refresh(self) -> None:
        """Bring what passes use up to date."""
        if self.version == self.flat._version:
            return
        with torch.inference_mode(False), torch.no_grad():
            self.shown.copy_(self.flat)
            for group in self.groups:
                group.carry(group.trained, group.shown)
        self.version = self.flat._version

    @torch.no_grad()
    def carry_back(self) -> None:
        """Turn the gradient of A, which all backward passes of a step have left, into that of A~."""
        for group in self.groups:
            grads = [grad_of(each) for each in group.shown]
            group.carry(grads, grads)


def _side_by_side(
    quiet: Mapping[str, Quieting], trained: Mapping[str, Tensor], shown: Mapping[str, Tensor]
) -> list[tuple[list[_Member], bool]]:
    """The groups, none larger than can be worked with at once, and whether they are kept in fp16."""
    sharing: dict[int, list[str]] = {}
    for name in quiet:
        sharing.setdefault(id(quiet[name]), []).append(name)
    members = [
        _Member(quiet[names[0]], [trained[name] for name in names], [shown[name] for name in names])
        for names in sharing.values()
    ]
    sizes = [(member.quieting.width, len(member.quieting.gains)) for member in members]
    narrow, groups = is_narrow(sizes), list[tuple[list[_Member], bool]]()
    kinds: dict[tuple, list[_Member]] = {}
    for member in members:
        kinds.setdefault(member.kind, []).append(member)
    for own in kinds.values():
        most = max(1, AT_ONCE // (4 * numbers(own[0].quieting.width, len(own[0].quieting.gains))))
        groups += [(own[at : at + most], narrow) for at in range(0, len(own), most)]
    return groups
