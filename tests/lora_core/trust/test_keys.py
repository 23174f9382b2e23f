"""The key is its owner's alone, and known keys are told from new ones and from others of their name."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest
from lora_loom.lora_core.trust import ed25519, keys
from lora_loom.lora_core.trust.keys import KEY, KNOWN, NAME, known, met, own_name, remember, secret
from lora_loom.lora_core.trust.signer import Signer, readable

ADA, EVE = Signer(ed25519.public_key(bytes(32)), "ink@ada"), Signer(ed25519.public_key(bytes(31) + b"\1"), "ink@ada")
DAY = date(2026, 11, 30)
of_posix = pytest.mark.skipif(os.name == "nt", reason="rights of files are those of POSIX")


def test_a_key_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "user" / "__lora_loom"
    first = secret(folder)
    assert len(first) == 32 and secret(folder) == first != secret(tmp_path)
    assert os.listdir(folder) == [KEY]


@of_posix
def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        secret(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / KEY).stat().st_mode) == 0o600


@of_posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    made = secret(tmp_path)
    (tmp_path / KEY).chmod(mode)
    with pytest.raises(ValueError, match=f"rights {mode:o}, not 600.*chmod 600") as refused:
        secret(tmp_path)
    assert "\n" not in str(refused.value)
    (tmp_path / KEY).chmod(0o600)
    assert secret(tmp_path) == made


@of_posix
def test_a_key_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ValueError, match="belongs to another user"):
        secret(tmp_path)


@of_posix
def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / KEY, 0o600)
    with pytest.raises(ValueError, match="not a regular file"):
        secret(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "secret", "lora-loom-ed25519-secret AAAA", "lora-loom-ed25519-secret ***", "\xff" * 300]
)
def test_what_is_no_key_is_neither_used_nor_repeated(tmp_path: Path, text: str) -> None:
    secret(tmp_path)
    (tmp_path / KEY).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="holds no signing key; put it back") as refused:
        secret(tmp_path)
    assert not text or text not in str(refused.value)
    assert (tmp_path / KEY).read_bytes() == text.encode("latin-1")


def test_many_that_need_a_key_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(secret, [tmp_path] * 32))) == 1
    assert os.listdir(tmp_path) == [KEY]


def test_a_disk_without_links_can_keep_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert secret(tmp_path) == secret(tmp_path) and os.listdir(tmp_path) == [KEY]


def test_names_are_one_readable_line(tmp_path: Path) -> None:
    assert own_name(tmp_path) == ""
    (tmp_path / NAME).write_text("\ufeff ink@ada \u202e \nmore\n", "utf-8")
    assert own_name(tmp_path) == "ink@ada"
    (tmp_path / NAME).write_bytes(b"\xff")
    assert own_name(tmp_path) == "" and len(readable("x" * 99)) == 64


def test_trust_on_first_use(tmp_path: Path) -> None:
    assert str(met(ADA, known(tmp_path))) == f"signed by ink@ada ({ADA.fingerprint}, new to this machine)"
    remember(tmp_path, ADA, DAY)
    remember(tmp_path, ADA, DAY)
    assert [str(met(ADA, known(tmp_path))), len(known(tmp_path))] == ["signed by ink@ada", 1]
    other = met(EVE._replace(name="INK@Ada"), known(tmp_path))
    assert other.standing == "other key" and "another key" in str(other) and "2026-11-30" in str(other)
    remember(tmp_path, EVE, DAY)
    assert len(known(tmp_path)) == 1
    renamed = met(ADA._replace(name="famous@eve"), known(tmp_path))
    assert str(renamed) == "signed by ink@ada (who calls it famous@eve)"
    assert str(met(EVE._replace(name=""), [])) == f"signed by {EVE.fingerprint}, new to this machine"


def test_ones_own_key_goes_by_its_present_name(tmp_path: Path) -> None:
    for name in ("", "ink@ada", "paint@ada"):
        remember(tmp_path, ADA._replace(name=name), DAY, own=True)
    assert [(each.signer.name, each.since) for each in known(tmp_path)] == [("paint@ada", "2026-11-30")]


def test_the_list_can_be_shared_and_written_by_hand(tmp_path: Path) -> None:
    remember(tmp_path, ADA, DAY)
    text = (tmp_path / KNOWN).read_text("utf-8")
    line = text.splitlines()[-1]
    assert line.startswith("ed25519 ") and line.endswith(" 2026-11-30 ink@ada")
    junk = "\n# mine\n\ned25519 xx 2026-11-30 a\nrsa AAAA 2026-11-30 b\n" + line.replace("2026", "x") + "\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / KNOWN).write_bytes(junk.encode() + b"\xff\0\n" + line.encode())
    assert [each.signer for each in known(tmp_path / "other")] == [ADA]
    remember(tmp_path / "other", EVE._replace(name="Eve"), DAY)
    kept = (tmp_path / "other" / KNOWN).read_text("utf-8")
    assert "# mine" in kept and kept.endswith(" 2026-11-30 Eve\n") and len(known(tmp_path / "other")) == 2


def test_a_full_list_grows_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MOST_KNOWN", 3)
    for number in range(5):
        remember(tmp_path, Signer(bytes([number]) * 32, f"n{number}"), DAY)
    assert len(known(tmp_path)) <= 3
