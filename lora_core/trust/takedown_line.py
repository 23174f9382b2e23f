"""Writes the line of a takedown list for a LoRA file. From the pack's folder, in ComfyUI's Python:

python -m lora_core.trust.takedown_line ink.safetensors --reason style --issuer "Ada" >> my_list.jsonl
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

from ..adapter import TEXT_PREFIX
from ..files import formats, guard
from ..files.hashes import data_hash
from ..files.lineage import CONTENT
from . import keys, sketches, takedown_entry

_OWN = ("diffusion_model.", TEXT_PREFIX)  # how ComfyUI's own names of layers begin


def line(path: Path, reason: str, issuer: str, day: date, expires: str = "", secret: bytes | None = None) -> str:
    """Return the line, with a sketch where the file has ComfyUI's own names of layers; signed where there is a secret
    of 32 bytes. Raises ValueError for a file that is no LoRA, or what `takedown_entry.write` refuses."""
    adapter = formats.read(path)
    named = all(name.startswith(_OWN) for name in (*adapter.layers, *adapter.others))
    said = {
        "data_sha256": data_hash(path),
        "content_sha256": guard.inspect(path).metadata.get(CONTENT, ""),
        "sketch": sketches.to_text(sketches.sketch(adapter)) if named else "",
        "reason": reason,
        "date": day.isoformat(),
        "expires": expires,
        "issuer": issuer,
    }
    return takedown_entry.write(said, secret)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="takedown_line", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("file", type=Path, help="the LoRA, as Save LoRA writes it in the comfyui format")
    parser.add_argument("--reason", required=True, help=", ".join(takedown_entry.REASONS))
    parser.add_argument("--issuer", required=True, help="who says so, in a few words")
    parser.add_argument("--expires", default="", help="the last day on which it holds, such as 2027-11-30")
    parser.add_argument("--keys", type=Path, help="the folder of the key to sign with: user/__lora_loom of ComfyUI")
    asked = parser.parse_args(arguments)
    try:
        secret = keys.secret(asked.keys) if asked.keys else None
        made = line(asked.file, asked.reason, asked.issuer, date.today(), asked.expires, secret)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if '"sketch"' not in made:
        sys.stderr.write("no sketch: the layers have other names than ComfyUI's; save it anew in the comfyui format\n")
    sys.stdout.write(f"{made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
