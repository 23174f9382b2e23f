"""The shipped templates: their files, the front end's Templates dialog and search, both renderers, and a run of each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from demo import shapes, templates
from demo.templates import (
    CONCEPTS,
    EDIT,
    FILES,
    FOLDER,
    HEALTH,
    JUDGE,
    KANDINSKY,
    MERGE,
    PREFERENCE,
    PUBLISH,
    REGIONS,
    SLIDER,
    STACK,
    TRAIN,
    TRAIN_CHECKPOINT,
    TRAIN_DISTILLED,
    WUERSTCHEN,
)
from harness.browser import FrontEnd
from harness.server import ComfyServer, Graph
from harness.workflow_api import workflow_to_api
from lora_loom.lora_core.files import guard
from lora_loom.lora_core.trust.contract import contract_of
from lora_loom.lora_core.trust.statement import STATEMENT
from PIL import Image
from playwright.sync_api import Browser, Locator
from safetensors.torch import save_file

from e2e.template_graphs import GRAPHS
from e2e.template_nodes import MODELS, address

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
ids = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem.split(" - ")[0])


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


# -- the files ---------------------------------------------------------------------------------------------------------


def test_each_has_a_name_that_every_system_takes_and_no_more_are_there() -> None:
    assert {path.stem for path in WORKFLOWS} == set(GRAPHS)
    assert all(re.fullmatch(r"\w[\w ,.-]{2,58}\w", name, re.ASCII) for name in GRAPHS)


@ids
def test_thumbnail(path: Path) -> None:
    """Square, as the cards of the Templates dialog are, and quick to load."""
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and picture.size == (440, 440)
    assert path.with_suffix(".jpg").stat().st_size < 60_000


@ids
def test_origin_of_every_node_and_where_its_model_is_had(path: Path) -> None:
    for node in load(path)["nodes"]:
        assert node["properties"]["cnr_id"] == ("lora-loom" if node["type"].startswith("LoraLoom_") else "comfy-core")
        assert node["properties"]["ver"]
        named = [value for value in node.get("widgets_values", []) if str(value).endswith(".safetensors")]
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == named
        assert all((m["directory"], m["url"]) == (MODELS[m["name"]][0], address(m["name"])) for m in models)


@ids
def test_the_note_says_what_to_do_where_a_file_or_folder_is_missing(path: Path) -> None:
    nodes = load(path)["nodes"]
    (said,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    kinds = {node["type"] for node in nodes}
    folders = {f"models/{model['directory']}" for node in nodes for model in node["properties"].get("models", [])}
    folders |= {"models/loras"} if kinds & {"LoraLoom_LoadLoraStack", "LoraLoom_TrainLora"} else set()
    folders |= {"ComfyUI's input folder"} if "LoraLoom_Dataset" in kinds else set()
    assert "file is missing?" in said and [folder for folder in folders if folder not in said] == []


def test_all_is_left_on_auto_and_nothing_costs_time_unasked(server: ComfyServer) -> None:
    for name in (TRAIN_CHECKPOINT, TRAIN, PUBLISH, PREFERENCE, CONCEPTS, TRAIN_DISTILLED, SLIDER):
        graph = workflow_to_api(load(ROOT / "workflows" / f"{name}.json"), server.object_info)
        by_type = {node["class_type"]: node["inputs"] for node in graph.values()}
        train = by_type["LoraLoom_TrainLora"]
        assert (train["rank"], train["alpha"], train["learning_rate"], train["targets"]) == (0, 0, 0, "auto")
        assert (train["preservation"], train["gradient_checkpointing"], train["memory"]) == (0, True, "auto")
        assert name == PUBLISH or {"LoraLoom_Previews", "LoraLoom_Validation", "LoraLoom_SaveLora"} < set(by_type)


# -- run ---------------------------------------------------------------------------------------------------------------


def quick(graph: Graph) -> Graph:
    """The demo's values with as few steps as will do, and what the templates leave on auto left on it."""
    for node in graph.values():
        if node["class_type"] == "LoraLoom_TrainLora":
            node["inputs"] |= {
                "steps": 2,
                "save_every": 1,
                "rank": 0,
                "alpha": 0.0,
                "learning_rate": 0.0,
                "targets": "auto",
            }
            node["inputs"] |= {"preservation": 0.0, "preserve": ""}
        elif "sampler_name" in node["inputs"]:
            node["inputs"]["steps"] = 2
    return graph


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> None:
    """The data set, and the two LoRAs that the demo's stack names, both made with the templates that train."""
    for kind, name in (("heart", TRAIN), ("arrow", TRAIN_CHECKPOINT)):
        shapes.write_dataset(server.base / "input" / templates.FOLDER / kind, kind, 4, 96, 0)
        graph = quick(templates.api_graph(server, name))
        for node in graph.values():
            if node["class_type"] == "LoraLoom_Dataset":
                node["inputs"] |= {"folder": f"{templates.FOLDER}/{kind}", "trigger": kind}
            if node["class_type"] == "LoraLoom_SaveLora":
                node["inputs"]["name"] = f"{templates.FOLDER}/{kind}"
        outputs = server.run(graph)["outputs"]
        (sheet,) = [key for key, node in graph.items() if node["class_type"] == "PreviewImage"]
        assert outputs[sheet]["images"], "the last previews"


