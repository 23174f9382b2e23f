"""Takedown lists, through the nodes: a listed LoRA and what was made of it is refused, unless a person overrules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from harness.calls import run_node
from harness.runs import train
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.trust.statement import STATEMENT, opened
from lora_loom.lora_core.trust.takedown_line import line, main
from lora_loom.nodes.bridge.host import picture_metadata, takedown
from lora_loom.nodes.bridge.host.lora_list import listed
from lora_loom.nodes.convert_lora import ConvertLora
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.merge_lora import MergeLora
from lora_loom.nodes.resize_lora import ResizeLora
from lora_loom.nodes.save_lora import SaveLora
from safetensors.torch import load_file, save_file

DAY = date(2026, 11, 30)
SECRET = bytes(range(32))
pytestmark = pytest.mark.usefixtures("runs")


@pytest.fixture
def folder() -> Iterator[Path]:
    """The folder of lists, which nothing is left of."""
    found = takedown.folder()
    found.mkdir(parents=True)
    yield found
    shutil.rmtree(found)


@pytest.fixture(scope="module")
def trained(models, data) -> Adapter:
    return train(models("wan_demo"), data, run_name="ink").adapter


@pytest.fixture
def other(models, trained: Adapter, random_adapter) -> Adapter:
    """One of the same size that has nothing to do with it."""
    found = random_adapter(models("wan_demo").model, 4)
    return found.scaled(trained.norm() / found.norm())


def stack(model: Any, rows: str) -> tuple[Any, ...]:
    return run_node(LoadLoraStack, model=model, rows=rows)


def save(adapter: Adapter, model: Any, name: str, format: str = "comfyui", sign: bool = False) -> Path:
    choices = {"format": format, "dtype": "fp16", "overwrite": True, "sign": sign}
    run_node(SaveLora, adapter=adapter, model=model, name=name, **choices)
    folder_paths.filename_list_cache.clear()
    return Path(folder_paths.get_full_path("loras", f"{name}.safetensors"))


def merged(model: Any, rows: str, *adapters: Adapter) -> Adapter:
    rows = stack(model, rows)[2]
    inputs = {"rank": 0, "strengths": "", "lora_stack": rows, "adapters": dict(enumerate(adapters))}
    return run_node(MergeLora, model=model, **inputs)[0]


def fault_of(name: str) -> str:
    return next(each for each in listed(60.0)["loras"] if each["name"] == name)["fault"]


def test_it_is_recognised_when_merged_resized_and_stripped(
    models, data, loras: Path, folder: Path, trained, other
) -> None:
    model = models("wan_demo").model
    ink = save(trained, model, "ink", sign=True)
    assert opened(guard.inspect(ink).metadata[STATEMENT]).signatures
    mix = merged(model, "<lora:ink:1>", other)
    save(mix, model, "mix")
    small = run_node(
        ResizeLora, model=model, lora_name="mix.safetensors", rank=4, energy=1.0, size_mb=0.0, strength=0.8,
        text_strength=1.0,
    )[0]  # fmt: skip
    tensors = load_file(save(small, model, "small", "kohya"))
    save_file(tensors, loras / "stripped.safetensors")
    save(other, model, "clean")
    assert guard.inspect(loras / "stripped.safetensors").metadata == {}
    text = line(ink, "style", "Ada", DAY, secret=SECRET)
    (folder / "community.jsonl").write_text(f"{text}\n", encoding="utf-8")
    folder_paths.filename_list_cache.clear()

    because = "imitates an artist who objects, says Ada since 2026-11-30"
    with pytest.raises(ValueError, match=f"^ink.safetensors {because}"):
        stack(model, "<lora:ink:1>")
    with pytest.raises(ValueError, match=f"mix.safetensors is made of ink, which {because}"):
        stack(model, "<lora:clean:1><lora:mix:0.1>")
    with pytest.raises(ValueError, match=r"stripped.safetensors looks like .* \(similarity 0\.[3-9]") as refused:
        stack(model, "<lora:stripped:1>")
    assert because in str(refused.value) and "overruled.txt" in str(refused.value) and "signed by" in str(refused.value)
    with pytest.raises(ValueError, match="stripped.safetensors looks like"):
        run_node(ConvertLora, model=model, lora="stripped.safetensors", rank=4, energy=1.0)
    with pytest.raises(ValueError, match=f"^ink.safetensors {because}"):
        train(models("wan_demo"), data, continue_from="ink.safetensors")
    assert stack(model, "<lora:clean:1><lora:stripped:0>")
    assert because in fault_of("ink.safetensors") and "is made of ink" in fault_of("mix.safetensors")
    assert not fault_of("clean.safetensors")


def test_what_a_person_overrules_is_written_down(models, loras: Path, folder: Path, trained, other) -> None:
    model = models("wan_demo").model
    text = line(save(trained, model, "ink"), "style", "Ada", DAY)
    before = LoadLoraStack.fingerprint_inputs(rows="<lora:ink:1>")
    (folder / "mine.jsonl").write_text(f"{text}\n", encoding="utf-8")
    listed_now = LoadLoraStack.fingerprint_inputs(rows="<lora:ink:1>")
    with pytest.raises(ValueError, match="not signed") as refused:
        stack(model, "<lora:ink:1>")
    entry = str(refused.value).partition("entry ")[2][:12]
    (folder / "overruled.txt").write_text(f"{entry} I am Ada\n", encoding="utf-8")
    assert LoadLoraStack.fingerprint_inputs(rows="<lora:ink:1>") not in (before, listed_now) and before != listed_now

    patched, _, _, report, _ = stack(model, "<lora:ink:1>")
    assert "overruled here: ink imitates an artist who objects, says Ada since 2026-11-30" in report
    assert f"(takedown list mine.jsonl, entry {entry}, not signed)" in report
    told = {"entry": entry, "reason": "style", "issuer": "Ada", "date": "2026-11-30", "list": "mine.jsonl"}
    assert picture_metadata.attached(patched)[-1]["overruled"] == [told]
    made = json.loads(merged(model, "<lora:ink:1>", other).metadata["lora_loom.merge"])
    assert made["overruled"] == [{"name": "ink", **told}]
    assert not fault_of("ink.safetensors")


def test_the_line_of_a_file(models, loras: Path, trained, capsys: pytest.CaptureFixture[str]) -> None:
    model = models("wan_demo").model
    ink, kohya = save(trained, model, "ink"), save(trained, model, "k", "kohya")
    assert main([str(ink), "--reason", "style", "--issuer", "Ada"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"data_sha256", "content_sha256", "sketch", "reason", "date", "issuer"}
    assert main([str(kohya), "--reason", "style", "--issuer", "Ada", "--keys", str(loras)]) == 0
    printed = capsys.readouterr()
    assert "sketch" not in json.loads(printed.out) and "signature" in json.loads(printed.out)
    assert "no sketch" in printed.err
    with pytest.raises(SystemExit):
        main([str(ink), "--reason", "style", "--issuer", "a\nb"])
    assert "plain text" in capsys.readouterr().err
