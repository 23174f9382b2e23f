"""A step of training, tried on tensors without memory before anything is encoded: can patches be trained through?"""

from __future__ import annotations

from dataclasses import replace

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
)

from ....lora_core.training.plan import Measures
from ..host.wires import Clip, Model
from ..model.encoding import encode_captions
from ..model.guests import Guests
from ..model.names import family_of
from ..model.sampling import Sampling, empty_latent
from ..model.text_encoders import tokenized
from ..session.rehearsal import Job, traced, tried
from ..session.session import aside, trainable
from .order import Order

_NEED_MEMORY = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


def check_guests(order: Order) -> None:
    """Raises ValueError that names the patch or wrapper of the MODEL with which no step can be done.

    Nothing is tried for a MODEL without any, and nothing is said of one that needs values to run, or of a model that
    cannot be tried without them either. One empty caption is encoded for it.
    """
    guests = Guests(order.sources.model)
    if not guests.names() or order.sources.prior_vae is not None:
        return
    job, text = _job(order), order.text
    with trainable(order.sources.model) as patcher, aside(text.patcher if text else None):
        error = _error(patcher, job, text)
        if error is None or _needs_memory(error) or _error(_bare(patcher), job, text) is not None:
            return
    found = guests.blamed(error)
    whose = found or " or ".join(guests.names())
    raise ValueError(
        f"the connected MODEL cannot be trained with {whose}, which another node added: "
        f"{type(error).__name__}: {error}. Connect the MODEL without that node for training, and use the node "
        "only for sampling"
    ) from error


def _job(order: Order) -> Job:
    sources, recipe = order.sources, order.recipe
    width, height = max(sources.dataset.buckets(), key=lambda size: size[0] * size[1])
    if recipe.text:
        encoded = tokenized(sources.clip, [""])
    else:
        encoded = encode_captions(sources.clip, [""], family_of(sources.model).guidance, lambda *_: None)
    latent = tuple(empty_latent(sources.model, Sampling(width, height)).shape[1:])
    config = replace(recipe.train, batch_size=1, preservation=0.0)
    rank = recipe.text.rank if recipe.text else 0
    resolution = sources.dataset.resolution
    return Job(recipe.lora, config, latent, encoded[""], resolution, text_rank=rank, start=sources.start)


def _bare(patcher: Model) -> Model:
    """A clone without what acts in a forward."""
    bare = patcher.clone()
    bare.model_options, bare.wrappers = {"transformer_options": {}}, {}
    return bare


def _error(patcher: Model, job: Job, clip: Clip | None) -> Exception | None:
    """Return what a step ends with."""
    found = tried(traced, patcher, job, Measures(), clip)
    return found if isinstance(found, Exception) else None


def _needs_memory(error: Exception) -> bool:
    """Whether it tells of tensors without memory, and nothing of training."""
    told = f"{error}"
    return isinstance(error, _NEED_MEMORY) or "FakeTensor" in told or "tensor subclass" in told
