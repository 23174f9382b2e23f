"""Per-block strengths: names, ranges, patterns, presets and vectors."""

from __future__ import annotations

import pytest
from lora_loom.lora_core.families.blocks import PRESETS, VECTORS, block_names, block_of, parts, strengths
from lora_loom.lora_core.families.table import FAMILIES


def unet(inputs: int, outputs: int, text: bool = True) -> list[str]:
    names = [f"diffusion_model.input_blocks.{i}.1.attn1.to_q" for i in range(inputs)]
    names += ["diffusion_model.middle_block.1.attn1.to_q"]
    names += [f"diffusion_model.output_blocks.{i}.1.attn1.to_q" for i in range(outputs)]
    names += ["diffusion_model.time_embed.0"]
    return names + ["text_encoders.clip_l.layers.0.q_proj"] * text


FLUX = [f"diffusion_model.double_blocks.{i}.img_attn.qkv" for i in range(19)]
FLUX += [f"diffusion_model.single_blocks.{i}.linear1" for i in range(38)] + ["diffusion_model.img_in"]
SD15, SDXL = unet(12, 12), unet(9, 9)


def at(text: str, layers: list[str], value: float, family: str = "") -> list[str]:
    """The blocks whose factor is `value`."""
    return [str(block_of(layer)) for layer, factor in strengths(text, layers, family).items() if factor == value]


def test_nothing_said_is_one_everywhere() -> None:
    assert set(strengths("", SD15).values()) == set(strengths(" ,; \n", SD15).values()) == {1.0}


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (SD15, ["IN0-11", "MID", "OUT0-11", "REST", "TEXT"]),
        (FLUX, ["double.0-18", "single.0-37", "REST"]),
        (["diffusion_model.blocks.3.self_attn.q", "diffusion_model.head"], ["blocks.3", "REST"]),
        (
            ["diffusion_model.llm_adapter.blocks.0.q", "diffusion_model.blocks.0.q"],
            ["llm_adapter.blocks.0", "blocks.0"],
        ),
    ],
)
def test_names_of_blocks(layers: list[str], names: list[str]) -> None:
    assert block_names(layers) == names


WAN = [f"diffusion_model.blocks.{i}.{kind}" for kind in ("q", "k") for i in (0, 1, 2, 3, 9)]
MANY = [f"diffusion_model.{kind}_blocks.{i}.q" for n, kind in enumerate("abcde") for i in range(n + 1)]


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (SD15, ["IN", "MID", "OUT"]),
        (FLUX, ["double", "single"]),
        (WAN, ["blocks.0", "blocks.1-2", "blocks.3-9"]),
        (WAN[:2], ["blocks.0", "blocks.1"]),
        (MANY, ["b", "c", "d", "e"]),
        (WAN[:1], []),
        (["diffusion_model.head", "text_encoders.clip_l.q"], []),
    ],
)
def test_parts_are_named_as_a_text_names_them(layers: list[str], names: list[str]) -> None:
    found = parts(layers)
    assert list(found) == names
    for name, own in found.items():
        factors = strengths(f"{name}=0", layers)
        assert own and {layer for layer, factor in factors.items() if not factor} == set(own)


@pytest.mark.parametrize(
    ("text", "layers", "off"),
    [
        ("MID=0", SD15, ["MID"]),
        ("m00=0; in11=0", SD15, ["IN11", "MID"]),
        ("OUT3-5=0", SD15, ["OUT3", "OUT4", "OUT5"]),
        ("TEXT=0\nREST=0", SD15, ["REST", "TEXT"]),
        ("BASE=0", SD15, ["TEXT"]),
        ("double.0-1=0, single.37=0", FLUX, ["double_blocks.0", "double_blocks.1", "single_blocks.37"]),
        ("double_blocks.18=0", FLUX, ["double_blocks.18"]),
        ("single=0, single.1-37=1", FLUX, ["single_blocks.0"]),
        ("ALL=0, *blocks*=1", FLUX, ["REST"]),
        ("double_blocks.0.*=0", FLUX, ["double_blocks.0"]),
        (r"/single_blocks\.(7|3{1,2})\./=0", FLUX, ["single_blocks.3", "single_blocks.7", "single_blocks.33"]),
    ],
)
def test_selected_blocks(text: str, layers: list[str], off: list[str]) -> None:
    assert at(text, layers, 0.0) == off
    assert set(strengths(text, layers).values()) == {0.0, 1.0}


@pytest.mark.parametrize(("size", "layers"), [(12, SDXL), (20, SDXL), (17, SD15), (26, SD15)])
def test_a_vector_names_its_blocks(size: int, layers: list[str]) -> None:
    for position, name in enumerate(VECTORS[size]):
        text = ",".join("0.25" if index == position else "1" for index in range(size))
        assert at(text, layers, 0.25) == [name]


def test_a_vector_does_not_depend_on_what_a_lora_has() -> None:
    """Text encoders may not be there, and only the model says which blocks there are."""
    text = ",".join(["0"] * 16 + ["2"])
    assert at(text, unet(12, 12, text=False), 2.0) == at(text, SD15, 2.0) == ["OUT11"]


@pytest.mark.parametrize(
    ("text", "layers", "said"),
    [
        ("1,1,1", SD15, r"vector of 3 numbers does not fit this model; write 17 or 26 numbers"),
        (",".join("1" * 17), SDXL, r"17 numbers does not fit this model; write 12 or 20 numbers"),
        (",".join("1" * 12), SD15, r"12 numbers does not fit this model; write 17 or 26 numbers"),
        (",".join("1" * 12), FLUX, r"write names of blocks"),
        ("single.38=1", FLUX, r"single.38 is not a block of this model, which has double.0-18, single.0-37, REST, ALL"),
        ("IN=1", FLUX, r"IN is not a block of this model"),
        ("style", SD15, r"'style' is not a preset; write name=strength with one of these names: IN0-11"),
        ("MID=much", SD15, r"'much' in 'MID=much' is not a number from -20 to 20"),
        ("MID=nan", SD15, r"not a number"),
        ("/(/=1", SD15, r"/\(/ is not a valid regular expression"),
    ],
)
def test_refusals(text: str, layers: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        strengths(text, layers)
    assert "\n" not in str(refused.value)


def test_presets_are_of_families_and_fit_their_models() -> None:
    models = {"SD 1.5": SD15, "SDXL": SDXL}
    assert set(PRESETS) <= {family.name for family in FAMILIES}
    for family, presets in PRESETS.items():
        for name in presets:
            factors = strengths(name, models.get(family, FLUX), family)
            assert {0.0, 1.0} == set(factors.values()), name
    assert at("style", SDXL, 1.0, "SDXL") == ["OUT1"]
    assert at("style, MID=0.5", SDXL, 0.5, "SDXL") == ["MID"]


@pytest.mark.parametrize("text", ["IN" + "9" * 5000 + "=0", "IN1-" + "9" * 5000 + "=0", "/a{99999999999999999999}/=0"])
def test_numbers_of_thousands_of_digits_are_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="^blocks: ") as refused:
        strengths(text, FLUX)
    assert "limit" not in str(refused.value)
