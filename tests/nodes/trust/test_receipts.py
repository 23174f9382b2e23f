"""What Save LoRA signs is told by Load LoRA Stack and LoRA Passport, and so is what was done to it since."""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from harness.calls import loaded, run_node
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.trust import ed25519, keys
from lora_loom.lora_core.trust.signer import Signer, fingerprint
from lora_loom.lora_core.trust.statement import STATEMENT, opened, receipt_hash
from lora_loom.nodes.bridge.host import folders
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.passport import LoraPassport
from lora_loom.nodes.save_lora import SaveLora
from safetensors.torch import save_file

import nodes


def said(model: Any, path: Path) -> list[str]:
    """The lines of Load LoRA Stack's report about signatures."""
    report = run_node(LoadLoraStack, model=model, lora_1=path.name)[3]
    return [line for line in report.splitlines() if " sign" in line]


def passport(path: Path) -> str:
    return run_node(LoraPassport, lora=path.name)[0]


def edit(path: Path, change: Callable[[dict[str, Any]], Any], data: bytes | None = None) -> None:
    """Do to a file's header, or its data, what another program would."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (raw[start:] if data is None else data))


def name_key(user: Path, name: str) -> None:
    user.mkdir(parents=True, exist_ok=True)
    (user / keys.NAME).write_text(name, "utf-8")


@pytest.mark.parametrize("style", ["comfyui", "kohya", "diffusers"])
def test_a_signed_file_loads_as_an_unsigned_one(user: Path, save, model, style: str) -> None:
    name_key(user, "ink@ada")
    (signed, report), (plain, _) = save("signed", format=style), save("plain", format=style, sign=False)
    key = fingerprint(ed25519.public_key(keys.secret(user)))
    assert f"signed as ink@ada ({key})" in report.splitlines()
    with_it, without = (
        nodes.LoraLoaderModelOnly().load_lora_model_only(model, each.name, 1.0)[0] for each in (signed, plain)
    )
    one, other = loaded(with_it), loaded(without)
    assert all(torch.equal(one[each], other[each]) for each in other)
    about = guard.inspect(signed).metadata
    assert about.keys() - guard.inspect(plain).metadata.keys() == {STATEMENT}
    assert said(model, signed) == ["signed: signed by ink@ada, unchanged"] and said(model, plain) == []


def test_the_passport_of_what_was_just_saved(user: Path, save, loras: Path) -> None:
    path, _ = save()
    assert run_node(LoraPassport, lora="None", lora_name=path.name)[0] == passport(path)
    assert "no LoRA file is chosen" in LoraPassport.validate_inputs("None")
    assert "gone" in LoraPassport.validate_inputs("gone.safetensors")
    assert LoraPassport.validate_inputs("None", input_types={"lora_name": "STRING"}) is True
    assert LoraPassport.fingerprint_inputs("None") != LoraPassport.fingerprint_inputs("None"), "it is read afresh"


def test_without_sign_nothing_is_made(user: Path, save) -> None:
    path, report = save(sign=False)
    assert not (user / keys.KEY).exists() and "sign" not in report
    assert "not signed" in passport(path)


def test_a_key_without_a_name_says_where_one_goes(user: Path, save, model) -> None:
    path, report = save()
    key = fingerprint(ed25519.public_key(keys.secret(user)))
    assert f"signed as {key}; write a name such as ink@ada into __lora_loom/signing_name.txt" in report
    assert said(model, path) == [f"ink: signed by {key}, unchanged"]


def test_what_was_changed_since_is_named(user: Path, save, model) -> None:
    name_key(user, "ink@ada")
    path, _ = save(author="Ada")
    edit(path, lambda header: header["__metadata__"].update({"modelspec.author": "Eve", "civitai": "1"}))
    assert said(model, path) == ["ink: signed by ink@ada, header changed since it was signed (civitai, author)"]
    text = passport(path)
    assert "ink: signed by ink@ada, header changed since it was signed (civitai, author)." in text
    assert "  civitai: added" in text and "  modelspec.author: changed" in text


def test_other_weights_and_other_names_are_warned_of(user: Path, save, model) -> None:
    path, _ = save()
    raw = path.read_bytes()
    other = bytearray(raw[8 + int.from_bytes(raw[:8], "little") :])
    other[5] ^= 1
    edit(path, lambda _: None, bytes(other))
    warning = "warning: ink: its signature is of other weights than are in the file; get the file from its author again"
    assert said(model, path) == [warning] and "Do not believe" in passport(path)
    path.write_bytes(raw)
    edit(path, swapped)
    assert said(model, path) == [warning]


def swapped(header: dict[str, Any]) -> None:
    """Two tensors of one shape under each other's names: the data are the same bytes."""
    by_shape: dict[str, str] = {}
    for name, entry in header.items():
        if name != "__metadata__" and (twin := by_shape.setdefault(str(entry["shape"]), name)) != name:
            header[name], header[twin] = header[twin], header[name]
            return


def test_broken_and_forged_signatures_are_warned_of(user: Path, save, model) -> None:
    path, _ = save()
    whole = guard.contents(path).metadata[STATEMENT]
    edit(path, lambda header: header["__metadata__"].update({STATEMENT: whole[:-1]}))
    assert said(model, path)[0].startswith("warning: ink: its signature cannot be read: its envelope is not JSON; get")
    envelope = json.loads(whole)
    signature = bytearray(b64decode(envelope["signatures"][0]["sig"]))
    signature[40] ^= 1
    envelope["signatures"][0]["sig"] = b64encode(signature).decode()
    text = json.dumps(envelope, separators=(",", ":"))
    edit(path, lambda header: header["__metadata__"].update({STATEMENT: text}))
    assert said(model, path)[0].startswith("warning: ink: its signature does not fit what it says; get")


