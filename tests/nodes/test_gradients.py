"""Gradients through real ComfyUI models: the same with and without checkpointing, and those of finite differences."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import tiny
import torch
from comfy.ldm.hidream.model import MoEGate
from harness.calls import encode, relative_error
from harness.problem import Problem
from harness.session import training_session
from lora_loom.lora_core.families import table
from lora_loom.nodes.bridge.model.encoding import encode_captions
from lora_loom.nodes.bridge.session import session
from lora_loom.nodes.bridge.session.session import blocks
from tiny.families import GivenLatent, Tiny
from torch import Tensor, nn

FAMILIES = ["sd15", "sd15_full", "flux1", "flux1_schnell", "wan_demo", *tiny.MORE]
# One of each family whose row says that captions of different lengths share a forward.
MIXED = [
    "sd15", "sdxl", "sd35_medium", "flux1", "flux1_schnell", "flux2", "chroma", "wan21", "qwen_image", "krea2",
    "kandinsky5", "anima", "zimage", "lumina2", "ideogram4",
]  # fmt: skip
IN_PLACE = ["flux1", "flux1_schnell", "flux2", "chroma", "ltxv"]  # their blocks change tensors that autograd has saved


def gradient(trio: Any, checkpointing: bool, preset: str = "attention+mlp") -> Tensor:
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    with torch.inference_mode(), training_session(trio.model, checkpointing) as patcher:
        return Problem.of_model(patcher, conditioning, preset).gradient()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_nothing(models, family: str) -> None:
    preset = "linear+conv" if family == "sd15_full" else "attention+mlp"
    plain, recomputed = (gradient(models(family), flag, preset) for flag in (False, True))
    assert plain.norm() > 0 and torch.isfinite(plain).all()
    assert cosine(plain, recomputed) > 0.9999
    assert relative_error(recomputed, plain) < 1e-5


@pytest.mark.verifies("Gradients", "")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("family", FAMILIES)
def test_finite_differences(models, family: str, checkpointing: bool, record_property) -> None:
    trio = models(family)
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    with torch.inference_mode(), training_session(trio.model, checkpointing) as patcher:
        problem = Problem.of_model(patcher, conditioning)
        found = problem.gradient()
        for direction in problem.directions(found):
            slope = float(found.double() @ direction.double())
            error = abs(problem.slope(direction, slope) / slope - 1)
            record_property("error", error)
            assert error < 1e-3


def test_quiet_directions_have_the_gradients_of_finite_differences(models) -> None:
    """Of convolutions, too, and with blocks recomputed and copied from RAM."""
    trio, found = models("sd15"), []
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    for checkpointing, offload in ((False, 0.0), (True, 1.0)):
        with torch.inference_mode(), training_session(trio.model, checkpointing, offload=offload) as patcher:
            problem = Problem.of_model(patcher, conditioning, "linear+conv", quiet=True)
            found.append(problem.gradient())
            for direction in problem.directions(found[-1]):
                slope = float(found[-1].double() @ direction.double())
                assert problem.slope(direction, slope) == pytest.approx(slope, rel=1e-3)
    assert relative_error(found[1], found[0]) < 1e-5


def test_every_family_that_says_so_is_tried() -> None:
    """No row is believed untried in what it says of captions."""
    tried = {table.for_config_class(tiny.FAMILIES[name].config).name for name in MIXED}
    assert tried == {family.name for family in table.FAMILIES if family.captions}


@pytest.mark.parametrize("family", MIXED)
def test_captions_of_different_length_have_their_own_gradients(models, family: str) -> None:
    """In one forward with padding, blocks recomputed, as in one forward each."""
    trio = models(family)
    texts = ["blue", "many words, " * 200]
    encoded = encode_captions(trio.clip, texts, 1.0, lambda *_: None)
    conditioning = [encoded[text] for text in texts]
    with torch.inference_mode(), training_session(trio.model, checkpointing=True) as patcher:
        problem = Problem.of_model(patcher, conditioning, "all-linear")
        together = problem.gradient()
        problem.denoiser.captions = ""
        assert relative_error(together, problem.gradient()) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_an_expert_learns_from_the_tokens_that_go_to_it(models, monkeypatch, checkpointing: bool) -> None:
    """HiDream's gates send each token to two of four: here never to the last."""
    trio = models("hidream")
    monkeypatch.setattr(MoEGate, "forward", _two_of_three)
    conditioning = [encode(trio.clip, text, guidance=1.0) for text in ("a red heart", "blue")]
    with torch.inference_mode(), training_session(trio.model, checkpointing) as patcher:
        problem = Problem.of_model(patcher, conditioning)
        problem.gradient()
        slopes = {name: float(branch.lora_B.grad.norm()) for name, branch in problem.factors.branches.items()}
    experts = [name for name in slopes if ".experts." in name]
    assert len(experts) == 4 * 4 * 3 and not any("gate" in name for name in slopes)
    assert {name for name, slope in slopes.items() if slope == 0} == {name for name in experts if ".experts.3." in name}


