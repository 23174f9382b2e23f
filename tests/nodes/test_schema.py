"""Checks what every node shows to the world, and the part of it that saved workflows depend on.

After a change that is meant: python -m pytest tests/nodes/test_schema.py --write-contract
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from harness.calls import pack_nodes
from harness.comfyui import ROOT
from lora_loom.nodes.types import CATEGORY

import nodes

CONTRACT = ROOT / "tests" / "contract" / "object_info.json"
NODE_LIST = ROOT / "node_list.json"
GROUPS = {"train", "use", "merge", "measure"}
FILE_LISTS = {
    "lora",
    "lora_1",
    "lora_2",
    "lora_3",
    "lora_4",
    "model_name",
    "clip_name",
    "vae_name",
    "run",
}  # their options are this machine's files
HOLDER = "LoraLoom_ConvertLora"  # its definition has the list of files, and the page copies it into the others
NODES = {node.GET_SCHEMA().node_id: node for node in pack_nodes()}


@pytest.fixture(params=NODES.values(), ids=NODES.keys())
def node(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_ids() -> None:
    assert all(name.startswith("LoraLoom_") for name in NODES)
    assert len(NODES) == len(pack_nodes())


def test_inputs_are_the_parameters_of_execute(node: Any) -> None:
    parameters = inspect.signature(node.execute).parameters
    assert [field.id for field in node.GET_SCHEMA().inputs] == sorted(parameters, key=_order(node))
    for field in node.GET_SCHEMA().inputs:
        default = parameters[field.id].default
        assert field.optional == (default is not inspect.Parameter.empty), field.id
        if field.optional and getattr(field, "default", None) is not None:
            assert default == field.default, f"{field.id}: a graph without this input must get what the widget shows"


def _order(node: Any):
    ids = [field.id for field in node.GET_SCHEMA().inputs]
    return lambda name: ids.index(name) if name in ids else len(ids)


def test_validation_and_fingerprint_know_the_inputs(node: Any) -> None:
    ids = {field.id for field in node.GET_SCHEMA().inputs}
    for method in (node.validate_inputs, node.fingerprint_inputs):
        named = [p.name for p in inspect.signature(method).parameters.values() if p.kind is not p.VAR_KEYWORD]
        assert set(named) - {"input_types"} <= ids, "ComfyUI tells the types of links by that name"


def test_every_input_and_output_is_explained(node: Any) -> None:
    schema = node.GET_SCHEMA()
    assert schema.display_name and schema.description and schema.category
    for field in (*schema.inputs, *schema.outputs):
        assert field.tooltip and field.tooltip.strip().endswith((".", "!", "?")), field


def test_no_core_node_has_the_same_id() -> None:
    core = [name for name, node in nodes.NODE_CLASS_MAPPINGS.items() if node not in NODES.values()]
    assert not set(NODES) & set(core)


def test_object_info_contract(request: pytest.FixtureRequest) -> None:
    """Ids, names, order, types and defaults are frozen: workflows saved with this version must go on to load."""
    now = {name: contract(node.GET_NODE_INFO_V1()) for name, node in NODES.items()}
    if request.config.getoption("--write-contract", default=False):
        write(CONTRACT, now)
    assert now == json.loads(CONTRACT.read_text(encoding="utf-8"))


def test_the_list_of_files_is_told_once(loras: Path) -> None:
    """And before the definitions that ask for it, which the front end completes in this order."""
    (loras / "only_one.safetensors").touch()
    told = {name: json.dumps(node.GET_NODE_INFO_V1()) for name, node in NODES.items()}
    assert [name for name, text in told.items() if "only_one" in text] == [HOLDER] and told[HOLDER].count(
        "only_one"
    ) == 1
    asking = {name: text.count('"lora_files": true') for name, text in told.items() if '"lora_files"' in text}
    once = ("TrainLora", "ResizeLora", "Passport", "ChangeFormat", "Health")
    one_each = dict.fromkeys((f"LoraLoom_{name}" for name in once), 1)
    assert asking == {"LoraLoom_LoadLoraStack": 4, **one_each}
    assert list(NODES).index(HOLDER) < min(list(NODES).index(name) for name in asking)


@pytest.mark.parametrize("field", ["lora_1", "lora_4", "continue_from", "lora_name", "lora"])
def test_a_name_that_is_not_in_the_list_is_refused_in_our_words(loras: Path, field: str) -> None:
    """ComfyUI leaves a field to the node that names it; its own check would know the definition's list alone."""
    (loras / "ink_wash.safetensors").touch()
    asking = [each for each in NODES.values() if field in inspect.signature(each.validate_inputs).parameters]
    refused = [node.validate_inputs(**{field: "ink_wosh.safetensors"}) for node in asking]
    assert refused and all("similar names: ink_wash.safetensors" in each for each in refused)


def test_node_list_of_the_manager(request: pytest.FixtureRequest) -> None:
    """ComfyUI-Manager's scanner reads {node id: description} from node_list.json; entry points like ours it cannot."""
    now = {name: node.GET_SCHEMA().description for name, node in NODES.items()}
    if request.config.getoption("--write-contract", default=False):
        write(NODE_LIST, now)
    assert now == json.loads(NODE_LIST.read_text(encoding="utf-8"))


def test_menus() -> None:
    """The nodes lie in four menus, by what a person is about to do."""
    menus = {node.GET_SCHEMA().category for node in NODES.values()}
    assert menus == {f"{CATEGORY}/{group}" for group in GROUPS}


def contract(info: dict[str, Any]) -> dict[str, Any]:
    return {
        "inputs": [
            {"kind": kind, "name": name, **frozen(name, *info["input"][kind][name])}
            for kind in ("required", "optional") for name in info["input_order"].get(kind, [])
        ],
        "outputs": [{"name": n, "type": kind} for n, kind in zip(info["output_name"], info["output"], strict=True)],
        "output_node": info["output_node"],
    }  # fmt: skip


def frozen(name: str, kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    found = {"type": kind, **{key: options[key] for key in ("default", "min", "max") if key in options}}
    if kind == "COMBO" and name not in FILE_LISTS:
        found["options"] = options["options"]
    if "template" in options:
        found["template"] = frozen(name, *next(iter(options["template"]["input"]["required"].values())))
        found |= {key: options["template"][key] for key in ("prefix", "names") if key in options["template"]}
    return found


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
