"""Quiet runs by the node: what is trained and saved, what is kept and found again, and what is said when there is
nothing to be quiet about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.runs import STEPS, cancelled, on_forward, read, train, write_pictures
from lora_loom.lora_core.files import formats
from lora_loom.lora_core.files.save import save
from lora_loom.lora_core.quiet import kept
from lora_loom.lora_core.quiet.directions import Directions
from lora_loom.lora_core.quiet.sketch import Sketch
from lora_loom.lora_core.training.inject import Factors
from lora_loom.nodes.bridge.model.encoding_cache import cache_folder
from lora_loom.nodes.bridge.training.run_progress import RunProgress

pytestmark = pytest.mark.usefixtures("runs", "few")
LOUD = "this run trains without quiet directions"
QUIET = {"quiet": "directions"}


@pytest.fixture
def named(tmp_path: Path) -> Any:
    return read(write_pictures(tmp_path / "pictures"), "number")


def known() -> list[dict[str, Directions]]:
    return [found for path in (cache_folder() / "quiet").glob("*.safetensors") if (found := kept.read(path))]


def begun(runs: Path) -> list[dict[str, Any]]:
    """The settings of all runs, in the order in which they were begun."""
    files = sorted(runs.glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text("utf-8"))["settings"] for path in files]


def told(runs: Path) -> list[dict[str, Any]]:
    """How they are trained."""
    return [settings["train"] for settings in begun(runs)]


def test_auto_follows_the_trigger(models, data, named, runs: Path) -> None:
    trio = models("wan_demo")
    train(trio, data, steps=1)
    train(trio, named, steps=1, run_name="named")
    train(trio, named, steps=1, run_name="own", preserve="picture", preservation=0.5)
    keys = ("quiet", "preservation", "preserve_every")
    found = [tuple(each.get(key, 0) for key in keys) for each in told(runs)]
    assert found == [(0, 0, 0), (0.003, 2.0, 4), (0.003, 0.5, 0)]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux1", "wan_demo", "cascade_c"])
def test_what_is_saved_is_what_was_trained_times_p(models, named, family: str, monkeypatch: Any, caplog: Any) -> None:
    made: list[Factors] = []
    init = Factors.__init__

    def remembered(self: Factors, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Factors, "__init__", remembered)
    with caplog.at_level("INFO", "lora_loom"):
        adapter = train(models(family), named, targets="linear+conv", steps=2, **QUIET).adapter
    assert LOUD not in caplog.text
    (directions,) = known()
    assert len(directions) >= 0.8 * len(adapter.layers)
    for name, layer in adapter.layers.items():
        trained = made[-1].matrices[name, 0].detach().cpu()
        wanted = trained @ directions[name].quieting(0.003).dense() if name in directions else trained
        torch.testing.assert_close(layer.lora_A, wanted, rtol=1e-3, atol=1e-5)
    header = json.loads(adapter.metadata["lora_loom.quiet"])
    assert header["mu"] == 0.003 and header["coverage"].startswith("6 neutral prompts (words of the captions, ")


def test_directions_are_kept_and_a_run_that_was_cut_off_ends_as_a_whole_one(models, named, runs: Path) -> None:
    trio = models("wan_demo")
    with on_forward(trio) as first:
        whole = train(trio, named, run_name="whole", **QUIET)
    with on_forward(trio) as again:
        other = train(trio, named, run_name="again", seed=8, **QUIET)
    assert len(first) > len(again) == 2 * STEPS - STEPS and not torch.equal(*(
        next(iter(each.adapter.layers.values())).lora_A for each in (whole, other)
    ))  # fmt: skip
    with cancelled(trio, 3):
        train(trio, named, **QUIET)
    resumed = train(trio, named, **QUIET)
    assert resumed.loss_map == whole.loss_map
    assert all(torch.equal(resumed.lora_model[name], weight) for name, weight in whole.lora_model.items())
    with on_forward(trio) as forwards:
        train(trio, named, **QUIET)
    assert not forwards, "and is found when it is finished"


def test_a_broken_cache_is_made_anew(models, named, runs: Path, caplog: Any) -> None:
    """Cut off, or of other layers; in silence, as nothing is lost."""
    trio = models("wan_demo")
    whole = train(trio, named, steps=1, run_name="whole", **QUIET)
    (path,) = (cache_folder() / "quiet").glob("*")
    sound = path.read_bytes()
    for number, spoiled in enumerate((sound[:-9], sound.replace(b"self_attn.q", b"self_attn.z"), b"")):
        path.unlink()  # runs have it under another name
        path.write_bytes(spoiled)
        found = train(trio, named, steps=1, run_name=f"again {number}", **QUIET)
        assert path.read_bytes() == sound and LOUD not in caplog.text
        assert all(torch.equal(found.lora_model[name], weight) for name, weight in whole.lora_model.items())


def test_a_cache_that_cannot_be_is_told(models, named, monkeypatch: Any, tmp_path: Path, caplog: Any) -> None:
    """A file where its folder would be; what else is kept there is not needed."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("lora_loom.nodes.bridge.quiet.directions.cache_folder", lambda: tmp_path / "file")
    train(models("wan_demo"), named, steps=1, **QUIET)
    assert f"{LOUD}: there was no room on disk to keep them (" in caplog.text


