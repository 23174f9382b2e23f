"""Embeddings beside the layers of a file: what is one, and that they come back under their keys as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.files import bundled, formats
from safetensors.torch import save_file

INK = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
LAYER = {"x.lora_up.weight": torch.ones(4, 1), "x.lora_down.weight": torch.ones(1, 4)}
GOOD = {
    "bundle_emb.my word.clip_l": INK, "bundle_emb.my word.clip_g": INK[:1].half(), "bundle_emb.v1.2.clip_l": INK[0],
    "bundle_emb.old.string_to_param.*": INK.bfloat16(),
}  # fmt: skip
BAD = {
    "bundle_emb.../up.clip_l": INK, "bundle_emb.a/b.clip_l": INK, "bundle_emb.nul.clip_l": INK,
    "bundle_emb.nan.clip_l": INK * torch.nan, "bundle_emb.whole.clip_l": torch.ones(2, 8, dtype=torch.int64),
    "bundle_emb.deep.clip_l": torch.ones(1, 2, 8), "bundle_emb.long.clip_l": torch.ones(300, 8), "bundle_emb.no": INK,
}  # fmt: skip


def test_they_are_found_and_come_back(tmp_path: Path) -> None:
    held = {key: tensor.clone() for key, tensor in {**LAYER, **GOOD, **BAD}.items()}
    save_file(held, path := tmp_path / "a.safetensors")
    for adapter in (formats.read(path), formats.decode({**LAYER, **GOOD, **BAD})):
        assert set(adapter.embeddings) == {"my word", "v1.2", "old"}
        assert set(adapter.embeddings["my word"]) == {"clip_l", "clip_g"}
        assert set(adapter.left_out) == set(BAD)
        written = bundled.tensors(adapter.embeddings)
        assert written.keys() == GOOD.keys() and all(written[key].equal(GOOD[key]) for key in GOOD)


def test_two_of_one_name_are_one_only_where_they_are_the_same() -> None:
    one = {"ink": {"clip_l": INK}}
    assert bundled.joined(one, {}, {"ink": {"clip_l": INK.clone()}, "sks": {"clip_l": INK}}).keys() == {"ink", "sks"}
    with pytest.raises(ValueError, match="two different embeddings are called 'ink'; leave one of them out"):
        bundled.joined(one, {"ink": {"clip_l": -INK}})
