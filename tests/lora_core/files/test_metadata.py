"""Checks what other programs find in the header."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import guard, metadata, save
from lora_loom.lora_core.files.hashes import content_hash, data_hash, file_hash, part_hash
from lora_loom.lora_core.files.lineage import Parent
from lora_loom.lora_core.files.metadata import SETTINGS, Facts
from lora_loom.lora_core.kinds import DoRA, placed
from lora_loom.lora_core.low_rank import LowRank

FACTS = Facts(
    title="Ink", architecture="stable-diffusion-v1", base_version="sd_v1", base_name="base.safetensors",
    base_hash="ab" * 32, base_part_hash="cdcdcdcd", trigger="inkstyle", resolution=(512, 768), steps=400, max_steps=500,
    batch_size=2, accumulation=3, learning_rate=1e-4, optimizer="AdamW", scheduler="cosine", warmup=5, max_grad_norm=1,
    caption_dropout=0.1, clip_skip=2, seed=0, targets=("attention",), num_images=12, debiased=False,
    buckets={(512, 512): 9.0, (384, 640): 3.0},
)  # fmt: skip


def adapter(*ranks: int) -> Adapter:
    return Adapter({f"x{i}": LowRank(torch.ones(rank, 40), torch.ones(40, rank), 2.0) for i, rank in enumerate(ranks)})


def legacy_of_sd_scripts(tensors: dict[str, torch.Tensor], found: dict[str, str]) -> str:
    """The definition: a file with only the ss_ keys, 64 KiB from 1 MiB on, 8 digits."""
    raw = safetensors.torch.save(tensors, {key: value for key, value in found.items() if key.startswith("ss_")})
    return hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8]


def test_what_readers_look_for():
    found = metadata.build(FACTS, adapter(4, 4))
    assert found | {
        "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "Ink", "modelspec.resolution": "512x768", "modelspec.trigger_phrase": "inkstyle",
        "modelspec.encoder_layer": "2", "ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora",
        "ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_resolution": "(512, 768)", "ss_steps": "400",
        "ss_total_batch_size": "6", "ss_learning_rate": "0.0001", "ss_seed": "0", "ss_clip_skip": "2",
        "ss_num_train_images": "12", "ss_num_batches_per_epoch": "7", "ss_num_epochs": "215", "ss_epoch": "172",
        "ss_sd_model_name": "base.safetensors", "ss_sd_model_hash": "cdcdcdcd", "ss_new_sd_model_hash": "ab" * 32,
        "ss_lr_scheduler": "cosine", "ss_lr_warmup_steps": "5", "ss_max_grad_norm": "1", "ss_enable_bucket": "True",
        "ss_caption_dropout_rate": "0.1", "ss_debiased_estimation": "False",
    } == found  # fmt: skip
    assert json.loads(found["ss_tag_frequency"]) == {"trigger": {"inkstyle": 1}}
    buckets = {"0": {"resolution": [512, 512], "count": 9}, "1": {"resolution": [384, 640], "count": 3}}
    assert json.loads(found["ss_bucket_info"]) == {"buckets": buckets}
    assert json.loads(found["ss_network_args"]) == {"targets": ["attention"]}
    assert all(isinstance(value, str) and value for value in found.values())


def test_the_text_encoders_rate_and_rank_beside_the_models():
    text = LowRank(torch.ones(8, 40), torch.ones(40, 8), 4.0)
    both = Adapter({**adapter(4).layers, "text_encoders.l": text})
    found = metadata.build(replace(FACTS, text_learning_rate=5e-5), both)
    names = ("ss_unet_lr", "ss_text_encoder_lr", "ss_network_dim", "ss_network_alpha")
    assert [found[name] for name in names] == ["0.0001", "5e-05", "4", "2.0"]
    assert json.loads(found["ss_network_args"]) == {"targets": ["attention"], "text_rank": "8"}
    assert metadata.build(FACTS, Adapter({"text_encoders.l": text}))["ss_network_dim"] == "8"


def test_what_is_not_known_or_not_allowed_is_not_written():
    found = metadata.build(Facts("t", "flux-1-dev"), adapter(4))
    assert not {"modelspec.date", "modelspec.trigger_phrase", "ss_bucket_info", SETTINGS,
                "ss_new_sd_model_hash", "ss_tag_frequency", "ss_dataset_dirs", "ss_seed",
                "lora_loom.parents", "modelspec.merged_from", "modelspec.resolution"} & found.keys()  # fmt: skip


def test_training_data_only_when_given():
    facts = replace(
        FACTS, tag_frequency={"d": {"b": 1, "a": 2}}, dataset_dirs={"d": (3, 4)}, class_dirs={"dog": (1, 9)}
    )
    found = metadata.build(facts, adapter(4))
    assert found["ss_tag_frequency"] == '{"d": {"a": 2, "b": 1}}'
    assert json.loads(found["ss_dataset_dirs"]) == {"d": {"n_repeats": 3, "img_count": 4}}
    assert json.loads(found["ss_reg_dataset_dirs"]) == {"dog": {"n_repeats": 1, "img_count": 9}}


def test_mixed_ranks_are_dynamic():
    assert metadata.build(FACTS, adapter(4, 8))["ss_network_dim"] == "Dynamic"


def test_lineage():
    parents = (Parent("ink", "ab" * 32, 0.7), Parent("paper", "cd" * 32, -0.25))
    found = metadata.build(replace(FACTS, merged_from=parents), adapter(4))
    assert found["modelspec.merged_from"] == "ink, paper"
    assert json.loads(found["lora_loom.parents"])[1] == {"name": "paper", "sha256": "cd" * 32, "strength": -0.25}


@pytest.mark.parametrize("size", [64, 1000], ids=["below 1 MiB", "above 1 MiB"])
def test_hashes_of_the_final_file(size: int, tmp_path: Path):
    tensors = {"b": torch.randn(size, size), "a": torch.randn(size, size).half(), "c": torch.tensor(1.0)}
    found = metadata.build(FACTS, adapter(4))
    saved = save.save(tmp_path / "x.safetensors", tensors, found)
    raw = saved.path.read_bytes()
    data = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    with safetensors.safe_open(saved.path, "pt") as file:
        written = file.metadata()
        assert all(torch.equal(file.get_tensor(key), tensor) for key, tensor in tensors.items())
    assert written["sshs_model_hash"] == data == saved.model_hash and len(data) == 64
    assert written["modelspec.hash_sha256"] == "0x" + data
    assert data == data_hash(saved.path) == data_hash(tensors) == data_hash(str(saved.path))
    assert hashlib.sha256(raw).hexdigest() == file_hash(saved.path)
    assert saved.size == len(raw) and saved.left_out == ()
    assert part_hash(saved.path) == (hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8] if size > 64 else "")
    if size > 64:
        assert written["sshs_legacy_hash"] == legacy_of_sd_scripts(tensors, found)
    else:
        assert "sshs_legacy_hash" not in written, "the hash of nothing is every small file's"
    assert found.items() <= written.items()


def test_an_adapter_in_memory_has_a_hash_of_all_that_it_does():
    """Whatever the order of its layers and its metadata; other numbers, names or shapes give another."""

    def made(alpha=2.0, magnitude=1.0, name="b", kernel=(), start=0) -> Adapter:
        layer = LowRank(torch.arange(8.0).view(2, 4), torch.ones(4, 2), alpha, kernel)
        dora = DoRA(layer, torch.full((4,), magnitude))
        return Adapter({"a": layer, name: layer}, {}, {"c": (dora, placed(dora, (start, 4), 8))})

    same = Adapter(dict(reversed(made().layers.items())), {"k": "v"}, made().others)
    others = [made(1.0), made(magnitude=2.0), made(name="d"), made(kernel=(2,)), made(start=4)]
    hashes = [content_hash(each) for each in (made(), *others)]
    assert content_hash(same) == hashes[0] and len(set(hashes)) == len(hashes) and len(hashes[0]) == 64


def test_hash_is_that_of_the_librarys_own_writer(tmp_path: Path):
    tensors = {"b": torch.randn(5, 7), "a": torch.randn(3).half(), "A": torch.tensor(3)}
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", {"k": "v"})
    assert data_hash(tmp_path / "theirs.safetensors") == data_hash(tensors)


@pytest.mark.usefixtures("comfyui")
def test_comfyuis_asset_scan_finds_its_fields(tmp_path: Path):
    from app.assets.services import metadata_extract as comfy_scan

    saved = save.save(tmp_path / "x.safetensors", {"a": torch.ones(2)}, metadata.build(FACTS, adapter(4)))
    header = comfy_scan._read_safetensors_header(str(saved.path))
    found = comfy_scan.ExtractedMetadata()
    comfy_scan._extract_safetensors_metadata(header, found)
    assert found.base_model == "sd_v1" and found.trained_words == ["inkstyle"] and found.source_hash == saved.model_hash


def test_the_guard_accepts_what_we_write(tmp_path: Path):
    tensors = {"x.lora_up.weight": torch.ones(8, 2), "x.lora_down.weight": torch.ones(2, 8)}
    found = metadata.build(replace(FACTS, title="\u00e9\n\u65e5"), adapter(4))
    saved = save.save(tmp_path / "x.safetensors", tensors, found)
    assert guard.inspect(saved.path).metadata["modelspec.title"] == "\u00e9\n\u65e5"


# -- the trigger, where others look ------------------------------------------------------------------------------------


def words_of_lora_manager(found: dict[str, str]) -> tuple[list[str], str | None]:
    """Tags of the first folder, most frequent first, and the class tokens of the first subset."""
    subsets = json.loads(found.get("ss_datasets", "[{}]"))[0].get("subsets") or [{}]
    tags = next(iter(json.loads(found["ss_tag_frequency"]).values()))
    return sorted(tags, key=lambda tag: tags[tag], reverse=True), subsets[0].get("class_tokens")


def tags_of_a1111(found: dict[str, str]) -> list[str]:
    """Return the tags of all folders together, most frequent first."""
    counts: dict[str, int] = {}
    for folder in json.loads(found["ss_tag_frequency"]).values():
        for tag, count in folder.items():
            counts[tag] = counts.get(tag, 0) + count
    return sorted(counts, key=lambda tag: counts[tag], reverse=True)


def test_the_trigger_is_first_where_lora_manager_and_a1111_look():
    counted = {"photo": 4, "a dog": 4, "zz_dog": 4, "grass": 1}
    facts = replace(
        FACTS, trigger="zz_dog, zz_cat", tag_frequency={"dogs": counted, "cats": {"cat": 9, "zz_cat": 9, "sofa": 2}},
        dataset_dirs={"plain": (1, 2), "dogs": (3, 4), "cats": (1, 9)}, class_dirs={"animals": (1, 5)},
        folder_triggers={"dogs": "zz_dog", "cats": "zz_cat"},
    )  # fmt: skip
    found = metadata.build(facts, adapter(4))
    assert words_of_lora_manager(found) == (["zz_cat", "cat", "sofa"], "zz_dog")
    assert tags_of_a1111(found)[:3] == ["zz_cat", "cat", "zz_dog"]
    (one,) = json.loads(found["ss_datasets"])
    assert one["resolution"] == [512, 768]
    assert one["subsets"][0] == {
        "image_dir": "dogs",
        "num_repeats": 3,
        "img_count": 4,
        "is_reg": False,
        "class_tokens": "zz_dog",
    }
    assert [(each["image_dir"], each["is_reg"], each["class_tokens"]) for each in one["subsets"][1:]] == [
        ("cats", False, "zz_cat"), ("plain", False, None), ("animals", True, None)
    ]  # fmt: skip
    assert json.loads(found["ss_tag_frequency"])["dogs"] == counted, "facts, in another order"


def test_a_trigger_without_data_is_told_too_and_none_is_made_up():
    found = metadata.build(Facts("t", "flux-1-dev", trigger="sks, ink"), adapter(4))
    assert words_of_lora_manager(found) == (["sks", "ink"], "sks, ink")
    assert "ss_datasets" not in metadata.build(Facts("t", "flux-1-dev"), adapter(4))