def test_what_is_published_is_tested_signed_and_shown(server: ComfyServer, files: None) -> None:
    graph = quick(templates.api_graph(server, PUBLISH))
    for node in graph.values():
        if node["class_type"] == "LoraLoom_Contract":
            node["inputs"] |= {"concept": "hearts", "author": "Ada", "license": "CC-BY-4.0", "own_work": True}
        if node["class_type"] == "LoraLoom_SaveLora":
            node["inputs"]["name"] = "published"
    outputs = server.run(graph)["outputs"]
    file = server.base / "models" / "loras" / "published.safetensors"
    contract = contract_of(header := guard.inspect(file).metadata)
    assert (contract.concept, contract.author, contract.licence) == ("hearts", "Ada", "CC-BY-4.0")
    assert contract.pictures.count == 4 and set(contract.tested.leakage) == {"neutral", "without the trigger"}
    assert STATEMENT in header and STATEMENT not in json.dumps(graph)
    (shown,) = [out["text"] for key, out in outputs.items() if graph[key]["class_type"] == "LoraLoom_Passport"]
    assert "unchanged since it was signed" in shown[0] and "hearts" in shown[0]
    for node in graph.values():
        node["inputs"] |= {"author": "Eve"} if node["class_type"] == "LoraLoom_Contract" else {}
    again = server.run(graph)
    (cached,) = [told["nodes"] for kind, told in again["status"]["messages"] if kind == "execution_cached"]
    assert {graph[key]["class_type"] for key in set(graph) - set(cached)} == {
        "LoraLoom_Contract", "LoraLoom_SaveLora", "LoraLoom_Passport",
    }  # fmt: skip
    assert contract_of(guard.inspect(file).metadata).author == "Eve", "only saving is repeated"


def test_liked_and_disliked_pictures_make_a_lora(server: ComfyServer) -> None:
    for side, seed in (("liked", 1), ("disliked", 2)):
        shapes.write_dataset(server.base / "input" / templates.FOLDER / side, "heart", 4, 96, seed)
    graph = quick(templates.api_graph(server, PREFERENCE))
    (pairs,) = [node["inputs"] for node in graph.values() if node["class_type"] == "LoraLoom_PreferencePairs"]
    for side in ("liked", "disliked"):
        graph[pairs[side][0]]["inputs"] |= {"folder": f"{templates.FOLDER}/{side}", "trigger": "heart"}
    for node in graph.values():
        if node["class_type"] == "LoraLoom_TrainLora":
            node["inputs"] |= {"run_name": "liked", "batch_size": 1}
        if node["class_type"] == "LoraLoom_SaveLora":
            node["inputs"]["name"] = "liked"
    outputs = server.run(graph)["outputs"]
    told = {graph[key]["class_type"]: json.dumps(output) for key, output in outputs.items()}
    assert "4 pairs, found by name" in told["LoraLoom_PreferencePairs"]
    assert "Win rate: the LoRA prefers the liked picture of " in told["LoraLoom_TrainLora"]
    assert (server.base / "models" / "loras" / "liked.safetensors").is_file()


