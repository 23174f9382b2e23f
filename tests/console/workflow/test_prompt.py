"""A saved workflow becomes the prompt that the browser would send."""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from lora_loom.console.workflow import names, saved, settings, texts, values
from lora_loom.console.workflow.prompt import Converted, bypassed, convert
from lora_loom.console.workflow.renumber import renumbered
from lora_loom.console.workflow.saved import Slot

NAMES = [path.stem for path in sorted((Path(__file__).parent / "graphs").glob("*.json"))]
NOW = datetime(2026, 3, 4, 5, 6, 7)
each_graph = pytest.mark.parametrize("name", NAMES)


def converted(workflow: dict[str, Any], object_info: dict[str, Any]) -> Converted:
    done = convert(saved.read(workflow), object_info, NOW)
    names.fill(done, NOW)
    return done


def sent(done: Converted) -> dict[str, Any]:
    return {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in done.prompt.items()}


@each_graph
def test_what_the_browser_sends(name: str, graphs: dict[str, Any], object_info: dict[str, Any]) -> None:
    before = deepcopy(graphs[name]["workflow"])
    done = converted(graphs[name]["workflow"], object_info)
    assert done.problems == []
    assert sent(done) == graphs[name]["prompt"] and list(done.prompt) == list(graphs[name]["prompt"])
    assert graphs[name]["workflow"] == before, "what was read is as it was"
    assert all(node["_meta"]["title"] for node in done.prompt.values())


def node(number: int, kind: str, values: Any = (), inputs: Any = (), **more: Any) -> dict[str, Any]:
    return {"id": number, "type": kind, "widgets_values": list(values), "inputs": list(inputs), "mode": 0, **more}


def socket(name: str, link: int | None, kind: str = "IMAGE") -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link}


def output(kind: str, *links: int) -> list[dict[str, Any]]:
    return [{"name": kind, "type": kind, "links": list(links)}]


def shown(number: int, link: int) -> dict[str, Any]:
    return node(number, "PreviewImage", inputs=[socket("images", link)])


def test_values_that_carry_names(object_info: dict[str, Any]) -> None:
    values = {"height": 8, "width": 16}
    workflow = {"nodes": [{**node(1, "EmptyImage"), "widgets_values": values}], "links": []}
    assert sent(converted(workflow, object_info))["1"]["inputs"] == {
        "width": 16,
        "height": 8,
        "batch_size": 1,
        "color": 0,
    }


def test_a_field_that_the_file_does_not_have_yet_has_its_default(object_info: dict[str, Any]) -> None:
    workflow = {"nodes": [node(1, "EmptyImage", [16])], "links": []}
    assert sent(converted(workflow, object_info))["1"]["inputs"]["height"] == 512


def test_a_circle_is_told_and_does_not_hang(object_info: dict[str, Any]) -> None:
    around = [
        node(n, "Reroute", (), [socket("", link, "*")], outputs=output("*", other))
        for n, link, other in ((1, 1, 2), (2, 2, 1))
    ]
    links = [[1, 2, 0, 1, 0, "*"], [2, 1, 0, 2, 0, "*"], [3, 1, 0, 3, 0, "*"]]
    around[0]["outputs"][0]["links"] = [2, 3]
    done = converted({"nodes": [*around, shown(3, 3)], "links": links}, object_info)
    assert len(done.problems) == 1 and "circle" in done.problems[0]


def test_a_connection_that_is_not_there_is_told(object_info: dict[str, Any]) -> None:
    done = converted({"nodes": [shown(3, 7)], "links": []}, object_info)
    assert done.problems == [
        "node 3 (Preview Image): its input images names connection 7, which the file does not have; "
        "connect it anew in ComfyUI, and save"
    ]


@pytest.mark.parametrize(("kind", "said"), [("GetNode", "KJNodes"), ("workflow/mine", "group node")])
def test_what_works_in_the_browser_only_is_told_where_something_needs_it(
    kind: str, said: str, object_info: dict[str, Any]
) -> None:
    other = node(1, kind, outputs=output("IMAGE", 1))
    done = converted({"nodes": [other, shown(2, 1)], "links": [[1, 1, 0, 2, 0, "IMAGE"]]}, object_info)
    assert len(done.problems) == 1 and said in done.problems[0] and list(done.prompt) == ["2"]
    alone = converted({"nodes": [{**other, "outputs": output("IMAGE")}], "links": []}, object_info)
    assert alone.problems == [] and alone.prompt == {}


