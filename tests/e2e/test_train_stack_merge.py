"""Train, cancel, resume, crash, stack and merge through a real server's HTTP API and websocket."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from demo import shapes
from harness.server import ComfyServer, ExecutionError, RefusedError
from PIL import Image
from safetensors.torch import load_file

from e2e import graphs


@pytest.fixture(scope="module")
def folder(server: ComfyServer) -> str:
    shapes.write_dataset(server.base / "input" / "e2e_heart", "heart", 6, 64, 0)
    return "e2e_heart"


def lora_file(server: ComfyServer, name: str) -> Path:
    return server.base / "models" / "loras" / graphs.FOLDER / f"{name}.safetensors"


def run_folder(server: ComfyServer, name: str) -> Path:
    (found,) = (server.base / "output" / "lora_loom").glob(f"{name}-*")
    return found


def pixels(server: ComfyServer, graph: graphs.Graph) -> np.ndarray:
    image = server.run(graph)["outputs"]["picture"]["images"][0]
    return np.asarray(Image.open(io.BytesIO(server.view(image))).convert("RGB"), dtype=np.float32)


def wait_for_steps(server: ComfyServer, prompt: str, steps: int) -> None:
    """Until the training node has reported at least so many steps."""
    server.events.wait(
        lambda event: event.kind == "progress" and event.prompt_id == prompt and event.data["value"] >= steps,
        timeout=120,
    )


def test_training_writes_a_verified_file(server: ComfyServer, folder: str) -> None:
    shown = server.run(graphs.training(folder, "plain"))["outputs"]
    (told,) = shown["train"]["text"]
    assert f"saved in output/lora_loom/{run_folder(server, 'plain').name}" in told and shown["train"]["images"]
    assert (
        shown["data"]["text"][0].startswith("6 captions, one for every picture\n6 images") and shown["data"]["images"]
    )
    saved = load_file(lora_file(server, "plain"))
    assert len(saved) == 48 * 3
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if "lora_up" in name)
    proofs = [line for line in server.log().splitlines() if "verified with ComfyUI's loader" in line]
    assert "144 keys matched, 0 unmatched, 48 layers applied" in proofs[-1]


def test_progress_picture_and_text_reach_the_browser(server: ComfyServer, folder: str) -> None:
    before = len(server.events.all("binary"))
    prompt = server.post_prompt(graphs.training(folder, "shown", seed=11))
    steps = [event.data["value"] for event in server.told("progress", prompt) if event.data["node"] == "train"]
    assert steps[-1] == 6
    assert len(server.events.all("binary")) > before  # pictures
    said = [event.data for event in server.told("lora_loom.said", prompt)]
    assert {each["node"] for each in said} == {"train"} and "step 6 of 6, loss" in said[-2]["text"]
    assert [each["working"] for each in said] == [True] * (len(said) - 1) + [False]


def test_cancel_is_fast_and_resume_ends_in_the_same_bytes(server: ComfyServer, folder: str) -> None:
    long = graphs.training(folder, "cancelled", steps=40, seed=21)
    whole = graphs.training(folder, "whole", steps=40, seed=21)
    prompt = server.post_prompt(long)
    wait_for_steps(server, prompt, 5)
    server.interrupt()
    kept = run_folder(server, "cancelled")
    noted = (kept / "log.jsonl").read_text(encoding="utf-8").count('"loss"')
    assert server.wait(prompt)["status"]["status_str"] == "error"
    (partial,) = kept.glob("step_*.safetensors")
    done = int(partial.stem.removeprefix("step_"))
    assert (kept / "state.safetensors").is_file() and 5 <= done < 40
    assert done <= noted + 1, "only the step in which it was told may come to its end"
    assert len(load_file(partial)) == 48 * 3
    last = server.told("lora_loom.said", prompt)[-1].data
    assert last["text"].startswith(
        f"stopped at {done} of 40, saved; queue again to continue\nsaved in output/lora_loom/{kept.name}"
    )

    server.run(long)
    server.run(whole)
    assert "continuing cancelled-" in server.log()
    resumed, straight = load_file(lora_file(server, "cancelled")), load_file(lora_file(server, "whole"))
    assert all(bool((resumed[name] == straight[name]).all()) for name in straight)


def test_a_kill_loses_at_most_save_every_steps(server: ComfyServer, folder: str, tmp_path: Path) -> None:
    """Another server goes on with what the first left on the disk."""
    graph = graphs.training(folder, "killed", steps=30, save_every=4, seed=31)
    with ComfyServer(tmp_path) as first:
        shutil.copytree(server.base / "input" / folder, first.base / "input" / folder)
        wait_for_steps(first, first.post_prompt(graph), 9)
        first.kill()
        left = run_folder(first, "killed")
        assert (left / "state.safetensors").is_file()
        shutil.copytree(left, server.base / "output" / "lora_loom" / left.name)
    server.run(graph)
    (resumed,) = re.findall(r"continuing killed-\w+ at step (\d+) of 30", server.log())
    assert int(resumed) >= 8 and int(resumed) % 4 == 0
    killed = load_file(lora_file(server, "killed"))
    server.run(graphs.training(folder, "straight", steps=30, save_every=0, seed=31))
    straight = load_file(lora_file(server, "straight"))
    assert all(bool((killed[name] == straight[name]).all()) for name in straight)


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="limits of another process are set on Linux only")
def test_a_full_disk_is_one_sentence_and_the_lora_still_comes_out(server: ComfyServer, folder: str) -> None:
    """No file may grow to the size of the run's state."""
    server.run(graphs.training(folder, "roomy", steps=12, seed=51))
    size = (run_folder(server, "roomy") / "state.safetensors").stat().st_size
    full = graphs.training(folder, "full", steps=12, seed=51, save_every=4)
    process = psutil.Process(server.pid)
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        server.run(full)
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, before)
    told = [line for line in server.log().splitlines() if "step 12 was not saved" in line]
    assert told and re.search(
        r"The LoRA was saved as step_000012.+ state of the run was not. step 12 .+Free some", told[-1]
    )
    resumed, straight = load_file(lora_file(server, "full")), load_file(lora_file(server, "roomy"))
    assert all(bool((resumed[name] == straight[name]).all()) for name in straight)


