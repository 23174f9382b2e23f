"""What passes between the stages of Kandinsky 2.2 fits, and what does not fit is refused by name."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from harness.calls import encode, run_node, sampled
from harness.kandinsky import System
from lora_loom.nodes.bridge.systems.kandinsky import IMAGE_EMBEDDING
from lora_loom.nodes.empty_two_stage_latent import EmptyTwoStageLatent
from lora_loom.nodes.prior_to_conditioning import PriorToConditioning
from tiny import kandinsky

WIDTH = kandinsky.EMBED


def embedded(width: int = WIDTH, count: int = 1) -> dict[str, Any]:
    return {"samples": torch.randn(count, width, 1, 1, generator=torch.Generator().manual_seed(0))}


def refused(system: System, which: str, conditioning: list, latent: torch.Tensor) -> str:
    with pytest.raises(ValueError) as caught:
        sampled(getattr(system, which), conditioning, latent, steps=1)
    return str(caught.value)


def test_empty_latents_fit_both_stages(system: System) -> None:
    for model in (system.prior, system.decoder):
        prior, decoder = run_node(EmptyTwoStageLatent, model=model, width=128, height=64, batch_size=3)
        assert prior["samples"].shape == (3, WIDTH, 1, 1) and decoder["samples"].shape == (3, 4, 8, 16)


def test_a_size_that_the_decoder_cannot_draw_is_refused(system: System) -> None:
    with pytest.raises(ValueError, match=r"multiples of 64, but 700 x 512 is asked for; take 704 x 512"):
        run_node(EmptyTwoStageLatent, model=system.prior, width=700, height=512, batch_size=1)


def test_other_models_have_no_prior(models: Any) -> None:
    with pytest.raises(ValueError, match="this model is a SD15, which has no prior"):
        run_node(EmptyTwoStageLatent, model=models("sd15").model, width=64, height=64, batch_size=1)


def test_conditioning_needs_something_to_guide_away_from() -> None:
    with pytest.raises(
        ValueError, match=r"negative prompt, or of a grey picture; connect .*negative_prior.*clip_vision"
    ):
        run_node(PriorToConditioning, prior=embedded())
    with pytest.raises(ValueError, match=r"has 64 numbers, but the negative one has 32"):
        run_node(PriorToConditioning, prior=embedded(), negative_prior=embedded(32))
    with pytest.raises(ValueError, match=r"negative_prior is a latent of 4 x 8 x 8"):
        run_node(PriorToConditioning, prior=embedded(), negative_prior={"samples": torch.zeros(1, 4, 8, 8)})


def test_each_picture_of_a_batch_has_its_own_embedding(system: System) -> None:
    positive, negative = run_node(PriorToConditioning, prior=embedded(count=2), negative_prior=embedded(count=2))
    two = sampled(system.decoder, positive, torch.zeros(2, 4, 8, 8))
    one = [[None, {IMAGE_EMBEDDING: positive[0][1][IMAGE_EMBEDDING][:1]}]]
    first = sampled(system.decoder, one, torch.zeros(1, 4, 8, 8))
    assert torch.allclose(two[:1], first, atol=1e-4) and not torch.allclose(two[1:], first, atol=1e-2)


def test_images_that_comfyui_mixes_are_added_up(system: System) -> None:
    """unCLIPConditioning, which ComfyUI has, mixes pictures by their strengths."""
    seen = [SimpleNamespace(image_embeds=embedded()["samples"].flatten(1) * number) for number in (1, 3)]
    mixed = [{"clip_vision_output": each, "strength": 0.5, "noise_augmentation": 0.0} for each in seen]
    by_comfyui = sampled(system.decoder, [[None, {"unclip_conditioning": mixed}]], torch.zeros(1, 4, 8, 8))
    wanted = [[None, {IMAGE_EMBEDDING: embedded()["samples"] * 2}]]
    assert torch.allclose(by_comfyui, sampled(system.decoder, wanted, torch.zeros(1, 4, 8, 8)), atol=1e-5)


def test_a_decoder_without_an_image_embedding_says_so(system: System) -> None:
    said = refused(system, "decoder", encode(system.clip, "a heart"), torch.zeros(1, 4, 8, 8))
    assert re.search(
        r"draws from an image embedding, and this conditioning has none; connect .*prior of Kandinsky 2\.2", said
    )


def test_an_embedding_of_another_encoder_is_refused_with_both_names(system: System) -> None:
    said = refused(system, "decoder", [[None, {IMAGE_EMBEDDING: torch.zeros(1, 768, 1, 1)}]], torch.zeros(1, 4, 8, 8))
    assert "of another model (64 numbers), but this one is of CLIP ViT-L (768 numbers)" in said


def test_a_decoder_is_not_sampled_at_a_size_that_its_levels_do_not_fit(system: System) -> None:
    conditioning, _ = run_node(PriorToConditioning, prior=embedded(), negative_prior=embedded())
    assert "multiples of 4" in refused(system, "decoder", conditioning, torch.zeros(1, 4, 6, 8))


def test_a_prior_refuses_text_that_another_model_reads(system: System) -> None:
    stock = encode(tiny.make_clip("cascade"), "a heart")  # of the same width, without the mask
    assert "this text was encoded for another model" in refused(system, "prior", stock, torch.zeros(1, WIDTH, 1, 1))
    mask = {"attention_mask": torch.ones(1, 77), "pooled_output": torch.zeros(1, 768)}
    said = refused(system, "prior", [[torch.zeros(1, 77, 768), mask]], torch.zeros(1, WIDTH, 1, 1))
    assert "reads another model (64 numbers), but this text was encoded with CLIP ViT-L (768 numbers)" in said


def test_a_prior_is_not_sampled_with_the_decoders_latent(system: System) -> None:
    said = refused(system, "prior", encode(system.clip, "a heart"), torch.zeros(1, 4, 8, 8))
    assert "makes a single embedding, a latent of 1 x 1, but was given one of 8 x 8" in said
