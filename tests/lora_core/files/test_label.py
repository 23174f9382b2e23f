"""Checks what is added to a header, what is left out of it, and that it always fits."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.data import reading
from lora_loom.lora_core.data.dataset import Options, combined
from lora_loom.lora_core.data.tags import sets_by_folder, tag_frequency
from lora_loom.lora_core.files import guard, save
from lora_loom.lora_core.files.label import Label, labelled, redacted
from lora_loom.lora_core.files.metadata import SETTINGS, Facts, build
from lora_loom.lora_core.files.thumbnail import MOST_BYTES, jpeg
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.runs.recipe_json import RecipeRecord
from lora_loom.lora_core.training.config import LoraConfig, OptimizerConfig, Recipe, TextConfig, TrainConfig
from lora_loom.lora_core.training.layers import LayersConfig, Rule
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from PIL import Image


def adapter(rank: int) -> Adapter:
    return Adapter({"x0": LowRank(torch.ones(rank, 40), torch.ones(40, rank), 2.0)})


RECIPE = Recipe(
    LoraConfig(4, 8.0, "all-linear", ("a.*", "b"), ("c",), LayersConfig(max_norm=1.0, rules=(Rule("a", 2, rate=0.5),))),
    TrainConfig(
        7, 3e-5, 2, 3, 9, OptimizerConfig("lion", "rex", 2, weight_decay=0.1, beta1=0.8),
        ObjectiveConfig("huber", weighting="min_snr", snr_gamma=2.0),
    ),
    TextConfig(2, 1e-5),
    ("dog", "hound"),
)  # fmt: skip
PLAIN = Recipe(LoraConfig(), TrainConfig())
SETTINGS_OF_ALL = RecipeRecord(
    RECIPE,
    {"fingerprint": "f" * 16, "sets": [{"pictures": "a" * 16 + " " + "b" * 16, "trigger": "sks", "repeats": 3}]},
    {"family": "SD 1.5", "sha256": "e" * 64, "files": {"model": ["base.safetensors"]}},
    {"lora_loom": "0.1.0", "torch": "2.11.0"},
)


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def header_of(path: Path) -> tuple[int, dict[str, str]]:
    return int.from_bytes(path.read_bytes()[:8], "little") + 8, guard.inspect(path).metadata


@pytest.mark.parametrize("settings", [SETTINGS_OF_ALL, RecipeRecord(PLAIN)], ids=["all", "plain"])
def test_settings_read_back_are_equal(settings: RecipeRecord, tmp_path: Path):
    found = build(Facts("t", "flux-1-dev", settings=settings.to_json()), adapter(4))
    tensors = {"x.lora_up.weight": torch.ones(8, 2), "x.lora_down.weight": torch.ones(2, 8)}
    saved = save.save(tmp_path / "x.safetensors", tensors, found)
    read = RecipeRecord.from_json(header_of(saved.path)[1][SETTINGS])
    assert read == settings and read.recipe.train.optimizer == settings.recipe.train.optimizer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "another format than 1; update"),
        ({"recipe": {"momentum": 1}}, "say momentum, which this version does not know; update"),
        ({"later": {}}, "say later, which this version does not know; update"),
    ],
)
def test_settings_of_a_later_version_are_refused(change: dict, words: str):
    plain = json.loads(SETTINGS_OF_ALL.to_json())
    for key, value in change.items():
        plain[key] = {**plain[key], **value} if isinstance(value, dict) and key in plain else value
    with pytest.raises(ValueError, match=words):
        RecipeRecord.from_json(json.dumps(plain))


def test_tags_are_counted_as_sd_scripts_does():
    data = reading.from_tensors(
        torch.zeros(3, 64, 64, 3), ["Sks, Red hair,  1girl ,", "a photo of SKS in the rain", "sks, red hair"],
        "Sks", 64, 32, 2,
    )  # fmt: skip
    counted = {"Sks": 3, "red hair": 2, "1girl": 1, "a photo of sks in the rain": 1}
    assert list(sets_by_folder(data)) == ["connected images"]
    assert tag_frequency(data.examples) == counted


def test_sets_are_called_as_their_folders_end(tmp_path: Path):
    sets = []
    for parent in ("secret", "other"):
        folder = tmp_path / parent / "10_sks"
        folder.mkdir(parents=True)
        noise(64).save(folder / "a.png")
        sets.append(reading.from_folder(folder, "sks", 64, 32, 1, Options(resolutions=(32, 64))))
    found = sets_by_folder(combined(sets))
    assert {name: len(members) for name, members in found.items()} == {"10_sks": 1, "10_sks (2)": 1}


def private() -> dict[str, str]:
    facts = Facts(
        "t", "flux-1-dev", trigger="sks", num_images=2, buckets={(64, 64): 2},
        tag_frequency={"jane_doe": {"sks": 2, "jane": 1}},
        dataset_dirs={"jane_doe": (1, 2)}, class_dirs={"jane_too": (1, 2)}, settings=SETTINGS_OF_ALL.to_json(),
    )  # fmt: skip
    return build(facts, adapter(4))


def test_redacted_tells_nothing_of_captions_and_pictures():
    found = private()
    assert "jane" in str(found) and "a" * 16 in str(found) and "f" * 16 in str(found)
    kept = redacted(found)
    assert not any(word in str(kept) for word in ("jane", "a" * 16, "b" * 16, "f" * 16))
    assert json.loads(kept["ss_tag_frequency"]) == {"trigger": {"sks": 1}}
    assert json.loads(kept["ss_datasets"]) == [{"subsets": [{"class_tokens": "sks"}]}]
    assert kept["ss_num_train_images"] == "2" and "ss_dataset_dirs" not in kept
    assert RecipeRecord.from_json(kept[SETTINGS]).recipe == RECIPE
    assert labelled(found, Label(redact=True)) == kept
    assert redacted({"other": "x"}) == {"other": "x"}, "a merge has none of it"


def test_the_label_in_modelspecs_words():
    found = labelled({"modelspec.author": "old", "ss_steps": "3"}, Label("me", " MIT ", "what", "0.7", "ink,, a b ,"))
    assert found == {
        "ss_steps": "3", "modelspec.author": "me", "modelspec.license": "MIT", "modelspec.description": "what",
        "modelspec.usage_hint": "0.7", "modelspec.tags": "ink, a b",
    }  # fmt: skip
    assert labelled({"modelspec.author": "old"}, Label()) == {"modelspec.author": "old"}


@pytest.mark.parametrize("size", [(4096, 4096), (4096, 300), (100, 60)])
def test_a_preview_is_small(size: tuple[int, int]):
    data = jpeg(noise(max(size)).resize(size).convert("RGBA"))
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG" and max(image.size) == min(512, max(size)) or max(size) == 4096
        assert abs(image.width / image.height - size[0] / size[1]) < 0.1 * size[0] / size[1]
    assert len(data) <= MOST_BYTES


def test_the_preview_in_both_its_homes():
    data = jpeg(noise(64))
    found = labelled({}, Label(thumbnail=data))
    prefix, _, text = found["modelspec.thumbnail"].partition(",")
    assert prefix == "data:image/jpeg;base64" and base64.b64decode(text) == data
    assert [base64.b64decode(each) for each in json.loads(found["ssmd_cover_images"])] == [data]


TENSORS = {
    f"diffusion_model.double_blocks.{i}.img_attn.qkv.{part}": torch.ones(2, 2)
    for i in range(300)
    for part in ("lora_up.weight", "lora_down.weight")
}


def test_fifty_long_captions_and_a_large_preview_fit(tmp_path: Path):
    captions = [f"picture {i} " + " ".join(f"word{i * j}" for j in range(300)) for i in range(50)]
    images = torch.zeros(50, 64, 64, 3)
    data = reading.from_tensors(images, captions, "sks", 64, 32, 1)
    facts = Facts(
        "t", "flux-1-dev", trigger="sks", buckets=data.buckets(), tag_frequency={"d": tag_frequency(data.examples)}
    )
    found = labelled(build(facts, adapter(4)), Label(thumbnail=jpeg(noise(4096))))
    saved = save.save(tmp_path / "x.safetensors", TENSORS, found)
    size, read = header_of(saved.path)
    assert size < save.MAX_HEADER and saved.left_out == ()
    assert {**found, **read} == read and len(json.loads(read["ss_tag_frequency"])["d"]) == 51


def crowded(tags: int, pictures: int) -> dict[str, str]:
    frequency = {f'tag "{i:06d}" ' + "x" * 100: 1 + i // 10 for i in range(tags)}
    data = {"sets": [{"pictures": " ".join(f"{i:016x}" for i in range(pictures))}]}
    settings = RecipeRecord(PLAIN, dataset=data).to_json()
    facts = Facts("t", "flux-1-dev", tag_frequency={"d": frequency}, settings=settings)
    return labelled(build(facts, adapter(4)), Label(thumbnail=jpeg(noise(64))))


@pytest.mark.parametrize(
    ("tags", "pictures", "left_out"),
    [
        (7450, 10, ("the preview",)),
        (20000, 10, ("the preview", r"the \d+ rarest tags of the captions")),
        (20000, 70000, ("the preview", "the 19999 rarest tags of the captions", "the hashes of single pictures")),
    ],
)
def test_what_is_worth_least_goes_first(tags: int, pictures: int, left_out: tuple[str, ...], tmp_path: Path):

    facts = crowded(tags, pictures)
    saved = save.save(tmp_path / "x.safetensors", TENSORS, facts)
    size, read = header_of(saved.path)
    assert len(saved.left_out) == len(left_out) and all(map(re.fullmatch, left_out, saved.left_out))
    assert size <= save.MAX_HEADER
    kept = json.loads(read["ss_tag_frequency"])["d"]
    assert max(kept.values()) == 1 + (tags - 1) // 10, "the most frequent stay"
    if len(left_out) == 2:
        assert size > save.MAX_HEADER - 1000, "no more is left out than must be"
    assert ("pictures" in RecipeRecord.from_json(read[SETTINGS]).dataset["sets"][0]) == (len(left_out) < 3)
    assert read["modelspec.title"] == "t" and "modelspec.thumbnail" not in read


def test_redacted_settings_keep_a_seed_with_all_its_digits() -> None:
    settings = json.dumps({"dataset": {"pictures": ["a"]}, "recipe": {"seed": 2**64 - 1, "neutral": ["a cat"]}})
    assert json.loads(redacted({SETTINGS: settings})[SETTINGS]) == {"dataset": {}, "recipe": {"seed": 2**64 - 1}}
