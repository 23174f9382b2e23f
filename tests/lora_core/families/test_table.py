"""The table of families, the presets beside it, and what a model's name tells of its distillation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from lora_loom.lora_core.families import table
from lora_loom.lora_core.families.distilled import few_step_mark
from lora_loom.lora_core.families.signs import SIGNS
from lora_loom.lora_core.families.table import DEMO_BASE
from lora_loom.lora_core.training.config import LoraConfig, OptimizerConfig, TrainConfig
from lora_loom.lora_core.training.objective_config import SHIFTED, ObjectiveConfig
from lora_loom.lora_core.training.presets import NEUTRAL, PRESETS, Preset, choose, preset_of
from lora_loom.lora_core.training.timesteps import resolution_shift

NAMES = [family.name for family in table.FAMILIES]
AUTOMATIC = ("auto", 0, 0.0, 0.0, "auto", 3.0)


def test_every_family_has_a_preset_and_signs():
    sizes = {size.preset for family in table.FAMILIES for size in family.sizes if size.preset}
    assert set(PRESETS) == set(NAMES) | sizes and len(set(NAMES)) == len(NAMES)
    assert set(NAMES) <= set(SIGNS)


@pytest.mark.parametrize("preset", [*PRESETS.values(), NEUTRAL], ids=[*PRESETS, "neutral"])
def test_a_preset_can_be_trained_with(preset: Preset):
    LoraConfig(preset.rank, preset.alpha, preset.targets)
    TrainConfig(
        learning_rate=preset.learning_rate, objective=ObjectiveConfig(timesteps=preset.timesteps, shift=preset.shift)
    )
    assert preset.optimizer == "AdamW", "the only optimiser there is"
    assert preset.alpha == preset.rank, "the learning rates are meant for that"
    assert (preset.shift != 1) == (preset.timesteps in SHIFTED)
    assert (512 <= preset.resolution <= 1024 or preset is PRESETS[table.DEMO_BASE]) and preset.evidence


def test_a_class_with_a_row_and_one_without():
    assert table.for_config_class("Flux").name == "FLUX.1 dev"
    assert table.for_config_class("KOALA_700M").name == "SDXL", "a smaller SDXL"
    plain = table.for_config_class("NewModel")
    assert (plain.name, plain.guidance, plain.text) == ("NewModel", None, table.Text())
    new = table.Family("New", "NewModel", "new", "new")
    assert plain.captions == new.captions == "", "not known to be exact"
    assert preset_of("NewModel") is NEUTRAL and (NEUTRAL.timesteps, NEUTRAL.shift) == ("uniform", 1.0)


@pytest.mark.parametrize(
    ("config_class", "layer", "features", "architecture", "base_version"),
    [
        ("Flux2", "txt_in", 3072, "Flux.2-klein-4b", "flux_2_klein_4b"),
        ("Flux2", "txt_in", 4096, "Flux.2-klein-9b", "flux_2_klein_9b"),
        ("Flux2", "txt_in", 6144, "Flux.2-dev", "flux_2_dev"),
        ("SD3", "context_embedder", 2432, "stable-diffusion-v3.5-large", "sd3"),
        ("SD3", "context_embedder", 1536, "stable-diffusion-v3-medium", "sd3"),
        ("SD3", "joint_blocks.0.x_block.attn2.qkv", 4608, "stable-diffusion-v3.5-medium", "sd3"),
        ("Kandinsky5Image", "text_embeddings.in_layer", 2560, "kandinsky5-image-lite", "kandinsky5"),
        ("WAN22_T2V", "text_embedding.0", 3072, "wan-2_2-ti2v-5b", "wan"),
        ("LTXV", "caption_projection.linear_1", 2048, "lightricks-ltx-video", "ltxv"),
        ("ErnieImage", "text_proj", 4096, "ernie-image", "ernie_image"),
        ("SD15", "time_embed.0", 1280, "stable-diffusion-v1", "sd_v1"),
    ],
)
def test_the_spelling_of_a_size(config_class, layer, features, architecture, base_version):
    row = table.for_config_class(config_class).sized(lambda name: features if name == layer else 0)
    assert (row.architecture, row.base_version) == (architecture, base_version)


@pytest.mark.parametrize("name", ["CogVideoX_T2V", "CogVideoX_I2V", "Wuerstchen2Decoder", "MiniMaxH3"])
def test_what_would_learn_the_wrong_thing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} cannot be trained: "):
        table.check_trainable(name)


@pytest.mark.parametrize("name", ["SD15", "Stable_Cascade_C", "Stable_Cascade_B", "LTXV", "NewModel"])
def test_everything_else_may_be_trained(name):
    table.check_trainable(name)


def test_the_demo_base_has_figures_of_its_own_and_a_wan_of_any_size_those_of_wan():
    """The demo base is told by its feed-forward."""
    row = table.for_config_class("WAN21_T2V")
    demo = row.sized({"blocks.0.ffn.0": 512, "text_embedding.0": 128}.get)
    large = row.sized({"blocks.0.ffn.0": 8960, "text_embedding.0": 1536}.get)
    assert (demo.name, demo.preset_name) == (row.name, table.DEMO_BASE)
    assert {row.preset_name, large.preset_name} == {"Wan 2.1"} and large.architecture != row.architecture
    assert preset_of(demo.preset_name).learning_rate == 3e-3


# -- auto --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*NAMES, "NewModel"])
def test_auto_and_the_same_values_typed_in_are_the_same(family: str):
    chosen, preset = choose(family, *AUTOMATIC), preset_of(family)
    assert (chosen.rank, chosen.alpha, chosen.learning_rate) == (preset.rank, preset.alpha, preset.learning_rate)
    assert (chosen.targets, chosen.timesteps, chosen.shift) == (preset.targets, preset.timesteps, preset.shift)
    typed = choose(
        family, chosen.targets, chosen.rank, chosen.alpha, chosen.learning_rate, chosen.timesteps, chosen.shift
    )
    assert typed.note() == "" and chosen.note()
    assert {**vars(typed), "automatic": None} == {**vars(chosen), "automatic": None}


def test_alpha_follows_the_rank():
    assert choose("SDXL", "auto", 4, 0.0, 0.0, "auto", 3.0).alpha == 4.0
    assert choose("SDXL", "auto", 0, 2.0, 0.0, "auto", 3.0).alpha == 2.0


@pytest.mark.parametrize(("law", "shift"), [("uniform", 1.0), ("logit_normal", 1.0), ("shifted", 5.0)])
def test_a_law_without_a_shift_does_not_know_the_widget(law: str, shift: float):
    assert choose("SDXL", "auto", 0, 0.0, 0.0, law, 5.0).shift == shift


BY_SIZE = {  # the mean of the model's own scheduler at 512, 768 and 1024 pixels, and what auto meant before
    "FLUX.1 dev": ((0.63, 0.846667, 1.15), 3.16),
    "FLUX.2": ((0.63, 0.846667, 1.15), 3.16),
    "Qwen-Image": ((0.53871, 0.603226, 0.693548), 2.2),
    "Krea 2": ((0.58125, 0.716667, 0.90625), 2.5),
}


@pytest.mark.parametrize("family", BY_SIZE)
def test_auto_is_shifted_by_size_as_the_model_is_sampled(family: str):
    means, before = BY_SIZE[family]
    chosen = choose(family, *AUTOMATIC)
    assert chosen.timesteps == "shifted_by_size"
    for side, mean in zip((512, 768, 1024), means, strict=True):
        shift = resolution_shift((side / 16) ** 2, chosen.shift)
        assert shift == pytest.approx(math.exp(mean), rel=2e-3)
    (earlier,) = chosen.earlier()
    assert (earlier.timesteps, earlier.shift) == ("shifted_logit_normal", before)
    assert {**vars(earlier), "timesteps": "", "shift": 0} == {**vars(chosen), "timesteps": "", "shift": 0}


def test_only_auto_had_another_meaning():
    assert choose("FLUX.1 dev", "auto", 0, 0.0, 0.0, "shifted_by_size", 3.16).earlier() == ()
    assert choose("SD 3.5", *AUTOMATIC).earlier() == ()


def test_a_quiet_run_may_have_been_begun_loud_and_with_the_timesteps_of_before():
    chosen = choose("FLUX.1 dev", *AUTOMATIC, quiet=True)
    found = [(each.quiet, each.timesteps) for each in chosen.earlier()]
    before, now = "shifted_logit_normal", "shifted_by_size"
    assert found == [(False, now), (True, before), (False, before)]
    assert [(each.quiet, each.timesteps) for each in chosen.earlier(quiet_chosen=True)] == [(True, before)]


@pytest.mark.parametrize(("family", "measured"), [(DEMO_BASE, True), ("SDXL", False)])
def test_the_quiet_rate_says_where_it_was_measured(family: str, measured: bool):
    loud, quiet = choose(family, *AUTOMATIC), choose(family, *AUTOMATIC, quiet=True)
    assert quiet.learning_rate == pytest.approx(3 * loud.learning_rate) and quiet.loud_rate == loud.learning_rate
    assert preset_of(family).quiet == measured
    assert quiet.earlier()[0] == replace(loud, quiet=False)
    assert "3 times that without" in quiet.note() and ("not measured on this family" in quiet.note()) != measured
    assert "quiet" not in loud.note()
    typed = choose(family, "auto", 0, 0.0, 5e-4, "auto", 3.0, quiet=True)
    assert typed.learning_rate == typed.earlier()[0].learning_rate == 5e-4 and "quiet" not in typed.note()
    assert choose(family, *AUTOMATIC, OptimizerConfig("prodigy"), quiet=True).learning_rate == 1


@pytest.mark.parametrize(
    ("family", "pictures", "per_step", "steps"),
    [("SDXL", 15, 1, 1500), ("SDXL", 3, 1, 500), ("SDXL", 400, 1, 3000), ("SDXL", 15, 4, 380), ("SDXL", 3, 8, 250),
     (DEMO_BASE, 16, 1, 400), (DEMO_BASE, 4, 1, 200)],
)  # fmt: skip
def test_steps_follow_the_pictures(family: str, pictures: int, per_step: int, steps: int):
    assert preset_of(family).steps.of(pictures, per_step) == steps


def test_the_note_names_what_was_chosen_and_nothing_else():
    note = choose("SDXL", *AUTOMATIC).note()
    assert note.startswith(
        "auto for SDXL: rank 16, alpha 16, learning rate 0.0001, attention, uniform timesteps (diffusers and"
    )
    note = choose("FLUX.1 dev", *AUTOMATIC).note()
    assert "shifted_by_size timesteps at shift 3.16 for 1024 x 1024 pixels (ai-toolkit" in note
    assert "shifted_logit_normal timesteps at shift 3 (" in choose("SD 3.5", *AUTOMATIC).note()
    assert "learning rate 1," in choose("SDXL", *AUTOMATIC, OptimizerConfig("prodigy")).note()
    note = choose("SDXL", "attention", 8, 0.0, 1e-3, "uniform", 3.0).note()
    assert note.startswith("auto for SDXL: alpha 8 (")


# -- models distilled to few steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("flux1-schnell-fp8.safetensors", "schnell"), ("models/flux-2-klein-4b.safetensors", "klein"),
        ("Flux2-Klein-9B.safetensors", "klein"), ("sd_xl_turbo_1.0_fp16.safetensors", "turbo"),
        ("DreamShaperXL_Lightning.safetensors", "lightning"), ("realvisV50LightningBakedvae.safetensors", "lightning"),
        ("sdxl_4step.safetensors", "4step"), ("z_image_turbo_bf16.safetensors", "turbo"),
        ("krea2\\turbo.safetensors", "turbo"), ("qwen_image_distill_full.safetensors", "distill"),
        ("k5lite_distilled16steps_5s.safetensors", "distilled"), ("Chroma1-Flash.safetensors", "flash"),
        ("dreamshaper_8LCM.safetensors", "lcm"), ("Hyper-SDXL.safetensors", "hyper-sdxl"), ("FluxSchnell", "schnell"),
    ],
)  # fmt: skip
def test_a_distilled_model_is_told_by_its_name(name: str, mark: str):
    assert few_step_mark(name) == mark


@pytest.mark.parametrize(
    "name",
    [
        "flux1-dev.safetensors", "flux-2-klein-base-9b-fp8.safetensors", "kleinBase.safetensors",
        "turbo/raw.safetensors",
        "z_image_bf16.safetensors", "z_image_de_turbo_v1_bf16.safetensors", "hyperrealismXL.safetensors",
        "flux-dev-de-distill.safetensors", "undistilled-flux.safetensors", "my_2000steps.safetensors",
        "OpenFLUX.1.safetensors", "stepsister.safetensors", "",
    ],
)  # fmt: skip
def test_other_models_are_not(name: str):
    assert few_step_mark(name) == ""


def test_one_name_can_take_back_what_another_says():
    assert few_step_mark("my_model.safetensors", "FluxSchnell") == "schnell"
    assert few_step_mark("OpenFLUX.1.safetensors", "FluxSchnell") == ""
