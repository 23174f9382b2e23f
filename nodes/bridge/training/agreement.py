"""Compares what all ranks must have alike: before anything is encoded and, of the base, before the first step."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy_execution.utils import get_executing_context
from comfyui_version import __version__

from ....lora_core.ranks.group import here
from ....lora_core.runs.setting_changes import changed
from ....lora_core.training.config import Recipe, TrainConfig
from ....lora_core.training.reduced import check
from ....lora_core.training.validation import Pictures
from ....lora_core.version import VERSION
from ..host.ranks import on_every
from ..model.encoding_cache import clip_identity, vae_identity
from .checks import check_connected
from .order import Sources
from .prepare import settings

_CURE = "start all ranks with the same workflow, files and versions"


def check_ranks(sources: Sources, recipe: Recipe) -> None:
    """Raises ValueError, on all ranks, where they would not make the same run, and for fewer pictures in a step than
    there are ranks."""
    group = here()
    if group.size == 1:
        return
    check(group, recipe.train, _option)
    agree(lambda: _known(sources, recipe))


def agree(tell: Callable[[], Mapping[str, Any]]) -> None:
    """Compare what each rank tells, settings as `setting_changes.changed` takes them. Raises ValueError that names who
    differs from the first rank, and in what."""
    found = on_every(lambda: {"host": socket.gethostname(), "told": json.dumps(tell())})
    first, *others = [(rank, each["host"], json.loads(each["told"])) for rank, each in enumerate(found)]
    apart = [said for other in others if (said := _apart(first, other))]
    if apart:
        raise ValueError(f"the ranks would not make the same run: {'; '.join(apart)}. {_CURE.capitalize()}")


def note(config: TrainConfig) -> str:
    """Return how a step is shared; empty where one process does it."""
    size, whole = here().size, config.batch_size * config.accumulation
    if size == 1:
        return ""
    least, rest = divmod(whole, size)
    each = f"{least} or {least + 1}" if rest else f"{least}"
    return f"{size} ranks, {each} {'picture' if each == '1' else 'pictures'} of {whole} each"


def _option(batch_size: int) -> str:
    context = get_executing_context()
    return f" (--set {context.node_id}.batch_size={batch_size})" if context else ""


def _known(sources: Sources, recipe: Recipe) -> dict[str, Any]:
    """All that is known of a run and of what makes it before anything is loaded."""
    check_connected(sources.clip, sources.vae)
    model = sources.model
    vaes = [vae_identity(vae) if vae and not vae.patcher.patches else None for vae in (sources.vae, sources.prior_vae)]
    text = None if sources.clip.patcher.patches else clip_identity(sources.clip)  # patches have other names everywhere
    return {
        **settings(recipe, sources, "", Pictures(sources.dataset, recipe)),
        "LoRA Loom": VERSION, "torch": torch.__version__, "ComfyUI": __version__,
        "device": model.load_device.type, "precision": str(model.model.get_dtype_inference()),
        "CLIP": {"hash": text}, "VAE": {"hash": vaes},
    }  # fmt: skip


def _apart(first: tuple[int, str, Mapping[str, Any]], other: tuple[int, str, Mapping[str, Any]]) -> str:
    """Return what differs, and with whom; empty where nothing does."""
    (_, host, before), (rank, place, now) = first, other
    found = [
        f"another {name}" if value == "another" else f"{name} {value} instead of {was}"
        for name, was, value in changed(before, now)
    ]
    return f"rank {rank} ({place}) differs from rank 0 ({host}): {', '.join(found)}" if found else ""
