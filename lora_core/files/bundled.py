"""Embeddings for prompts that a LoRA file holds beside its layers, as OneTrainer and LyCORIS bundle them:
`bundle_emb.<name>.<part>`, where name and part are those of a file of the embedding alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from .faults import quote
from .names import safe_name

Embedding = Mapping[str, Tensor]  # by its parts: text encoders such as clip_l and clip_g, or `string_to_param.*`
_BEGIN = "bundle_emb."
_KEY = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\.\*|[^.]+)")
_LONGEST = 256  # rows; a prompt has room for 75


def taken(
    tensors: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[dict[str, Embedding], tuple[str, ...]]:  # fmt: skip
    """Return the embeddings among the tensors of these names, and the names of those that are in none: what is named so
    and is no embedding, too."""
    found: dict[str, dict[str, Tensor]] = {}
    others = []
    for name in names:
        place = _KEY.fullmatch(name)
        if place and _is_sound(place[1], tensors[name]):
            found.setdefault(place[1], {})[place[2]] = tensors[name]
        else:
            others.append(name)
    return dict(found), tuple(others)


def tensors(embeddings: Mapping[str, Embedding]) -> dict[str, Tensor]:
    """Return them under their keys in a LoRA file, as they are."""
    return {
        f"{_BEGIN}{name}.{part}": value for name, parts in embeddings.items() for part, value in written(parts).items()
    }


def without(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file that are of no embedding."""
    return {name: tensor for name, tensor in held.items() if not name.startswith(_BEGIN)}


def written(embedding: Embedding) -> dict[str, Tensor]:
    """Return the tensors of a file of the embedding alone."""
    return {part: value.detach().to("cpu", copy=True).contiguous() for part, value in embedding.items()}


def joined(*held: Mapping[str, Embedding]) -> dict[str, Embedding]:
    """Return all of them together. Raises ValueError for two that are called the same and are not."""
    found: dict[str, Embedding] = {}
    for embeddings in held:
        for name, parts in embeddings.items():
            if name in found and not _same(found[name], parts):
                raise ValueError(f"two different embeddings are called {quote(name)}; leave one of them out")
            found[name] = parts
    return found


def kept_line(embeddings: Mapping[str, Embedding]) -> str:
    """`with the embeddings ink, sks for prompts`."""
    return f"with the embedding{'s' if len(embeddings) > 1 else ''} {', '.join(embeddings)} for prompts"


def _is_sound(name: str, tensor: Tensor) -> bool:
    try:
        plain = "/" not in safe_name(name)
    except ValueError:
        return False
    rows = tensor.flatten(0, -2).shape[0] if tensor.ndim > 1 else 1
    kind = tensor.is_floating_point() and tensor.dtype.itemsize > 1 and tensor.ndim in (1, 2)
    return plain and kind and 0 < rows <= _LONGEST and tensor.numel() > 0 and bool(tensor.isfinite().all())


def _same(first: Embedding, second: Embedding) -> bool:
    return first.keys() == second.keys() and all(first[part].equal(second[part]) for part in first)
