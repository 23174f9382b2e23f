"""The layers of a file under the names of another format, without the model: by the family's published sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from ....lora_core.adapter import Adapter, layers_of
from ....lora_core.families.loose_names import is_text
from ....lora_core.families.signs import guess, named, takes
from ....lora_core.families.table import Family
from ....lora_core.files.bundled import kept_line
from ....lora_core.files.hashes import content_hash
from ....lora_core.files.lineage import CONTENT, Parent
from ....lora_core.kinds import DoRA
from ..host import takedown
from ..host.embeddings import save_apart
from ..host.folders import file_for, lora_path, loras_folder
from ..host.lora_files import read_lora
from ..host.model_files import lora_hash
from ..host.progress import Progress
from ..host.wires import Clip, Model
from ..model.names import NameTable, Resolved, names_of
from .provenance import described
from .published import PUBLISHED, Published, bare
from .save import DTYPES, STYLES, save_proven

AUTO, SAME = "auto", "as it is"
EMBEDDINGS = ("keep", "save apart", "leave out")
FAMILIES = tuple(dict.fromkeys(row.family for row in PUBLISHED))
_NETWORK = ("ss_network_module", "ss_network_args", "ss_network_dim", "ss_network_alpha")


@dataclass(frozen=True)
class Named:
    """Says what the layers of a file are: in ComfyUI's names, and in which network."""

    family: str
    resolved: Resolved
    model: Model
    clip: Clip | None
    table: NameTable

    @property
    def lost(self) -> tuple[str, ...]:
        return (*self.resolved.unmatched, *(misfit.name for misfit in self.resolved.misfits))


def rename(
    name: str, template: str, style: str, dtype: str = SAME, family: str = AUTO, overwrite: bool = False,
    embeddings: str = "keep",
) -> tuple[str, str]:  # fmt: skip
    """Write the file in another format below the first loras folder; return its name in lists and a report.

    Raises ValueError for a file that cannot be told, that the family's networks do not hold whole, or that the format
    cannot contain.
    """
    path = lora_path(name)
    file = read_lora(path)
    found = told(file, path.name, family)
    adapter = found.resolved.adapter
    verdict = takedown.checked(name, file, adapter)
    _check(path.name, adapter, style)
    made = replace(_headed(name, file, found, style), embeddings=adapter.embeddings if embeddings == "keep" else {})
    target = file_for(template, {"name": path.stem, "format": style, "rank": made.rank()}, overwrite)
    made = replace(made, metadata={**made.metadata, "ss_output_name": target.stem, CONTENT: content_hash(made)})
    kind, progress = _dtype(file, dtype), Progress(len(made.layers) + len(made.others))
    saved, proof = save_proven(made, target, STYLES[style], kind, found.model, found.clip, progress.update)
    written = next(each for each, one in DTYPES.items() if one == kind)
    lines = [f"{target.name}: {saved.size / 1e6:.2f} MB, {style}, {written}"]
    lines += [f"{path.stem}: {layers_of(made)}, for {found.family}", *verdict.lines(path.stem)]
    lines += [kept_line(made.embeddings)] if made.embeddings else []
    lines += save_apart(adapter.embeddings, overwrite) if embeddings == "save apart" else []
    return str(target.relative_to(loras_folder())), "\n".join([*lines, str(proof)])


def _headed(name: str, file: Adapter, found: Named, style: str) -> Adapter:
    """The layers with what is still true of the file's header, and the file as their parent."""
    adapter, stem = found.resolved.adapter, lora_path(name).stem
    parent = Parent.of(stem, file.metadata, 1.0, 1.0, lora_hash(name, Progress(1)))
    how, spelled = {"method": "rename", "format": style}, _spelled(file, found.table.family)
    header = described(adapter.low_ranks(), [parent], [file.metadata], spelled, how).metadata
    kept = {key: file.metadata[key] for key in _NETWORK if key in file.metadata}
    return replace(adapter, metadata={**header, **kept})


def told(file: Adapter, source: str, family: str = AUTO) -> Named:
    """Return what a file is, by its layers and header, or as one of a `family`. Raises ValueError when it fits none of
    its networks whole, or several that call their layers differently."""
    families = (family,) if family != AUTO else _families(file)
    rows = [row for row in PUBLISHED if row.family in (families or FAMILIES)]
    tried = list(_fitting(file, source, rows))
    if not tried:
        of = f"published size of {named(families)}" if families else "model whose size is known"
        raise ValueError(f"{source} fits no {of}, so its layers cannot be named without the model; {_CURE}")
    best = min(tried, key=lambda each: len(each.lost))
    if best.lost:
        raise ValueError(_losing(source, best))
    whole = [each.family for each in tried if not each.lost]
    if strange := [each for each in whole if not takes(best.family, (each,))]:
        both = named((best.family, *dict.fromkeys(strange)))
        raise ValueError(f"{source} may be for {both}, which call their layers differently; choose its family")
    return best


_CURE = "load it with Resize LoRA and its model, and save it with Save LoRA"


def _losing(source: str, best: Named) -> str:
    text = [name for name in best.lost if is_text(name)]
    if text and best.clip is None:
        return f"{source}: {len(text)} layers are of a text encoder, for example {text[0]}, which is not known; {_CURE}"
    return (
        f"{source}: {len(best.lost)} layers are not in {best.family}, for example {best.lost[0]}, and would "
        f"be lost; choose its family, or {_CURE}"
    )


def _families(file: Adapter) -> tuple[str, ...]:
    shapes = {name: tuple(change.shape) for name, change in file.layers.items()}
    shapes |= {name: tuple(items[0].shape) for name, items in file.others.items()}
    return guess(shapes, file.metadata)


def _fitting(file: Adapter, source: str, rows: Sequence[Published]) -> Iterator[Named]:
    has_text = any(map(is_text, (*file.layers, *file.others)))
    for row in rows:
        model, text = bare(row)
        mine, clip = cast(Model, model), cast(Clip, text) if has_text and text else None
        table = names_of(mine, clip)
        try:
            yield Named(row.family, table.resolve(file, source), mine, clip, table)
        except ValueError:  # of another size
            continue


def _check(source: str, adapter: Adapter, style: str) -> None:
    dora = [name for name, items in adapter.others.items() if any(isinstance(item, DoRA) for item in items)]
    if dora and STYLES[style] == "peft":
        raise ValueError(
            f"{source} has DoRA on {len(dora)} layers, whose magnitudes in the diffusers format depend on the weights "
            "of the model; save it with Save LoRA, or choose another format"
        )


def _spelled(file: Adapter, family: Family) -> tuple[str, str]:
    """The base as the header names it, or else as the layers tell it."""
    said = file.metadata.get("modelspec.architecture", "").partition("/")[0], file.metadata.get("ss_base_model_version")
    return said[0] or family.architecture, said[1] or family.base_version


def _dtype(file: Adapter, dtype: str) -> torch.dtype:
    """The type of the file; fp32 for one of several, fp16 for fp8, which it holds exactly."""
    if dtype != SAME:
        return DTYPES[dtype]
    plain = (factor for layer in file.layers.values() for factor in (layer.lora_A, layer.lora_B))
    others = (tensor for items in file.others.values() for item in items for tensor in item.tensors())
    found = {tensor.dtype for tensor in (*plain, *others)}
    return found.pop() if len(found) == 1 else torch.float32
