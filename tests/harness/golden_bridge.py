"""As `golden`, of what needs ComfyUI: identities and notes of runs, what hangs beside weights, and what was encoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import comfy.ops
import torch
from lora_loom.lora_core.stack.chain import Step
from lora_loom.lora_core.training.start import Start
from lora_loom.lora_core.training.validation import Pictures
from lora_loom.nodes.bridge.host import picture_metadata
from lora_loom.nodes.bridge.host.folders import run_folder
from lora_loom.nodes.bridge.host.progress import Progress
from lora_loom.nodes.bridge.model.sampling import Sampling
from lora_loom.nodes.bridge.model.spans import Timed
from lora_loom.nodes.bridge.stack.apply_chain import KindPatch
from lora_loom.nodes.bridge.stack.bypass_injection import Beside, contents
from lora_loom.nodes.bridge.stack.carried import carried
from lora_loom.nodes.bridge.training import prepare
from lora_loom.nodes.bridge.training.header_facts import run_facts
from lora_loom.nodes.bridge.training.order import Run, Sources
from lora_loom.nodes.bridge.training.previews import PreparedPreviews, Previews
from torch import Tensor, nn

from harness.golden import IDENTITY, NAME, OPTIONS, RECIPES, corrections, dataset, low_rank, numbers, parent

KEYS_OF_BRIDGE = "keys_of_bridge.json"
ENCODER = "golden encoder"
CONTENT = [{"l": [[(49406, 1.0), (7, 1.1)]]}, numbers(2, 3), None, True, "a caption"]


def encoded() -> list[Any]:
    """CONDITIONING."""
    return [[numbers(1, 2, 3), {"pooled_output": numbers(1, 3), "guidance": 3.5}]]


def shown() -> dict[str, PreparedPreviews]:
    """Previews made ready, by what is special in them."""
    sampling, rows = Sampling(64, 96, 3, 2.5, "euler_ancestral", "simple", 11), (("a sks", "a cat"), ("sks, a 'tree'",))
    return {
        "all chosen": PreparedPreviews(Previews(sampling, ("a sks", "a 'tree'"), "dull\nand", 2, 0.75), rows, {}, None),
        "as it comes": PreparedPreviews(Previews(Sampling(512, 512)), (("sks",),), {}, None),
    }


def patcher(patches: Mapping[str, Any]) -> comfy.model_patcher.ModelPatcher:
    """Return a MODEL of one layer and what it is patched with."""
    model = nn.ModuleDict({"a": comfy.ops.disable_weight_init.Linear(4, 3)})
    model.a.weight.data, model.a.bias.data = numbers(3, 4), numbers(3)
    made = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    made.add_patches(patches, 1.0)
    return made


def beneath(printed: bool) -> dict[str, list[dict[str, Any]]]:
    """Return what a run knows of corrections that its MODEL carries; `printed` is what it knew in version 0.1.0, which
    had nothing for a function that stays the same."""
    found = {name: each for name, each in corrections().items() if name != "placed, turned" or not printed}
    patches = {name: KindPatch(set(), (each, 0.5, tuple(each.tensors()))) for name, each in found.items()}
    return {name: carried(patcher({"a.weight": patch}), None, printed) for name, patch in patches.items()}


def beside(span: tuple[float, float]) -> str:
    """Return what is known of corrections that hang beside a weight."""
    steps = [Step((low_rank(), low_rank(2))), *(Step(corrections()[name], 0.5) for name in ("loha", "dora", "placed"))]
    made = patcher({})
    Beside(made, {"a.weight": [Timed(step, span) for step in steps]}).attach(made, "golden")
    (text,) = contents(made)
    return text


def sources(trio: Any) -> Sources:
    return Sources(trio.model, trio.clip, trio.vae, dataset())


def data_set(trio: Any) -> dict[str, Any]:
    """Return what a header tells of the data set, but for what later versions added."""
    facts = run_facts(replace(sources(trio), dataset=dataset(OPTIONS)), RECIPES["as it comes"], Run(), Progress(1))
    found = json.loads(facts.settings)["dataset"]
    return {name: value for name, value in found.items() if name not in ("root", "count", "reserved")}


def told(trio: Any) -> dict[str, Any]:
    """Identities, hashes and texts; `trio` are models of SD 1.5."""
    found = sources(trio)
    begun = replace(found, start=Start(parent(), "ab" * 32, {}, True, 4))
    pictures = {name: Pictures(found.dataset, recipe) for name, recipe in RECIPES.items()}
    return {
        "identities": {n: prepare.identity(recipe, found, IDENTITY, pictures[n]) for n, recipe in RECIPES.items()},
        "settings": {n: prepare.settings(recipe, found, IDENTITY, pictures[n]) for n, recipe in RECIPES.items()},
        "continued": prepare.identity(RECIPES["as it comes"], begun, IDENTITY, pictures["as it comes"]),
        "settings of continued": prepare.settings(RECIPES["as it comes"], begun, IDENTITY, pictures["as it comes"]),
        "data set": data_set(trio),
        "picture": [picture_metadata.KEY, picture_metadata.HASHES],
        "folder": run_folder(NAME, IDENTITY).name,
        "previews": {name: each.note() for name, each in shown().items()},
        "beneath": beneath(printed=True),
        "beneath, by bytes": beneath(printed=False),
        "beside": [beside((0.0, 1.0)), beside((0.0, 0.5))],
    }


def same(one: Any, other: Any) -> bool:
    """Compare nests of tensors."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
