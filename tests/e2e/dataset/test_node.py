"""LoRA Dataset in the browser, in both renderers: its folders and drops."""

from __future__ import annotations

from pathlib import Path

from harness.browser import FrontEnd
from harness.server import ComfyServer
from playwright.sync_api import expect

from .pages import SCRIPT, drop, node, picture, value


def test_a_folder_is_chosen_in_a_list(front: FrontEnd, folder: Path) -> None:
    node(front)
    page = front.page
    expect(page.locator(".loom-set-words")).to_have_text("Drop pictures here, or choose a folder.")
    expect(page.get_by_role("button", name="Pictures and captions")).to_be_disabled()
    page.get_by_role("button", name="Folders").click()
    page.get_by_label("Search folders").fill(folder.name)
    option = page.get_by_role("option")
    expect(option).to_have_count(1)
    expect(option).to_have_text(f"{folder.name}5 pictures")
    page.keyboard.press("Enter")
    expect(page.locator(".loom-set-words")).to_have_text("5 pictures")
    assert value(front) == folder.name and list(front.graph_to_prompt().values())[0]["inputs"]["folder"] == folder.name
    page.get_by_role("button", name="Folders").click()
    page.keyboard.press("Escape")
    assert value(front) == folder.name
    kept = front.serialized()
    assert len(kept["nodes"][0]["widgets_values"]) == 17, "the bar saves nothing"
    front.load_workflow(kept)
    expect(page.locator(".loom-set-words")).to_have_text("5 pictures")
    page.evaluate(PROMOTE)
    front.becomes(lambda: [each["inputs"]["folder"] for each in front.graph_to_prompt().values()], ["elsewhere"])
    page.evaluate("() => app.canvas.setGraph(app.graph.nodes[0].subgraph)")
    expect(page.locator(".loom-set-words")).to_have_text("The folder comes from another node.")
    page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


PROMOTE = """() => {
    app.canvas.graph.convertToSubgraph(new Set(app.graph.nodes))
    const host = app.graph.nodes[0], inner = host.subgraph.nodes[0]
    const open = inner.inputs.map(({ name }) => name)
    if (open.some((name) => name.startsWith('$$'))) throw Error('the bar is offered as an input')
    host.subgraph.addInput('folder', 'STRING')
    host.subgraph.inputs.at(-1).connect(inner.inputs.find(({ name }) => name === 'folder'), inner)
    host.widgets.find(({ name }) => name === 'folder').value = 'elsewhere'
}"""


def test_pictures_are_dropped_on_the_node(front: FrontEnd, server: ComfyServer, vue: bool) -> None:
    node(front)
    bar = front.page.locator(".loom-set")
    drop(bar, {"one.png": picture(), "one.txt": SCRIPT.encode(), "notes.pdf": b"%PDF"})
    expect(front.page.locator(".loom-set-words")).to_have_text("Added 1 of 3 files. 1 caption")
    folder = server.base / "input" / value(front)
    assert sorted(path.name for path in folder.iterdir()) == ["one.png", "one.txt"]
    assert (folder / "one.txt").read_text() == f"{SCRIPT}\n"
    x, y = front.page.evaluate(
        "() => app.canvas.convertOffsetToCanvas([app.graph.nodes[0].pos[0] + 60, app.graph.nodes[0].pos[1] + 20])"
    )
    target = front.page.locator("[data-node-id]" if vue else "#graph-canvas").first
    drop(target, {"two.png": picture((70, 70))}, [x, y] if not vue else None)
    expect(front.page.locator(".loom-set-words")).to_have_text("Added 1 of 1 files")
    assert (folder / "two.png").is_file()
    drop(bar, {"notes.pdf": b"%PDF"})
    expect(front.page.locator(".loom-set-words")).to_contain_text("Not added: there is no picture among the files")


def test_dataset_doctor_is_as_high_as_its_tables_and_its_picture(front: FrontEnd, folder: Path, vue: bool) -> None:
    node(front, folder.name)
    front.page.evaluate(DOCTOR)
    front.drawn()
    front.run()
    expect(front.page.locator(".loom-verdict")).to_contain_text("in 5 pictures")
    expect(front.page.get_by_role("cell", name="b.png has no caption").first).to_be_visible()
    if not vue:
        front.becomes(lambda: front.page.evaluate(HIGH), True)


DOCTOR = """() => {
    const doctor = LiteGraph.createNode('LoraLoom_DatasetDoctor')
    app.graph.add(doctor)
    app.graph.nodes[0].connect(0, doctor, 0)
    doctor.pos = [500, 100]
}"""
HIGH = """() => {
    const doctor = app.graph.nodes.at(-1)
    return doctor.widgets.some(({ name }) => name === '$$canvas-image-preview') && doctor.size[1] >= doctor.computeSize()[1]
}"""
