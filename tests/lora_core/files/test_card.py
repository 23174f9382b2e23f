"""Checks what the picker is told of a file: from its header alone, whatever is in it."""

from __future__ import annotations

import json
from base64 import b64encode
from io import BytesIO
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.files import card
from lora_loom.lora_core.files.faults import UnreadableFileError
from PIL import Image
from safetensors.torch import save_file

LAYER = "lora_unet_double_blocks_0_img_attn_qkv"


def write(path: Path, **metadata: str) -> Path:
    tensors = {f"{LAYER}.lora_down.weight": torch.ones(2, 3072), f"{LAYER}.lora_up.weight": torch.ones(9216, 2)}
    save_file(tensors, path, {key.replace("__", "."): value for key, value in metadata.items()})
    return path


def image(color: str, kind: str = "PNG") -> bytes:
    out = BytesIO()
    Image.new("RGB", (800, 400), color).save(out, kind)
    return out.getvalue()


def color(data: bytes | None) -> tuple[int, ...]:
    assert data is not None
    found = Image.open(BytesIO(data))
    assert found.format == "JPEG" and max(found.size) == 512
    return tuple(round(value / 255) for value in found.getpixel((10, 10)))


def test_told(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.safetensors",
        modelspec__title="<b>Ink</b>", modelspec__trigger_phrase="sks, ink", modelspec__author="Ada",
        modelspec__license="CC0-1.0", ss_base_model_version="flux1", modelspec__usage_hint="0.8 " * 100,
    )  # fmt: skip
    told = card.read(path).to_dict()
    assert told["title"] == "<b>Ink</b>" and told["words"] == ("sks", "ink") and told["family"].startswith("FLUX.1")
    assert (told["author"], told["license"], told["fault"], told["picture"]) == ("Ada", "CC0-1.0", "", False)
    assert len(told["hint"]) == 240 and json.dumps(told)


def test_a_broken_file_has_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"<html>")
    assert "a.safetensors" in card.read(tmp_path / "a.safetensors").fault
    assert card.picture(tmp_path / "a.safetensors") is None
    with pytest.raises(UnreadableFileError):
        card.read(tmp_path / "gone.safetensors")


def test_pictures_in_the_header_and_beside(tmp_path: Path) -> None:
    red, blue = (b64encode(image(name)).decode() for name in ("red", "blue"))
    both = {"modelspec__thumbnail": f"data:image/png;base64,{red}", "ssmd_cover_images": json.dumps([blue])}
    assert color(card.picture(write(tmp_path / "a.safetensors", **both))) == (1, 0, 0)
    assert color(card.picture(write(tmp_path / "b.safetensors", ssmd_cover_images=json.dumps([blue])))) == (0, 0, 1)
    assert card.read(tmp_path / "b.safetensors").picture
    (tmp_path / "b.preview.png").write_bytes(image("lime"))
    assert color(card.picture(tmp_path / "b.safetensors")) == (0, 1, 0)


@pytest.mark.parametrize(
    "cover", ["", "[", "[1]", '["%%%"]', json.dumps([b64encode(b"<svg onload=alert(1)>").decode()]), "[" * 100_000]
)
def test_what_is_no_picture_is_not_sent(tmp_path: Path, cover: str) -> None:
    path = write(tmp_path / "a.safetensors", ssmd_cover_images=cover, modelspec__thumbnail="data:text/html;base64,PGI+")
    assert card.picture(path) is None