def test_a_node_that_connects_others_in_the_browser_is_told(object_info: dict[str, Any]) -> None:
    info = {**object_info, "Anything Everywhere": {"input": {"optional": {"anything": ["*", {}]}}, "output": []}}
    image = node(1, "EmptyImage", outputs=output("IMAGE", 1))
    for link, said in ((1, ["node 2 (Anything Everywhere): Anything Everywhere of cg-use-everywhere"]), (None, [])):
        everywhere = node(2, "Anything Everywhere", (), [socket("anything", link, "*")])
        done = converted({"nodes": [image, everywhere], "links": [[1, 1, 0, 2, 0, "IMAGE"]]}, info)
        assert [each[: len(said[0])] for each in done.problems] == said


def test_what_the_browser_draws_is_told(object_info: dict[str, Any]) -> None:
    info = {
        **object_info,
        "Drawn": {"input": {"required": {"mask": ["STRING", {"widgetType": "PAINTER"}]}}, "output": []},
    }
    done = converted({"nodes": [node(1, "Drawn", ["x"])], "links": []}, info)
    assert len(done.problems) == 1 and "mask is made by the browser" in done.problems[0]


def test_fields_that_grow_in_number_are_told(object_info: dict[str, Any]) -> None:
    template = {"input": {"required": {"text": ["STRING", {}]}}, "prefix": "text", "min": 1}
    info = {"Many": {"input": {"required": {"texts": ["COMFY_AUTOGROW_V3", {"template": template}]}}, "output": []}}
    done = converted({"nodes": [node(1, "Many", ["x", "y"])], "links": []}, info)
    assert len(done.problems) == 1 and "grow in number" in done.problems[0]


def test_values_of_inputs_that_are_forced_now_are_left_out(object_info: dict[str, Any]) -> None:
    inputs = {"required": {"a": ["INT", {"forceInput": True}], "b": ["INT", {}]}}
    info = {"Forced": {"input": inputs, "output": []}}
    for given in ([1, 2], [2]):
        assert sent(converted({"nodes": [node(1, "Forced", given)], "links": []}, info))["1"]["inputs"] == {"b": 2}


def test_a_field_that_is_gone_sends_nothing(object_info: dict[str, Any]) -> None:
    number = node(1, "PrimitiveInt", [5, "fixed"], outputs=output("INT", 1))
    gone = {**socket("gone", 1, "INT"), "widget": {"name": "gone"}}
    workflow = {"nodes": [number, node(2, "EmptyImage", [8], [gone])], "links": [[1, 1, 0, 2, 0, "INT"]]}
    assert set(sent(converted(workflow, object_info))["2"]["inputs"]) == {"width", "height", "batch_size", "color"}


def test_an_old_name_of_a_sampler(object_info: dict[str, Any]) -> None:
    workflow = {"nodes": [node(1, "KSampler", [1, "fixed", 20, 8, "sample_heun"])], "links": []}
    assert sent(converted(workflow, object_info))["1"]["inputs"]["sampler_name"] == "heun"


def test_inputs_come_before_fields_and_grow_inside_a_choice() -> None:
    template = {"template": {"input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image", "min": 1}}
    choices = [{"key": "many", "inputs": {"required": {"images": ["COMFY_AUTOGROW_V3", template]}}}]
    combo = ["COMFY_DYNAMICCOMBO_V3", {"options": [*choices, {"key": "none", "inputs": {}}]}]
    info = {"input": {"required": {"size": ["INT", {}], "mode": combo, "model": ["MODEL"]}}, "output": []}
    saved_slots = [Slot(f"mode.images.image{number}", "IMAGE", number) for number in range(4)]
    for choice, links in (("many", [None, None, None, 0, 1, 2, 3]), ("none", [None, None, None])):
        held = saved.Node("1", "X", "", 0, saved_slots, [], [], [1, choice], {})
        slots = values.slots_of(held, values.parts_of(held, info))
        assert [slot.name for slot in slots][:3] == ["model", "size", "mode"]
        assert [slot.link for slot in slots] == links