def test_prompts_make_a_slider(server: ComfyServer) -> None:
    graph = quick(templates.api_graph(server, SLIDER))
    for node in graph.values():
        if node["class_type"] == "LoraLoom_TrainLora":
            node["inputs"] |= {"run_name": "slider", "batch_size": 1}
        if node["class_type"] == "LoraLoom_SaveLora":
            node["inputs"]["name"] = "slider"
    outputs = server.run(graph)["outputs"]
    told = {graph[key]["class_type"]: json.dumps(output) for key, output in outputs.items()}
    assert "a red star on a white background  <->  a red star on a black background" in told["LoraLoom_Slider"]
    assert "The slider " in told["LoraLoom_TrainLora"]
    assert "images" in told["PreviewImage"]
    assert (server.base / "models" / "loras" / "slider.safetensors").is_file()


def kohya_file(path: Path) -> None:
    """A LoRA of SD 1.5 as kohya's scripts name its layers: the demo's base is no model that the format is known of."""
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2"
    sizes = {f"{block}_to_k": (320, 768), f"{block}_to_q": (320, 320)}
    factors = {"lora_down": lambda out, into: torch.ones(2, into), "lora_up": lambda out, into: torch.ones(out, 2)}
    tensors = {f"{layer}.{part}.weight": make(*size) for layer, size in sizes.items() for part, make in factors.items()}
    save_file(tensors | {f"{layer}.alpha": torch.tensor(2.0) for layer in sizes}, path)


def test_files_become_others_and_a_row_without_its_file_is_left_out(server: ComfyServer, files: None) -> None:
    loras = server.base / "models" / "loras"
    kohya_file(loras / FOLDER / "ink.safetensors")
    graph = templates.api_graph(server, FILES)
    by_type = {node["class_type"]: node["inputs"] for node in graph.values()}
    by_type["LoraLoom_ChangeFormat"] |= {"lora": f"{FOLDER}/ink.safetensors", "format": "diffusers"}
    run = by_type["LoraLoom_AverageSteps"]
    run["run"] = next(path.name for path in (server.base / "output" / "lora_loom").glob("heart-*"))
    outputs = server.run(graph)["outputs"]
    shown = [output["text"][0] for key, output in outputs.items() if graph[key]["class_type"] == "LoraLoom_Passport"]
    assert len(shown) == 3
    assert {path.name for path in loras.rglob("*.safetensors")} > {
        "ink_diffusers.safetensors", "heart_4.safetensors", "heart_average.safetensors",
    }  # fmt: skip
    run["run"], by_type["LoraLoom_ResizeLora"]["lora_name"] = "None", "None"
    by_type["LoraLoom_ChangeFormat"]["format"] = "comfyui"
    answer = server.post("/prompt", {"prompt": graph})
    assert {error["class_type"] for error in answer["node_errors"].values()} == {
        "LoraLoom_ResizeLora", "LoraLoom_AverageSteps",
    }  # fmt: skip
    outputs = server.wait(answer["prompt_id"])["outputs"]
    assert {graph[key]["class_type"] for key in outputs} == {"LoraLoom_ChangeFormat", "LoraLoom_Passport"}