def test_one_prompt_trains_and_samples_with_the_result(server: ComfyServer, folder: str) -> None:
    graph = graphs.training(folder, "sampled", steps=8, seed=41, learning_rate=1e-2)
    graph["load"] = graphs.node(
        "LoraModelLoader", model=["unet", 0], lora=["train", 0], strength_model=1.0, bypass=False
    )
    trained = pixels(server, graph | graphs.picture(["load", 0], ["clip", 0], "a red heart on a white background"))
    saved = f"{graphs.FOLDER}/sampled.safetensors"
    assert np.abs(trained - pixels(server, graphs.stack({saved: 1.0}))).max() <= 1
    assert np.abs(trained - pixels(server, graphs.stack({saved: 0.0}))).mean() > 0.5


def test_stack_and_merge_agree(server: ComfyServer, folder: str) -> None:
    server.run(graphs.training(folder, "one", steps=8, seed=1, learning_rate=1e-2))
    server.run(graphs.training(folder, "two", steps=8, seed=2, learning_rate=1e-2, rank=2))
    one, two, merged = (f"{graphs.FOLDER}/{name}.safetensors" for name in ("one", "two", "both"))
    off, live = pixels(server, graphs.stack({one: 0.0})), pixels(server, graphs.stack({one: 0.7, two: 0.5}))
    assert np.abs(off - live).mean() > 0.5
    graph = {
        key: value
        for key, value in graphs.stack({one: 0.7, two: 0.5}).items()
        if key in ("unet", "clip", "vae", "stack")
    }
    graph["merge"] = graphs.node(
        "LoraLoom_MergeLora", model=["unet", 0], clip=["clip", 0], rank=0, strengths="", lora_stack=["stack", 2]
    )
    graph["save"] = graphs.node("LoraLoom_SaveLora", adapter=["merge", 0], model=["unet", 0], clip=["clip", 0], name=f"{graphs.FOLDER}/both",
                                format="kohya", dtype="fp32", overwrite=True)  # fmt: skip
    server.run(graph)
    alone = pixels(server, graphs.stack({merged: 1.0}))
    assert np.abs(alone - live).max() <= 1
    assert np.array_equal(pixels(server, graphs.stack({two: 0.0})), off)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folder": "no_such_folder"}, "does not exist"),
        ({"resolution": 72}, "not a multiple of bucket_step 16"),
    ],
)
def test_bad_input_is_refused_at_queue_time(server: ComfyServer, folder: str, change: dict, words: str) -> None:
    graph = graphs.training(folder, "refused")
    graph["data"]["inputs"] |= change
    with pytest.raises(RefusedError, match=words):
        server.post_prompt(graph)


def test_bad_input_that_shows_late_is_one_sentence(server: ComfyServer, folder: str) -> None:
    graph = graphs.training(folder, "nothing", exclude="*")
    with pytest.raises(ExecutionError, match="select none of the model's"):
        server.run(graph)
