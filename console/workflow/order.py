"""The order in which the browser lists nodes: those that need nothing first, then each when what it needs is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .laid import Laid


def execution(nodes: Sequence[Laid]) -> list[Laid]:
    by_id = {laid.node.id: laid for laid in nodes}
    needs = {name: sum(slot.link is not None for slot in laid.inputs) for name, laid in by_id.items()}
    target = {slot.link: laid.node.id for laid in nodes for slot, _ in laid.sources()}
    ready = deque(laid for laid in nodes if not needs[laid.node.id])
    done: dict[str, Laid] = {}
    while ready:
        laid = ready.popleft()
        done[laid.node.id] = laid
        for link in (link for links in laid.node.leading for link in links):
            name = target.pop(link, None)
            if name is not None:
                needs[name] -= 1
                if not needs[name]:
                    ready.append(by_id[name])
    return [*done.values(), *(laid for name, laid in by_id.items() if name not in done)]
