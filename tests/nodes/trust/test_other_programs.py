"""Signed files in other programs: what is read is right, and what becomes of contract and receipt is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.calls import relative_error, run_node
from harness.runs import train
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.files.lineage import CONTRACT
from lora_loom.lora_core.trust.contract import Contract, contract_of
from lora_loom.lora_core.trust.statement import STATEMENT
from lora_loom.nodes.passport import LoraPassport
from lora_loom.nodes.save_lora import SaveLora
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny.twin import TWINS

import nodes

TRIGGER = "inkwash"
INK = Contract(concept="ink", licence="CC-BY-4.0", author="Ada", trigger=TRIGGER)
Save = Callable[..., tuple[Path, str]]


@pytest.fixture
def model(models: Any) -> Any:
    """One that diffusers has, too, text and all."""
    return models("sd15_full").model


def passport(path: Path) -> str:
    return run_node(LoraPassport, lora=path.name)[0]


def ours(path: Path) -> set[str]:
    return {key for key in guard.inspect(path).metadata if key in (CONTRACT, STATEMENT)}


@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_diffusers_reads_a_signed_file_and_what_it_saves_has_no_header_of_ours(
    user: Path, save: Save, model: Any, loras: Path, style: str
) -> None:
    signed, _ = save(format=style, contract=INK)
    assert ours(signed) == {CONTRACT, STATEMENT}
    twin = TWINS["sd15_full"](model)
    twin.load_lora(signed)
    (changed,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, signed.name, 1.0)
    assert relative_error(twin.of_comfy(changed), twin()) < 1e-5
    (name,) = twin.network.peft_config
    settings = twin.network.peft_config[name].to_dict()
    layers = get_peft_model_state_dict(twin.network, adapter_name=name)
    twin.lora.save_lora_weights(loras, unet_lora_layers=layers, unet_lora_adapter_metadata=settings)
    again = loras / "pytorch_lora_weights.safetensors"
    assert ours(again) == set() and "not signed" in passport(again)
    tensors = {key: value.clone() for key, value in load_file(again).items()}
    with safe_open(signed, "pt") as file:
        save_file(tensors, again, file.metadata())
    assert "its signature is of other weights" in passport(again), "a receipt cannot be put on other data"


def test_whoever_hands_the_header_on_keeps_both(user: Path, save: Save, loras: Path) -> None:
    signed, _ = save(contract=INK)
    with safe_open(signed, "pt") as file:
        header = file.metadata()
    save_file(load_file(signed), loras / "handed on.safetensors", header)
    assert "unchanged since it was signed" in passport(loras / "handed on.safetensors")
    assert contract_of(guard.inspect(loras / "handed on.safetensors").metadata).concept == "ink"


def test_a_reader_such_as_a1111s(user: Path, save: Save) -> None:
    """It looks at the first two bytes of the header, reads every text that begins as a table does as JSON, and takes
    layers by up, down and alpha."""
    signed, plain = save("signed", format="kohya", contract=INK)[0], save("plain", format="kohya", sign=False)[0]
    raw = signed.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    assert raw[8:10] == b'{"'
    header = json.loads(raw[8 : 8 + size])["__metadata__"]
    assert all(isinstance(json.loads(text), dict) for text in header.values() if text.startswith("{"))
    assert all(isinstance(text, str) for text in header.values())
    one, other = deltas(signed), deltas(plain)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert all(name.startswith("lora_unet_") for name in one)


def deltas(path: Path) -> dict[str, torch.Tensor]:
    held = load_file(path)
    found = {}
    for stem in {key.split(".", 1)[0] for key in held}:
        down, up = held.pop(f"{stem}.lora_down.weight"), held.pop(f"{stem}.lora_up.weight")
        found[stem] = up.flatten(1) @ down.flatten(1) * held.pop(f"{stem}.alpha") / len(down)
    assert not held, "it would call them unknown"
    return found


def test_lora_manager_reads_the_same_of_it_and_writes_only_beside_it(
    user: Path, models: Any, data: Any, loras: Path, runs: Path
) -> None:
    """It opens a file with safetensors' reader and takes three texts; what it learns goes into NAME.metadata.json."""
    trio = models("sd15")
    made = {"adapter": train(trio, data).adapter, "model": trio.model, "format": "comfyui", "dtype": "fp16"}
    found = []
    for sign in (True, False):
        name, _ = run_node(SaveLora, name=f"sign {sign}", contract=INK, sign=sign, **made)
        with safe_open(loras / name, framework="pt", device="cpu") as file:
            header = file.metadata()
        (words,) = json.loads(header["ss_tag_frequency"]).values()
        (held,) = json.loads(header["ss_datasets"])
        found.append((header["ss_base_model_version"], words, held["subsets"][0]["class_tokens"]))
    assert found[0] == found[1] and found[0][0] == "sd_v1" and found[0][2] == TRIGGER
    assert max(found[0][1], key=found[0][1].get) == TRIGGER
    beside = {"base_model": "SD 1.5", "civitai": {"creator": {"username": "Eve"}, "model": {"allowNoCredit": True}}}
    (loras / "sign True.metadata.json").write_text(json.dumps(beside), encoding="utf-8")
    assert "unchanged since it was signed" in passport(loras / "sign True.safetensors")
    assert contract_of(guard.inspect(loras / "sign True.safetensors").metadata).author == "Ada"
