"""Which files are for another model, which only differ in a layer, and what is said of either."""

from __future__ import annotations

import pytest
from lora_loom.lora_core.files import mismatch
from lora_loom.lora_core.files.mismatch import Misfit, is_another_model, is_another_size

EDGE = Misfit("transformer.x_embedder", (128, 384), "diffusion_model.img_in", (128, 64))
OUTPUT = Misfit("head", (48, 128), "diffusion_model.head", (16, 128))
WIDE = [Misfit(f"b.{n}.q", (64, 64), f"diffusion_model.b.{n}.q", (128, 128)) for n in range(5)]
FLUX = ("FLUX.1 dev", "FLUX.1 schnell", "Chroma")


@pytest.mark.parametrize(("misfits", "fitting", "is_one"), [
    ([EDGE], 1, False), ([EDGE, OUTPUT], 1, False), ([EDGE], 0, True), (WIDE[:1], 1, False), (WIDE[:2], 1, True),
    (WIDE, 5, False), (WIDE, 4, True),
])  # fmt: skip
def test_another_size_misses_on_both_sides(misfits: list[Misfit], fitting: int, is_one: bool):
    assert is_another_size(misfits, fitting) == is_one


@pytest.mark.parametrize(("misfits", "fitting", "unmatched", "is_one"), [
    ([EDGE], 1, 0, False), ([EDGE, OUTPUT], 9, 4, False), ([EDGE, OUTPUT], 9, 5, True), ([], 10, 5, False),
    ([], 10, 6, True), (WIDE, 9, 0, False), ([*WIDE, EDGE, OUTPUT], 9, 0, True),
])  # fmt: skip
def test_versions_of_a_model_differ_in_a_kind_or_two(misfits, fitting: int, unmatched: int, is_one: bool):
    assert is_another_model(misfits, fitting, unmatched) == is_one


def test_what_is_left_out_is_told_with_both_shapes():
    assert mismatch.left_out([]) == ""
    assert mismatch.left_out([EDGE]) == (
        "1 not applied (wrong shape: transformer.x_embedder is 128 x 384, but diffusion_model.img_in of this model is "
        "128 x 64)"
    )
    assert "b.2.q is 64 x 64" in mismatch.left_out(WIDE) and mismatch.left_out(WIDE).endswith("; and 2 more)")


@pytest.mark.parametrize(("families", "made_for"), [
    (FLUX, "another size of FLUX.1 dev"), (("SD 3.5", *FLUX), "SD 3.5 or another size of FLUX.1 dev"),
    (("SD 3.5", "Qwen-Image"), "SD 3.5 or Qwen-Image"), ((), "another model"),
])  # fmt: skip
def test_no_sentence_says_that_a_file_is_for_the_model_it_does_not_fit(families: tuple[str, ...], made_for: str):
    said = mismatch.another_size("a.safetensors", WIDE, 1, "FLUX.1 dev", families)
    assert said.startswith(f"a.safetensors was made for {made_for}: 5 of its 6 layers do not fit")
    assert "shape (64, 64)" in said and "(128, 128)" in said
    said = mismatch.another_family("a.safetensors", ["x.y"], 0, "FLUX.1 dev", families)
    assert said.startswith("a.safetensors is a LoRA for ") and "FLUX.1 dev and matches" not in said


def test_an_unknown_spelling_is_given_beside_a_known_one():
    known = "diffusion_model.double_blocks.0.img_attn.qkv"
    said = mismatch.unknown_names("a.safetensors", ["odd.one", "odd.two"], "FLUX.2", ("FLUX.2",), known)
    for text in ("'odd.one', 'odd.two'", repr(known), "'lora_unet_double_blocks_0_img_attn_qkv'", "rename the keys"):
        assert text in said
    assert "is a LoRA for" not in said and "Load LoRA node" not in said


def test_a_file_of_text_encoders_alone():
    assert mismatch.text_alone("a.safetensors", ["te.x"], False).endswith("changes only the text encoder; connect CLIP")
    assert "none of its 1 layers (its first key is 'te.x')" in mismatch.text_alone("a.safetensors", ["te.x"], True)
