"""The server's side of the page of pictures and captions, asked as a page asks, and as one who means no good."""

from __future__ import annotations

import io
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from harness.links import link
from harness.server import ComfyServer
from PIL import Image

FOLDER = "e2e_routes"
HOSTILE = "&lt;img src=x&gt;.png" if os.name == "nt" else "<img src=x>.png"
PICTURES = ("a.png", "b.png", "c.png" if os.name == "nt" else "con.png", HOSTILE)
POSTS = ("look", "copies", "captions", "take_out", "put_back", "mask", "mask_back")


@pytest.fixture
def folder(server: ComfyServer) -> Path:
    path = server.base / "input" / FOLDER
    path.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        Image.effect_noise((96, 64), 90).convert("RGB").save(path / name)
        path.joinpath(name).with_suffix(".txt").unlink(missing_ok=True)
    return path


def ask(server: ComfyServer, what: str, **fields: Any) -> dict[str, Any]:
    return server.get(f"/lora_loom/dataset/{what}", **fields)


def tell(server: ComfyServer, what: str, **fields: Any) -> dict[str, Any]:
    return server.post(f"/lora_loom/dataset/{what}", {"folder": FOLDER, **fields})


def status(server: ComfyServer, what: str, body: bytes, kind: str = "application/json", **headers: str) -> int:
    request = urllib.request.Request(f"{server.url}/lora_loom/dataset/{what}", body, {"Content-Type": kind, **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_captions_are_listed_and_written(server: ComfyServer, folder: Path) -> None:
    found = ask(server, "pictures", folder=FOLDER, trigger="loom")
    assert found["locked"] == "" and {each["name"] for each in found["pictures"]} >= set(PICTURES)
    answer = tell(server, "captions", edits=[{"name": "a.png", "text": "<b>a</b>", "was": ""}])
    assert (folder / "a.txt").read_text() == "<b>a</b>\n"
    ((caption),) = answer["captions"]
    assert (caption["caption"], answer["refused"], answer["changed"]) == ("<b>a</b>", [], [])
    (folder / "a.txt").write_text("other")
    answer = tell(server, "captions", edits=[{"name": "a.png", "text": "mine", "was": caption["was"]}])
    assert answer["changed"] == ["a.png"] and answer["captions"][0]["caption"] == "other"
    assert (folder / "a.txt").read_text() == "other"


def test_pictures_are_looked_at_and_drawn_anew(server: ComfyServer, folder: Path) -> None:
    fields = {"resolution": 64, "bucket_step": 16}
    looks: dict[str, Any] = {}
    names = ["a.png", HOSTILE, "../e2e/0.png"]
    while wanted := [name for name in names[:2] if name not in looks]:
        looks |= tell(server, "look", names=[*wanted, names[2]], **fields)["looks"]
    assert set(looks) == set(names[:2]) and looks["a.png"]["size"] == [96, 64]
    assert tell(server, "copies", **fields)["copies"] is not None
    assert "multiple" in tell(server, "look", names=names, resolution=65, bucket_step=16)["problem"]
    drawn = server.fetch("/lora_loom/dataset/thumbnail", folder=FOLDER, name=HOSTILE)
    assert Image.open(io.BytesIO(drawn)).format == "JPEG"
    for name in ("../a.png", "/etc/passwd", str(folder / "a.png"), "a.txt", "", "a.png\0"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            server.fetch("/lora_loom/dataset/thumbnail", folder=FOLDER, name=name)


def test_taken_out_and_put_back(server: ComfyServer, folder: Path) -> None:
    answer = tell(server, "take_out", names=["b.png", "../a.png", "b.png"])
    assert list(answer["taken"]) == ["b.png"] and (folder / "_removed" / "b.png").is_file()
    wrong = tell(server, "put_back", taken={"b.png": "../../x"})
    assert wrong["back"] == [] and "move it back by hand" in wrong["refused"][0][1]
    assert tell(server, "put_back", taken=answer["taken"])["back"] == ["b.png"] and (folder / "b.png").is_file()


def upload(server: ComfyServer, picture: Path, number: int, width: int = 48) -> str:
    """What the mask editor puts into the input folder: its four layers, the left half painted."""
    image = Image.open(picture).convert("RGBA").resize((width, 64 * width // 96))
    image.putalpha(Image.new("L", image.size, 255))
    image.paste((0, 0, 0, 0), (0, 0, width // 2, image.height), Image.new("L", (width // 2, image.height), 255))
    for layer in ("mask", "paint", "painted", "painted-masked"):
        image.save(server.base / "input" / f"clipspace-{layer}-{number}.png")
    return f"clipspace-painted-masked-{number}.png"


def test_a_mask_is_made_of_what_the_editor_saved(server: ComfyServer, folder: Path) -> None:
    picture, mask = folder / "a.png", folder / "a-mask.png"
    answer = tell(server, "mask", name="a.png", painted=upload(server, picture, 1))
    assert answer["share"] == pytest.approx(0.5, abs=0.02) and Image.open(mask).size == (96, 64)
    assert not list((server.base / "input").glob("clipspace-*")), "nobody else knows of them"
    drawn = Image.open(io.BytesIO(server.fetch("/lora_loom/dataset/canvas", folder=FOLDER, name="a.png", channel="a")))
    assert drawn.mode == "RGBA" and drawn.getpixel((5, 30))[3] == 0 and drawn.getpixel((90, 30))[3] == 255
    shown = server.fetch("/lora_loom/dataset/canvas", folder=FOLDER, name="a.png", channel="rgb")
    assert Image.open(io.BytesIO(shown)).size == (96, 64)
    undone = tell(server, "mask_back", name="a.png", mark=answer["mark"])
    assert undone["mark"] and not mask.exists()
    assert tell(server, "mask_back", name="a.png", mark=undone["mark"])["mark"] and mask.is_file()
    again = tell(server, "mask", name="a.png", painted=upload(server, picture, 2))
    assert again["mark"] == "", "it is as it was"
    mask.unlink()


def test_only_what_the_editor_saved_becomes_a_mask(server: ComfyServer, folder: Path, tmp_path: Path) -> None:
    painted = upload(server, folder / "a.png", 3)
    gone = "is not in ComfyUI's input folder"
    for name in ("../" + painted, str(server.base / "input" / painted), f"{FOLDER}/b.png", "a.png", "", painted + "\0"):
        assert gone in tell(server, "mask", name="a.png", painted=name)["problem"]
    linked = server.base / "input" / "clipspace-painted-masked-4.png"
    try:
        linked.symlink_to(server.base / "input" / painted)
        assert gone in tell(server, "mask", name="a.png", painted=linked.name)["problem"]
        linked.unlink()
    except OSError:
        pass  # this system makes no links
    for name in ("../a.png", "gone.png", str(folder / "a.png")):
        assert "not in the folder" in tell(server, "mask", name=name, painted=painted)["problem"]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            server.fetch("/lora_loom/dataset/canvas", folder=FOLDER, name=name, channel="rgb")
    assert "cannot be put back" in tell(server, "mask_back", name="a.png", mark="x")["problem"]
    Image.new("RGB", (96, 64)).save(tmp_path / "a.png")
    outside = server.post("/lora_loom/dataset/mask", {"folder": str(tmp_path), "name": "a.png", "painted": painted})
    assert "problem" in outside and os.listdir(tmp_path) == ["a.png"] and str(server.base) not in outside["problem"]
    turned = Image.open(server.base / "input" / painted).transpose(Image.Transpose.ROTATE_90)
    turned.save(server.base / "input" / painted)
    assert "do not turn the picture" in tell(server, "mask", name="a.png", painted=painted)["problem"]
    assert (server.base / "input" / painted).is_file() and not (folder / "a-mask.png").exists()
    for left in (server.base / "input").glob("clipspace-*"):
        left.unlink()


@pytest.mark.parametrize("where", ["above", "absolute", "linked"])
def test_a_folder_elsewhere_is_only_shown(server: ComfyServer, folder: Path, tmp_path: Path, where: str) -> None:
    elsewhere = tmp_path / "set"
    elsewhere.mkdir()
    Image.new("RGB", (64, 64)).save(elsewhere / "a.png")
    above = Path(os.path.relpath(elsewhere, server.base / "input")).as_posix()
    name = {"above": above, "absolute": str(elsewhere), "linked": "e2e_linked"}[where]
    if where == "linked":
        link(server.base / "input" / name, elsewhere)
    found = ask(server, "pictures", folder=name)
    assert found["locked"] and [each["name"] for each in found["pictures"]] == ["a.png"]
    answer = server.post(
        "/lora_loom/dataset/captions", {"folder": name, "edits": [{"name": "a.png", "text": "x", "was": ""}]}
    )
    assert answer["refused"] and not answer["captions"]
    assert server.post("/lora_loom/dataset/take_out", {"folder": name, "names": ["a.png"]})["refused"]
    assert "can be added only" in ask(server, "place", folder=name)["problem"]
    assert os.listdir(elsewhere) == ["a.png"]
    assert str(server.base) not in json.dumps([found, answer])


def test_where_new_pictures_go(server: ComfyServer, folder: Path) -> None:
    assert ask(server, "place", folder=f" {FOLDER}/new ")["subfolder"] == f"{FOLDER}/new"
    assert ask(server, "place", folder="", name=FOLDER)["subfolder"] == f"{FOLDER}_2"
    assert ask(server, "place", folder="", name="../con")["subfolder"] == ".._con".strip(" .")
    assert "reserved name of Windows" in ask(server, "place", folder="aux")["problem"]
    found = ask(server, "folders")
    assert {"name": FOLDER, "pictures": 4} in found["folders"] and ".png" in found["suffixes"]
    gone = ask(server, "pictures", folder="nowhere at all")["problem"]
    assert "does not exist" in gone and str(server.base) not in gone


def test_what_is_not_a_question_is_refused(server: ComfyServer, folder: Path) -> None:
    body = json.dumps({"folder": FOLDER, "names": ["gone.png"], "edits": [], "taken": {}}).encode()
    for what in POSTS:
        assert status(server, what, body) == 200
        assert status(server, what, body, kind="text/plain") == 415
        assert status(server, what, body, Origin="http://elsewhere.example") == 403
        assert status(server, what, body, **{"Sec-Fetch-Site": "cross-site"}) == 403
        for wrong in (
            b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"folder": [1]}',
            b'{"folder": 1e999, "names": [1], "edits": [1], "taken": 1}',
        ):  # fmt: skip
            assert status(server, what, wrong) in (200, 400)
        assert status(server, what, body, kind="application/json; charset=nobody") == 400
    assert status(server, "captions", json.dumps({"folder": FOLDER, "edits": [{"name": 1}]}).encode()) == 400
    assert status(server, "captions", b" " * (2**23 + 1)) == 413
    assert {"a.png", "b.png"} <= set(os.listdir(folder))