def _two_of_three(gate: MoEGate, tokens: Tensor) -> tuple[Tensor, Tensor, None]:
    scores = (tokens.flatten(0, -2) @ gate.weight.T)[:, :3].softmax(-1).topk(2)
    return scores.indices, scores.values, None


@pytest.mark.parametrize("family", IN_PLACE)
def test_in_place_blocks_need_their_copies(models, monkeypatch, family: str) -> None:
    """The controls: without the copies autograd refuses, or under checkpointing gives another gradient in silence."""
    right = gradient(models(family), checkpointing=False)
    with monkeypatch.context() as without_norms:
        without_norms.setattr(session, "norms_on_copies", nullcontext)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradient(models(family), checkpointing=False)
        assert relative_error(gradient(models(family), checkpointing=True), right) > 1e-4
    monkeypatch.setattr(session, "_own", lambda value: value)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(models(family), checkpointing=True)


def test_cross_attention_of_ltx_video_needs_its_copy(models, monkeypatch) -> None:
    right = gradient(models("ltxv"), checkpointing=False)
    monkeypatch.setattr(session, "queries_on_copies", nullcontext)
    with pytest.raises(RuntimeError, match="modified inplace"):
        gradient(models("ltxv"), checkpointing=False)
    assert relative_error(gradient(models("ltxv"), checkpointing=True), right) > 1e-4


LTX_2 = dict(
    image_model="ltxav", num_layers=2, num_attention_heads=2, attention_head_dim=64, cross_attention_dim=128,
    caption_channels=64, audio_num_attention_heads=2, audio_attention_head_dim=32, audio_cross_attention_dim=64,
    connector_num_attention_heads=1, connector_attention_head_dim=64, connector_num_layers=1,
)  # fmt: skip


def test_blocks_that_take_tensors_in_a_tuple_are_recomputed_on_copies() -> None:
    """Those of LTX-2 take picture and sound so, and change them in place. It has no row, and trains without sound."""
    model = tiny.direct(Tiny("ltx2", "LTXAV", LTX_2, "", GivenLatent(128, 16)))
    draw = torch.Generator().manual_seed(0)
    conditioning = [[[torch.randn(1, 5, 128, generator=draw), {}]] for _ in range(2)]
    for checkpointing in (False, True):
        with torch.inference_mode(), training_session(model, checkpointing) as patcher:
            problem = Problem.of_model(patcher, conditioning)
            found = problem.gradient()
            for direction in problem.directions(found):
                slope = float(found.double() @ direction.double())
                assert abs(problem.slope(direction, slope) / slope - 1) < 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_a_block_draws_is_drawn_again(models, monkeypatch, dropout: float) -> None:
    """The states of the generators are kept for that alone."""
    trio = models("sd15")
    for module in trio.model.model.diffusion_model.modules():
        if isinstance(module, nn.Dropout):
            monkeypatch.setattr(module, "p", dropout)
            monkeypatch.setattr(module, "training", True)
    kept, checkpoint = set(), session.checkpoint

    def noted(*args: Any, preserve_rng_state: bool, **choices: Any) -> Any:
        kept.add(preserve_rng_state)
        return checkpoint(*args, preserve_rng_state=preserve_rng_state, **choices)

    monkeypatch.setattr(session, "checkpoint", noted)
    found = []
    for flag in (False, True):
        torch.manual_seed(0)
        found.append(gradient(trio, flag))
    assert relative_error(found[1], found[0]) < 1e-5
    assert (True in kept) == (dropout > 0) and False in kept


BLOCKS = {
    "sdxl": 32, "sdxl_v": 32, "sd35_large": 2, "sd35_medium": 2, "flux2": 4, "chroma": 8, "wan21": 2, "wan22_5b": 2,
    "qwen_image": 2, "krea2": 6, "ernie_image": 2, "hidream": 9, "ideogram4": 2, "ltxv": 2, "kandinsky5": 3,
    "kandinsky5_clips": 3, "anima": 3, "cascade_c": 14, "cascade_b": 21, "zimage": 4, "lumina2": 4,
    "kandinsky22_prior": 2, "kandinsky22_decoder": 7, "wuerstchen2": 6,
}  # fmt: skip


def test_blocks_of_every_family(models) -> None:
    """Text refiners and adapters among them."""
    assert {name: len(blocks(models(name).model.model.diffusion_model)) for name in tiny.MORE} == BLOCKS


@pytest.mark.parametrize(
    ("family", "count"), [("sd15", 5), ("sd15_full", 43), ("flux1", 4), ("flux1_schnell", 4), ("wan_demo", 6)]
)
def test_blocks_are_those_of_the_network(models, family: str, count: int) -> None:
    network = models(family).model.model.diffusion_model
    found = blocks(network)
    assert len(found) == count
    inside = sum(p.numel() for block in found for p in block.parameters())
    assert inside > 0.5 * sum(p.numel() for p in network.parameters())
