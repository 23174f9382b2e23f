"""The prior of Kandinsky 2.2 has the weights of diffusers' network, and gives what that gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import PriorTransformer
from harness.calls import relative_error
from harness.parity import STORED, at_real_size, made, shapes_of, stored_as, theirs
from lora_loom.nodes.bridge.networks.kandinsky_prior import KandinskyPrior, config
from tiny.kandinsky import EMBED, PRIOR, prior_weights
from torch import Tensor

REAL = {"width": 2048, "depth": 20, "embed": 1280, "words": 77}


def in_diffusers(width: int, depth: int, embed: int, words: int) -> dict[str, Any]:
    heads = {"num_attention_heads": width // 64, "attention_head_dim": 64}
    return {**heads, "num_layers": depth, "embedding_dim": embed, "num_embeddings": words, "additional_embeddings": 4}


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two texts, the second of which is padded."""
    generator = torch.Generator().manual_seed(2)
    drawn = {"x": (2, EMBED, 1, 1), "context": (2, 77, EMBED), "y": (2, EMBED)}
    given = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in drawn.items()}
    mask = torch.ones(2, 77)
    mask[1, 5:] = 0
    return {**given, "timesteps": torch.tensor([3.0, 700.0]), "attention_mask": mask.to(dtype)}


def judged(prior: Any, x: Tensor, context: Tensor, y: Tensor, timesteps: Tensor, attention_mask: Tensor) -> Tensor:
    return prior(x.flatten(1), timesteps, y, context, attention_mask.bool()).predicted_image_embedding[..., None, None]


def test_real_size() -> None:
    right = at_real_size(PriorTransformer, **in_diffusers(**REAL))
    assert shapes_of(made(KandinskyPrior, REAL)) == right and len(right) == 338
    assert shapes_of(made(KandinskyPrior, {})) == right, "the sizes of the published file are the defaults"
    assert config(right) == REAL


def test_output_is_that_of_diffusers() -> None:
    weights, given = prior_weights(), inputs()
    right = judged(theirs(PriorTransformer, weights, **in_diffusers(**PRIOR)), **given)
    ours = made(KandinskyPrior, PRIOR, weights)
    assert relative_error(ours(**given), right) < 1e-6
    other = ours(**{**given, "attention_mask": torch.ones(2, 77)})
    assert relative_error(other, right) > 1e-3, "padding is seen"
    assert torch.equal(ours(**{**given, "attention_mask": None}), other), "without a mask no word is padded"


def test_sizes_are_read_off_the_shapes() -> None:
    shapes = shapes_of(made(KandinskyPrior, PRIOR))
    assert config(shapes) == PRIOR
    assert config({name: shape for name, shape in shapes.items() if name != "prd_embedding"}) is None
    assert config(shapes_of(made(KandinskyPrior, {**PRIOR, "embed": 768}))) is None, "Kandinsky 2.1"


@pytest.mark.parametrize("dtype", STORED.values(), ids=STORED)
def test_weights_are_cast_where_they_are_used(dtype: torch.dtype) -> None:
    stored, right = stored_as(KandinskyPrior, PRIOR, prior_weights(), dtype)
    given = inputs()
    assert torch.equal(stored(**given), right(**given))
    half = {name: value if name == "timesteps" else value.bfloat16() for name, value in given.items()}
    out = stored(**half)
    assert out.dtype == torch.bfloat16 and relative_error(out.float(), right(**given)) < 0.03


def test_gradients() -> None:
    prior = made(KandinskyPrior, {**PRIOR, "width": 64, "depth": 1}, prior_weights({**PRIOR, "width": 64, "depth": 1}))
    prior, given = prior.double(), inputs(torch.float64)
    layer = prior.transformer_blocks[0].attn1.to_k.weight

    def moved(step: Tensor) -> Tensor:
        return torch.func.functional_call(
            prior, {"transformer_blocks.0.attn1.to_k.weight": layer + step}, kwargs=given, args=()
        )

    step = torch.zeros_like(layer, requires_grad=True)
    assert torch.autograd.gradcheck(moved, step, fast_mode=True)


def test_a_latent_of_several_pixels_is_refused() -> None:
    prior = made(KandinskyPrior, PRIOR, prior_weights())
    with pytest.raises(ValueError, match="a latent of 1 x 1, but was given one of 8 x 4"):
        prior(**{**inputs(), "x": torch.zeros(2, EMBED, 4, 8)})