@pytest.mark.parametrize("name", [STACK, MERGE, JUDGE, REGIONS, CONCEPTS, TRAIN_DISTILLED, HEALTH])
def test_runs_on_the_demo_base(server: ComfyServer, files: None, name: str) -> None:
    graph = quick(templates.api_graph(server, name))
    for node in graph.values():
        node["inputs"] |= {"name": "several"} if name == CONCEPTS and "overwrite" in node["inputs"] else {}
    outputs = server.run(graph)["outputs"]
    shown = {graph[key]["class_type"]: output for key, output in outputs.items()}
    if name in (STACK, REGIONS):
        assert shown["SaveImage"]["images"]
    if name == REGIONS:
        (told,) = shown["LoraLoom_LoadLoraStack"]["text"]
        assert "2 forwards in each step instead of 1 (one for each mask)" in told
    if name == MERGE:
        assert shown["PreviewImage"]["images"]
        assert (server.base / "models" / "loras" / "my_merge.safetensors").is_file()
    if name == CONCEPTS:
        assert len(shown["PreviewImage"]["images"]) == 1
        (kept,) = [guard.inspect(path).metadata for path in (server.base / "models" / "loras").glob("*several*")]
        assert kept["modelspec.trigger_phrase"] == "heart, arrow"
    if name == TRAIN_DISTILLED:
        assert shown["PreviewImage"]["images"]
        (said,) = [output["text"][0] for kind, output in shown.items() if kind == "LoraLoom_TrainLora"]
        assert "assistants, on in training steps only: " in said
    if name == JUDGE:
        assert {"LoraLoom_Report", "LoraLoom_LeaveOneOut", "LoraLoom_Interference"} <= set(shown)
    if name == HEALTH:
        assert "Leakage: neutral prompts change by" in shown["LoraLoom_Health"]["text"][0]
        assert (server.base / "models" / "loras" / "repaired.safetensors").is_file()


# -- in the front end --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def page(request: pytest.FixtureRequest, browser: Browser, server: ComfyServer) -> Iterator[FrontEnd]:
    with FrontEnd(browser, server, vue=request.param) as opened:
        yield opened


once = pytest.mark.parametrize("page", [False], indirect=True, ids=["classic"])  # what both renderers share

BOXES = """() => app.graph.nodes.map(node => {
  if (!LiteGraph.vueNodesMode) { const [x, y, w, h] = node.getBounding(); return [node.title, x, y, x + w, y + h] }
  const box = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect(), scale = app.canvas.ds.scale
  return [node.title, box.left / scale, box.top / scale, box.right / scale, box.bottom / scale]
})"""


def overlaps(page: FrontEnd) -> list[tuple[str, str]]:
    boxes = page.page.evaluate(BOXES)
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    return [(a[0], b[0]) for a, b in pairs if all(min(a[i + 2], b[i + 2]) > max(a[i], b[i]) for i in (1, 2))]


def test_opens_with_nothing_overlapping_and_sends_what_we_convert(server: ComfyServer, page: FrontEnd) -> None:
    for path in WORKFLOWS:
        page.load_workflow(load(path))
        page.still()  # the nodes have found their heights
        assert overlaps(page) == [], path.stem
        sent = {key: {k: node[k] for k in ("class_type", "inputs")} for key, node in page.graph_to_prompt().items()}
        assert sent == workflow_to_api(load(path), server.object_info)
    assert page.errors == []
    assert page.external == []


def typed(page: FrontEnd, box: Locator, text: str, items: str, read: str, wanted: Callable[[list[str]], bool]) -> bool:
    """Whether `wanted` becomes true of what `read` makes of the `items` that are listed for `text`."""
    box.fill(text)
    for _ in range(600):
        page.page.wait_for_timeout(100)
        if wanted(page.page.eval_on_selector_all(items, f"found => found.map({read})")):
            return True
    return False


