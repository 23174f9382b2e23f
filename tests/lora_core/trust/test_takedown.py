"""Files are found in lists by their hashes, their ancestors' and their sketches; bad lists cost a sentence."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.files.lineage import CONTENT, CONTINUED, PARENTS
from lora_loom.lora_core.trust.sketches import LENGTH, to_text
from lora_loom.lora_core.trust.takedown import OVERRULED, Mark, Takedown, marks
from lora_loom.lora_core.trust.takedown_entry import LONGEST, write
from torch import Tensor

TODAY = date(2026, 12, 1)
SECRET = bytes(range(32))
A, B, C = ("a" * 64, "b" * 64, "c" * 64)
Put = Callable[..., Path]


def entry(data: str, **more: str) -> str:
    return write({"data_sha256": data, "reason": "style", "date": "2026-11-30", "issuer": "Ada", **more}, SECRET)


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def put(*lines: str | bytes, name: str = "list.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
        return path

    return put


def test_a_file_is_found_by_any_of_its_hashes(tmp_path: Path, put: Put) -> None:
    lists = Takedown(tmp_path / "missing")
    assert lists.look([Mark(A)]) == lists.look([]) and lists.state() == ()
    put(entry(A), entry(B, content_sha256=C))
    lists = Takedown(tmp_path)
    assert not lists.look([Mark("d" * 64)], today=TODAY).hits
    (hit,) = lists.look([Mark("d" * 64), Mark(C)], today=TODAY).hits
    assert (hit.entry.data, hit.of, hit.source) == (B, "", "list.jsonl")
    said = hit.sentence("ink.safetensors")
    assert said.startswith("ink.safetensors imitates an artist who objects, says Ada since 2026-11-30 (takedown list")
    (hit,) = lists.look([Mark(A, "its parent")], today=TODAY).hits
    assert "is made of its parent, which imitates an artist" in hit.refusal("ink") and hit.entry.id in hit.refusal(
        "ink"
    )


def test_ancestors_are_found_at_any_depth() -> None:
    parents = [
        {"name": "p", "sha256": B, "parents": [{"sha256": C, "name": "\n", "parents": ["x", 7, {"sha256": 9}]}]},
        None,
    ]
    header = {PARENTS: json.dumps(parents), CONTENT: A, CONTINUED: json.dumps({"name": "q", "sha256": "d" * 64})}
    found = marks("", header)
    assert found == [Mark(A), Mark(B, "p"), Mark("d" * 64, "q"), Mark(C, C[:12])]
    assert marks(A, {PARENTS: "{", CONTINUED: "7", CONTENT: "no hash"}) == [Mark(A)]
    wide = json.dumps([{"sha256": A}] * 100_000)
    assert len(marks("", {PARENTS: wide})) < 5_000


def test_expired_and_forged_entries_are_said_and_ignored(tmp_path: Path, put: Put) -> None:
    put(entry(A, expires="2026-11-30"), entry(A).replace("Ada", "Eve"))
    verdict = Takedown(tmp_path).look([Mark(A)], today=TODAY)
    assert not verdict.hits and len(verdict.lines("ink")) == 2
    text = "\n".join(verdict.lines("ink"))
    assert "ink: ignored: entry" in text and "but expired on 2026-11-30" in text and "but is badly signed" in text


def test_an_entry_is_overruled_by_its_id(tmp_path: Path, put: Put) -> None:
    put(entry(A), entry(A, reason="copyright"))
    lists = Takedown(tmp_path)
    first, second = lists.look([Mark(A)], today=TODAY).standing
    (tmp_path / OVERRULED).write_text(f"# mine\n\n  {first.entry.id}  it is my own style\nnonsense\n", encoding="utf-8")
    verdict = lists.look([Mark(A)], today=TODAY)
    assert [hit.entry.id for hit in verdict.standing] == [second.entry.id]
    (told,) = verdict.overruled()
    assert told == {
        "entry": first.entry.id, "reason": "style", "issuer": "Ada", "date": "2026-11-30", "list": "list.jsonl"
    }  # fmt: skip
    assert any(line.startswith("overruled here: ink imitates") for line in verdict.lines("ink"))
    assert lists.state()[-1][0] == OVERRULED


def test_a_list_may_change(tmp_path: Path, put: Put) -> None:
    lists = Takedown(tmp_path)
    put(entry(A))
    before = lists.state()
    assert lists.look([Mark(A)], today=TODAY).hits
    put(entry(B), entry(C))
    assert not lists.look([Mark(A)], today=TODAY).hits and lists.state() != before
    (tmp_path / "list.jsonl").unlink()
    assert not lists.look([Mark(B)], today=TODAY).hits and lists.state() == ()


def drawn(seed: int) -> Tensor:
    return torch.randn(LENGTH, generator=torch.Generator().manual_seed(seed))


def test_a_sketch_is_asked_for_only_where_it_can_tell(tmp_path: Path, put: Put) -> None:
    asked: list[int] = []

    def sketch() -> Tensor:
        asked.append(1)
        return 0.4 * drawn(1) + drawn(2)

    lists = Takedown(tmp_path)
    put(entry(A))
    assert not lists.look([Mark(B)], B, sketch, TODAY).hits and not asked
    put(entry(A, sketch=to_text(drawn(1))), entry(C, sketch=to_text(drawn(3))), entry(B))
    assert not lists.look([Mark(B)], B, sketch, TODAY).standing[0].likeness and not asked
    (hit,) = lists.look([Mark("d" * 64)], "d" * 64, sketch, TODAY).hits
    assert hit.entry.data == A and asked == [1]
    assert "looks like it is made with a LoRA (similarity 0.3" in hit.sentence("ink") and "0.4" in hit.sentence("ink")
    assert hit.described()["similarity"] == pytest.approx(0.37, abs=0.05)
    (tmp_path / OVERRULED).write_text(hit.entry.id, encoding="utf-8")
    assert not lists.look([Mark("d" * 64)], "d" * 64, sketch, TODAY).standing


def test_bad_lines_are_counted_once(tmp_path: Path, put: Put, caplog: pytest.LogCaptureFixture) -> None:
    sound = entry(A)
    twice = f'{{"data_sha256":"{C}","data_sha256":"{B}","reason":"style","date":"2026-11-30","issuer":"x"}}'
    put(
        "", "nonsense", sound[:-10], sound + "x", "[]", "{}", f'{{"data_sha256":"{B.upper()}"}}', "\0\0", twice,
        sound.encode() + b"\r", json.dumps({**json.loads(entry(B)), "note": "x" * LONGEST}), b"\xff\xfe",
    )  # fmt: skip
    lists = Takedown(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert lists.look([Mark(A)], today=TODAY).hits and lists.look([Mark(A)], today=TODAY).hits
        assert "9 of 11 lines are no entries" in caplog.text and caplog.text.count("no entries") == 1
        assert not lists.look([Mark(B)], today=TODAY).hits and "a key is there twice" in caplog.text
    put(sound[:40])
    assert not Takedown(tmp_path).look([Mark(A)], today=TODAY).hits


def test_a_folder_that_may_not_be_written_or_read(tmp_path: Path, put: Put, caplog: pytest.LogCaptureFixture) -> None:
    put(entry(A))
    (tmp_path / ".index").write_text("in the way", encoding="ascii")  # as root may write anywhere
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    assert Takedown(tmp_path).look([Mark(A)], today=TODAY).hits
    not_a_folder = tmp_path / "list.jsonl"
    assert Takedown(not_a_folder).state() == () and not Takedown(not_a_folder).look([Mark(A)]).hits


def test_an_index_is_kept_and_a_damaged_one_made_again(tmp_path: Path, put: Put) -> None:
    put(entry(A))
    assert Takedown(tmp_path).look([Mark(A)], today=TODAY).hits
    (kept,) = (tmp_path / ".index").iterdir()
    kept.write_bytes(kept.read_bytes()[:-3])
    assert Takedown(tmp_path).look([Mark(A)], today=TODAY).hits


def test_a_million_lines_take_moments(tmp_path: Path) -> None:
    ten = b"".join(
        b'{"data_sha256":"%063x%%d","reason":"style","date":"2026-11-30","issuer":"x"}\n' % n for n in range(10)
    )
    tens = b"".join(ten.replace(b"%d", b"%x" % n) for n in range(10))
    wanted = entry(A).encode() + b"\n"
    (tmp_path / "many.jsonl").write_bytes(tens * 5_000 + wanted + tens * 5_000)
    lists = Takedown(tmp_path)
    started = time.process_time()
    assert lists.look([Mark(A)], today=TODAY).hits
    assert time.process_time() - started < 8  # 1.5 s on a machine of 2026 with nothing else to do
    started = time.process_time()
    for _ in range(100):
        lists.look([Mark(B), Mark(C)], today=TODAY)
    assert time.process_time() - started < 1


def test_a_list_of_notepad(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(f"{entry(A)}\r\n{entry(B)}", encoding="utf-8-sig", newline="")
    lists = Takedown(tmp_path)
    hits = lists.look([Mark(A), Mark(B)], today=TODAY).hits
    assert len(hits) == 2
    (tmp_path / OVERRULED).write_text(hits[0].entry.id, encoding="utf-8-sig")
    assert len(lists.look([Mark(A), Mark(B)], today=TODAY).standing) == 1


def test_a_line_without_an_end_does_no_harm(tmp_path: Path, put: Put) -> None:
    put(b"{" + b"x" * 2**25, entry(A))
    assert Takedown(tmp_path).look([Mark(A)], today=TODAY).hits