def test_a_base_that_overflows_when_it_draws_is_told(models, named, caplog: Any) -> None:
    trio, plain = models("wan_demo"), {"steps": 1, "gradient_checkpointing": False}
    wanted = train(trio, named, run_name="loud", quiet="off", **plain)

    def overflown(_layer: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        return out if torch.is_grad_enabled() else out + float("inf")

    hook = trio.model.model.diffusion_model.blocks[0].ffn[0].register_forward_hook(overflown)
    try:
        found = train(trio, named, **QUIET, **plain)
    finally:
        hook.remove()
    assert f"{LOUD}: the states on neutral prompts are not finite" in caplog.text
    assert found.loss_map == wanted.loss_map


def test_other_prompts_make_another_run(models, named, runs: Path) -> None:
    trio = models("wan_demo")
    folders = []
    for own in ("", "a red cube", "a red cube", "a blue cube"):
        train(trio, named, steps=1, neutral_prompts=own, **QUIET)
        folders.append(len(list(runs.iterdir())))
    assert folders == [1, 2, 2, 3] and len(known()) == 3


def test_a_run_that_was_begun_loud_goes_on_loud(models, named, runs: Path, caplog: Any) -> None:
    trio = models("wan_demo")
    whole = train(trio, named, run_name="whole", quiet="off")
    with cancelled(trio, 3):
        train(trio, named, quiet="off")
    with caplog.at_level("INFO", "lora_loom"):
        resumed = train(trio, named)
    assert resumed.loss_map == whole.loss_map and "quiet is off, as it was when this run was begun" in caplog.text
    assert not known() and not any("quiet" in each for each in told(runs))
    train(trio, named, resume="start over")
    assert told(runs)[-1]["quiet"] == 0.003


def test_a_cancel_leaves_nothing_half_written(models, named, runs: Path) -> None:
    trio = models("wan_demo")
    with cancelled(trio, 3):
        train(trio, named, **QUIET)
    assert not list(runs.glob("*/state*")) and not list((cache_folder() / "quiet").glob("*"))


def _not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Sketch.add
    monkeypatch.setattr(Sketch, "add", lambda self, rows: add(self, rows * float("inf")))


def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(self: Sketch, rows: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(Sketch, "add", add)


def _no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write", write)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_not_finite, "the states on neutral prompts are not finite"),
        (_no_memory, "not enough memory to look at neutral states"),
        (_no_room, "there was no room on disk to keep them (No space left on device)"),
    ],
)
def test_without_directions_a_run_goes_on_loud(models, named, runs: Path, caplog: Any, spoil: Any, said: str) -> None:
    trio = models("wan_demo")
    wanted = train(trio, named, run_name="loud", quiet="off")
    with pytest.MonkeyPatch.context() as patched:
        spoil(patched)
        found = train(trio, named, **QUIET)
    assert found.loss_map == wanted.loss_map and "lora_loom.quiet" not in found.adapter.metadata
    assert f"warning: {LOUD}: " in caplog.text and said in caplog.text
    assert not any("quiet" in each for each in told(runs))


def test_a_run_that_goes_on_loud_has_the_rate_of_a_loud_one(models, named, runs: Path, caplog: Any) -> None:
    """Which auto makes three times as high for quiet directions, on the model and on text encoders."""
    trio, auto = models("sd15"), {"learning_rate": 0.0, "text_rank": 2, "steps": 1}
    end, ends = RunProgress.end, []
    with pytest.MonkeyPatch.context() as patched, caplog.at_level("INFO", "lora_loom"):
        _not_finite(patched)
        patched.setattr(RunProgress, "end", lambda self, text: ends.append(end(self, text)) or ends[-1])
        train(trio, named, **QUIET, **auto)
    assert "auto for SD 1.5: learning rate 0.0001" in ends[0] and "times that without" not in ends[0]
    train(trio, named, quiet="off", run_name="off", **auto)
    train(trio, named, run_name="quiet", **QUIET, **auto)
    found, wanted, quiet = begun(runs)
    for part in ("train", "text"):
        rates = [each[part]["learning_rate"] for each in (found, wanted, quiet)]
        assert rates[0] == rates[1] == pytest.approx(rates[2] / 3), part
    assert f". Its learning rate is {wanted['train']['learning_rate']:g}" in caplog.text


def test_a_list_that_is_all_trigger_is_said(models, tmp_path: Path, caplog: Any) -> None:
    trio = models("wan_demo")
    everywhere = read(write_pictures(tmp_path / "pictures"), "a")
    with caplog.at_level("INFO", "lora_loom"):
        train(trio, everywhere, steps=1)
    assert f"{LOUD}: every neutral prompt contains the trigger word" in caplog.text


def test_a_stage_that_draws_from_another_goes_on_loud(models, named, caplog: Any) -> None:
    train(models("cascade_b"), named, steps=1, **QUIET)
    assert f"{LOUD}: Stable Cascade B draws from the stage C latent of a picture" in caplog.text


def test_text_encoders_and_a_lora_to_go_on_from(models, named, loras: Path) -> None:
    """Of text encoders the prompts themselves are the states; a run on a LoRA begins with that LoRA."""
    trio = models("sd15")
    begun = train(trio, named, steps=2, quiet="off", text_rank=2).adapter
    save(loras / "begun.safetensors", formats.encode(begun, "native", dtype=torch.float32))
    found = train(trio, named, steps=1, learning_rate=2e-9, text_rank=2, continue_from="begun.safetensors", **QUIET)
    (directions,) = known()
    assert any(name.startswith("text_encoders.") for name in directions)
    for name, layer in begun.layers.items():
        own = found.adapter.layers[name]
        torch.testing.assert_close(own.lora_B @ own.lora_A, layer.lora_B @ layer.lora_A, rtol=1e-2, atol=1e-6)