def test_a_stranger_is_new_once_and_a_namesake_is_warned_of(user: Path, save, model, tmp_path, monkeypatch) -> None:
    name_key(user, "ink@ada")
    path, _ = save()
    ada = Signer(ed25519.public_key(keys.secret(user)), "ink@ada")
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "another machine"))
    assert said(model, path) == [f"ink: signed by {ada}, unchanged".replace(")", ", new to this machine)")]
    assert "signed by ink@ada, unchanged" in passport(path)
    name_key(folders.own_folder(), "INK@ada")
    (folders.own_folder() / keys.KNOWN).write_text(f"ed25519 {b64encode(bytes(32)).decode()} 2026-01-02 ink@ada\n")
    (line,) = said(model, path)
    assert line.startswith("warning: ink: signed as ink@ada, but with another key") and "2026-01-02" in line


def test_signing_again_keeps_the_hash_of_the_old_receipt(user: Path, save) -> None:
    path, _ = save()
    edit(path, lambda header: header["__metadata__"].update({"modelspec.title": "Other"}))
    old = receipt_hash(guard.contents(path).metadata[STATEMENT])
    save(overwrite=True, seed=1)
    found = opened(guard.contents(path).metadata[STATEMENT])
    assert found.predicate["replaces"] == [old] and f"replaces receipt: {old}" in passport(path)


def test_a_merge_keeps_the_hashes_of_receipts_and_carries_none(user: Path, save, model, loras: Path) -> None:
    name_key(user, "ink@ada")
    one, two = save("one")[0], save("two", seed=1, sign=False)[0]
    rows = [(one.name, 1.0, 1.0), (two.name, 0.5, 0.5)]
    made = run_node(MergeLora, model=model, lora_stack=rows, method="sum", rank=0, strengths="")[0]
    assert STATEMENT not in made.metadata
    merged = (
        loras / run_node(SaveLora, adapter=made, model=model, name="both", format="comfyui", dtype="fp32", sign=True)[0]
    )
    parents = opened(guard.contents(merged).metadata[STATEMENT]).predicate["parents"]
    assert [(each["name"], each["strength"]) for each in parents] == [("one", 1), ("two", 0.5)]
    assert parents[0]["signatures"] == {STATEMENT: receipt_hash(guard.contents(one).metadata[STATEMENT])}
    text = passport(merged)
    assert "Made of" in text and "  one: 1, , " in text and "yes" in text


@pytest.mark.skipif(os.name == "nt", reason="rights of files are those of POSIX")
def test_a_key_that_others_can_read_signs_nothing(user: Path, save, loras: Path) -> None:
    keys.secret(user)
    (user / keys.KEY).chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        save()
    assert list(loras.iterdir()) == []


def test_the_secret_is_nowhere_but_in_its_file(user: Path, save, model, tmp_path: Path, caplog, capfd) -> None:
    """Not in files, reports, logs, or pictures with their workflow."""
    path, report = save(preview=torch.zeros(1, 64, 64, 3), side_files=True)
    out = run_node(LoadLoraStack, model=model, lora_1=path.name)
    picture = tmp_path / "out"
    saver = nodes.SaveImage()
    saver.output_dir = str(picture)
    graph = {"1": {"class_type": "LoraLoom_SaveLora", "inputs": {"sign": True, "name": "ink"}}}
    noted = {"workflow": graph, "adapters": out[0].get_attachment("lora_loom_adapters")}
    saver.save_images(torch.from_numpy(np.zeros((1, 8, 8, 3), np.float32)), "x", graph, noted)
    seed = keys.secret(user)
    told = [report, passport(path), out[3], caplog.text, *capfd.readouterr()]
    files = [each for root in (tmp_path, path.parent) for each in root.rglob("*") if each.is_file()]
    assert any(each.suffix == ".png" for each in files) and user / keys.KEY in files
    texts = [text.encode() for text in told] + [each.read_bytes() for each in files if each != user / keys.KEY]
    for secret in (seed, seed.hex().encode(), b64encode(seed)[:40], b64encode(seed).rstrip(b"=")):
        assert not any(secret in text for text in texts)
    assert b64encode(seed) in (user / keys.KEY).read_bytes()


def test_the_tensors_of_a_file_are_listed_below_its_passport(user: Path, save) -> None:
    """Also of a file that is no LoRA; the page has the first of very many, folded."""
    path, _ = save()
    text, tensors = run_node(LoraPassport, lora=path.name)
    held = guard.contents(path).tensors
    assert tensors.splitlines()[0].startswith(f"# {len(held)} tensors in ") and "\t" not in text
    assert [line.split("\t")[0] for line in tensors.splitlines()[2:]] == list(held)
    table = page(path)["tables"][-1]
    assert table["title"] == "Tensors" and table["folded"] and len(table["lines"]) == len(held)
    save_file({f"layers.{n}.weight": torch.ones(1) for n in range(500)}, path)
    table = page(path)["tables"][-1]
    assert len(table["lines"]) == 200 and "500 left out; 300 more are in the output tensors" in table["note"]


def page(path: Path) -> dict[str, Any]:
    return json.loads(LoraPassport.execute(path.name).ui["lora_loom"][0])