def test_numbers_that_are_there_twice() -> None:
    def inside(name: str, *numbers: int) -> dict[str, Any]:
        links = [{"id": 1, "origin_id": numbers[0], "origin_slot": 0, "target_id": numbers[1], "target_slot": 0}]
        return {"id": name, "nodes": [node(number, "X") for number in numbers], "links": links}

    host = node(1, "b", properties={"proxyWidgets": [["50", "seed"], ["60", "seed"], ["-1", "seed"]]})
    subgraphs = [inside("a", 50, 9), inside("b", 50, 60, 1)]
    document = {"nodes": [host], "last_node_id": 3, "definitions": {"subgraphs": subgraphs}}
    made = renumbered(document)
    first, second = made["definitions"]["subgraphs"]
    assert [each["id"] for each in first["nodes"]] == [50, 9] and [each["id"] for each in second["nodes"]] == [
        51,
        60,
        61,
    ]
    assert (second["links"][0]["origin_id"], second["links"][0]["target_id"]) == (51, 60)
    assert [name for name, _ in made["nodes"][0]["properties"]["proxyWidgets"]] == ["51", "60", "-1"]


def test_a_subgraph_that_holds_itself_is_refused(object_info: dict[str, Any]) -> None:
    inner = {"id": "s", "name": "loop", "nodes": [node(1, "s")], "links": [], "inputs": [], "outputs": []}
    with pytest.raises(ValueError, match="'loop' holds itself"):
        converted({"nodes": [node(2, "s")], "links": [], "definitions": {"subgraphs": [inner]}}, object_info)


@pytest.mark.parametrize(
    "document",
    [{"nodes": [1]}, {"nodes": [{}]}, {"nodes": [], "links": [[1]]}, {"nodes": [node(1, "x")], "links": [7]}],
)
def test_what_is_no_workflow_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match="no workflow that ComfyUI saves"):
        saved.read(document)


@pytest.mark.parametrize(
    ("wanted", "output", "through"),
    [("MODEL", 0, 1), ("CLIP", 1, 2), ("IMAGE", 0, None), ("*", 0, 0), ("*", 7, 0), ("MODEL,CLIP", 0, 1)],
)
def test_what_a_bypassed_node_passes_on(wanted: str, output: int, through: int | None) -> None:
    inputs = [Slot("a", "VAE"), Slot("b", "MODEL"), Slot("c", "CLIP")]
    assert bypassed(inputs, ("MODEL", "CLIP")[output % 2], output, wanted) == through
    assert bypassed([], "MODEL", 0, "MODEL") is None and bypassed([], "*", 0, "*") is None


def test_names_of_files_have_what_was_changed(object_info: dict[str, Any]) -> None:
    image = node(1, "EmptyImage", [64, 32, 1, 0], outputs=output("IMAGE", 1))
    save = node(2, "SaveImage", ["%date:yy%-%EmptyImage.width%-%EmptyImage.height%"], [socket("images", 1)])
    done = convert(saved.read({"nodes": [image, save], "links": [[1, 1, 0, 2, 0, "IMAGE"]]}), object_info, NOW)
    assert settings.apply(["1.width=96"], done, object_info) == []
    names.fill(done, NOW)
    assert done.prompt["2"]["inputs"]["filename_prefix"] == "26-96-32"


# -- texts -------------------------------------------------------------------------------------------------------------


def test_choices_in_braces() -> None:
    drawn = {texts.dynamic("a {b|c{d|e}} /* no */f // no", Random(seed)) for seed in range(40)}
    assert drawn == {"a b f ", "a cd f ", "a ce f "}
    assert texts.dynamic(r"\{a\|b\} \c", Random(0)) == r"{a|b} \c"


def test_the_same_file_gives_the_same_choice(object_info: dict[str, Any]) -> None:
    text = "{" + "|".join(map(str, range(1000))) + "}"
    workflow = {"nodes": [node(n, "CLIPTextEncode", [text]) for n in (1, 2, 3)], "links": []}
    first, second = (sent(converted(workflow, object_info)) for _ in range(2))
    assert first == second and len({each["inputs"]["text"] for each in first.values()}) > 1


def test_names_of_files() -> None:
    values = {("KSampler", "cfg"): 1.0, ("KSampler", "name"): "a/b:c", ("N", "on"): True, ("N", "small"): 0.25}
    given = "%date:yyyy-MM-dd hh.mm.ss yy M% %KSampler.cfg% %KSampler.name% %N.on% %N.small% %N.none% %width% %a.b.c%"
    read = texts.replaced(given, NOW, lambda node, field: values[node, field])
    assert read == "2026-03-04 05.06.07 26 3 1 a_b_c true 0.25 %N.none% %width% %a.b.c%"
