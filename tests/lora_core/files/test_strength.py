"""Files of PEFT's own save_pretrained: the strength is in adapter_config.json beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.files.faults import UnsafeFileError
from lora_loom.lora_core.files.store import Store
from lora_loom.lora_core.files.strength import CONFIG
from lora_loom.lora_core.kinds import DoRA
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

NAMES = ["blocks.0.k", "blocks.0.q", "blocks.1.k", "blocks.1.q"]
FILE = "adapter_model.safetensors"


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(16, 24), "k": nn.Linear(16, 12)}) for _ in range(2))


def saved(folder: Path, config) -> PeftModel:
    """A network with an adapter of random factors, saved into the folder."""
    torch.manual_seed(1)
    model = get_peft_model(Network(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "hada_" in name or "lokr_" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(str(folder))
    return model


def assert_strengths(folder: Path, model: PeftModel, file: str = FILE) -> None:
    adapter = formats.read(folder / file)
    changes = {**adapter.layers, **adapter.others}
    found = {name.removeprefix("base_model.model."): change for name, change in changes.items()}
    assert sorted(found) == NAMES
    for name, change in found.items():
        layer = model.base_model.model.get_submodule(name)
        weight = layer.get_base_layer().weight.detach().clone()
        layer.merge()
        wanted = layer.get_base_layer().weight.detach() - weight
        layer.unmerge()
        made = change[0].difference(weight) if isinstance(change, tuple) else change.delta_weight()
        torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("more", [
    {}, {"use_rslora": True}, {"alpha_pattern": {"blocks.0.q": 20}}, {"rank_pattern": {"k": 2}},
    {"rank_pattern": {"k": 2}, "alpha_pattern": {"1.k": 5}, "use_rslora": True},
])  # fmt: skip
@pytest.mark.parametrize("dora", [False, True])
def test_the_strength_is_peft_s(tmp_path: Path, more: dict, dora: bool):
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["q", "k"], use_dora=dora, **more)
    model = saved(tmp_path, config)
    if not dora:
        return assert_strengths(tmp_path, model)
    found = formats.read(tmp_path / FILE).others["base_model.model.blocks.1.k"][0]
    layer = model.base_model.model.blocks[1]["k"]
    assert isinstance(found, DoRA) and found.update.scaling == pytest.approx(layer.scaling["default"])


@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig])
def test_other_kinds_of_peft(tmp_path: Path, config: Callable):
    more = {"decompose_both": True, "r": 1} if config is LoKrConfig else {"r": 2}
    assert_strengths(tmp_path, saved(tmp_path, config(alpha=7, target_modules=["q", "k"], **more)))


def test_the_configuration_is_that_of_the_file_it_is_saved_with(tmp_path: Path):
    """The configuration goes with a file under another name only when that file is alone in its folder."""
    model = saved(tmp_path, LoraConfig(r=4, lora_alpha=10, target_modules=["q", "k"]))
    (tmp_path / FILE).rename(tmp_path / "mine.safetensors")
    assert_strengths(tmp_path, model, "mine.safetensors")
    shutil.copy(tmp_path / "mine.safetensors", tmp_path / "other.safetensors")
    assert {layer.alpha for layer in formats.read(tmp_path / "mine.safetensors").layers.values()} == {4.0}


def test_an_alpha_in_the_file_or_its_header_comes_first(tmp_path: Path):
    saved(tmp_path, LoraConfig(r=4, lora_alpha=10, target_modules=["q", "k"]))
    assert {layer.alpha for layer in formats.read(tmp_path / FILE).layers.values()} == {10.0}
    tensors = {f"x.{part}": torch.ones(4, 4) for part in ("lora_A.weight", "lora_B.weight")}
    for more, metadata, alpha in (({"x.alpha": torch.tensor(3.0)}, {}, 3.0),
                                  ({}, {"lora_adapter_metadata": '{"lora_alpha": 2}'}, 2.0)):  # fmt: skip
        save_file(tensors | more, tmp_path / FILE, metadata)
        assert formats.read(tmp_path / FILE).layers["x"].alpha == alpha


@pytest.mark.parametrize(
    "text", ["[", "[1]", "[" * 100_000, '{"lora_alpha": "16"}', '{"lora_alpha": 1%s}' % ("0" * 400)]
)
def test_a_broken_configuration_is_named(tmp_path: Path, text: str):
    saved(tmp_path, LoraConfig(r=4, lora_alpha=10, target_modules=["q", "k"]))
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(UnsafeFileError, match=FILE):
        formats.read(tmp_path / FILE)


def test_another_configuration_is_another_file(tmp_path: Path):
    saved(tmp_path, LoraConfig(r=4, lora_alpha=10, target_modules=["q", "k"]))
    store = Store(lambda: False)
    first = store.read(tmp_path / FILE)
    assert store.read(tmp_path / FILE) is first
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"lora_alpha": 2}))
    assert {layer.alpha for layer in store.read(tmp_path / FILE).layers.values()} == {2.0}
