"""Credits as text and as XMP, whatever names people have."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import torch
from lora_loom.lora_core.files.side_files import Told
from lora_loom.lora_core.stack.attribution import entry
from lora_loom.lora_core.stack.credit import SOURCE, credits, is_ours, xmp
from lora_loom.lora_core.stack.regions import Region
from lora_loom.lora_core.stack.rows import Row

INK = entry(Row("styles/ink.safetensors", 0.8, 0.8), {"modelspec.author": "Ada", "modelspec.license": "MIT"}, "ab" * 32)
SAYS = {"author": "bob", "permissions": "no commercial use"}
CIVITAI = Told(SAYS, {"author": "Civitai Helper", "permissions": "rgthree"})
OIL = entry(Row("oil.safetensors", 1.0, 1.0), {"modelspec.title": "Oil"}, "cd" * 32, CIVITAI)


def test_a_line_and_a_list() -> None:
    assert credits([]) == ""
    assert credits([INK, INK]) == "LoRAs: ink by Ada (strength 0.8; MIT)"
    assert credits([INK, OIL], "markdown") == (
        "- **ink** by Ada (strength 0.8; MIT)\n"
        "- **Oil** by bob (as Civitai Helper says) (strength 1; no commercial use, as rgthree says)"
    )


def test_a_mask_is_told_by_its_share_of_the_picture() -> None:
    region = Region.of(torch.tensor([[1.0, 1.0, 0.0]]), 1)
    half = entry(Row("ink", 0.8, 0.8, mask=1, region=region), {}, "ab" * 32)
    assert half["area"] == 0.6667 and credits([half]) == "LoRAs: ink (strength 0.8 on 67 % of the picture)"


def test_side_files_say_only_what_the_header_does_not() -> None:
    header = {"modelspec.author": "Ada", "modelspec.license": "MIT"}
    found = entry(Row("a", 1.0, 1.0), header, "ab" * 32, CIVITAI)
    assert found["author"] == "Ada" and not {"source", "permissions"} & found.keys()
    assert OIL["source"] == dict(CIVITAI.source) and OIL["author"] == "bob"


@pytest.mark.parametrize("author", ["Ada", 'Åsa & "Bo" <b>', "O'Neil\\x", "墨\n\x00", "\ud800", "{0}"])
def test_xmp_is_xml_that_json_spells_as_it_is(author: str) -> None:
    packet = xmp([{**INK, "author": author}])
    assert json.dumps(packet) == f'"{packet}"' and packet.isascii() and is_ours(packet)
    found = ElementTree.fromstring(packet)
    texts = [element.text for element in found.iter() if element.text]
    assert texts[0] == SOURCE and texts[1].startswith("LoRAs: ink by ")
    assert not is_ours("<x/>") and not is_ours(None)