TEMPLATES = {
    "train lora": {TRAIN_CHECKPOINT, TRAIN, CONCEPTS, TRAIN_DISTILLED},
    "edit lora": {EDIT},
    "distilled": {TRAIN_DISTILLED},
    "sdxl": {TRAIN_CHECKPOINT},
    "sd 1.5": {TRAIN_CHECKPOINT},
    "checkpoint": {TRAIN_CHECKPOINT},
    "several concepts": {CONCEPTS},
    "flux": {TRAIN, EDIT},
    "z-image": {TRAIN},
    "qwen": {TRAIN},
    "lora stack": {STACK},
    "regions": {REGIONS},
    "mask": {REGIONS},
    "load lora": {STACK},
    "merge lora": {MERGE},
    "is this lora good": {JUDGE},
    "publish": {PUBLISH},
    "contract": {PUBLISH},
    "kandinsky": {KANDINSKY},
    "wuerstchen": {WUERSTCHEN},
    "repair": {HEALTH},
    "block weight": {HEALTH},
    "lora files": {FILES},
    "format": {FILES},
    "resize": {FILES},
    "lora": set(GRAPHS) - {KANDINSKY, WUERSTCHEN},
}


@once
def test_the_dialog_finds_templates_by_what_people_type(page: FrontEnd) -> None:
    page.page.get_by_role("button", name="Templates").first.click()
    dialog = page.page.get_by_role("dialog")
    dialog.get_by_text("lora-loom", exact=True).first.click()
    box, cards, prefix = dialog.locator("input").first, "[data-testid^=template-workflow-]", "template-workflow-"
    for text, wanted in TEMPLATES.items():
        ids = {prefix + name for name in wanted}
        assert typed(page, box, text, cards, "card => card.dataset.testid", ids.issubset), text
    dialog.get_by_test_id(prefix + TRAIN_CHECKPOINT).click()
    dialog.wait_for(state="detached")
    page.page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'LoraLoom_TrainLora')")
    of_this_name = "name => app.extensionManager.workflow.activeWorkflow.filename === name"  # given after the nodes are
    page.page.wait_for_function(of_this_name, arg=TRAIN_CHECKPOINT)


def begins_with(wanted: list[str], found: list[str]) -> bool:
    return found[: len(wanted)] == wanted


NODES = {
    "train lora": ["Train LoRA", "Train LoRA (Loom)"],  # ComfyUI's own trainer, and ours told apart
    "lora trainer": ["Train LoRA", "Train LoRA (Loom)"],
    "loom": ["Train LoRA (Loom)"],
    "lora stack": ["Load LoRA Stack"],
    "merge lora": ["Merge LoRA"],
    "save lora": ["Save LoRA"],
    "extract lora": ["Extract LoRA"],
}


@once
def test_the_search_offers_our_nodes_first_or_tells_them_apart(server: ComfyServer, page: FrontEnd) -> None:
    core = {info["display_name"] for name, info in server.object_info.items() if not name.startswith("LoraLoom_")}
    ours = {info["display_name"] for name, info in server.object_info.items() if name.startswith("LoraLoom_")}
    assert not core & ours
    page.page.evaluate("() => app.graph.clear()")
    box = page.search()
    for text, wanted in NODES.items():
        first = partial(begins_with, wanted)
        assert typed(page, box, text, "#results-list [role=option]", "row => row.innerText.split('\\n')[0]", first), (
            text
        )
    page.page.keyboard.press("Escape")
    assert page.errors == []


# -- from the server ---------------------------------------------------------------------------------------------------


def test_templates_are_listed_and_served(server: ComfyServer) -> None:
    assert set(server.get("/workflow_templates")["lora-loom"]) == set(GRAPHS)
    for path in WORKFLOWS:
        address = f"/api/workflow_templates/lora-loom/{path.stem}".replace(" ", "%20")
        assert json.loads(server.fetch(f"{address}.json")) == load(path)
        assert server.fetch(f"{address}.jpg")[:2] == b"\xff\xd8"


def test_help_pages_are_served(server: ComfyServer) -> None:
    ours = [name for name in server.object_info if name.startswith("LoraLoom_")]
    assert len(ours) == 33
    for name in ours:
        assert server.fetch(f"/extensions/lora-loom/docs/{name}/en.md").startswith(b"# ")
