from __future__ import annotations

import pytest
from lora_loom.console.progress import Progress
from lora_loom.console.words import Words

PROMPT = {
    "3": {"class_type": "LoraLoom_TrainLora", "inputs": {}, "_meta": {"title": "Trainer"}},
    "4": {"class_type": "KSampler", "inputs": {}, "_meta": {"title": "Sampler"}},
}


class Heard(Words):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def moving(self, text: str, now: bool = False) -> None:
        self.told.append(text)

    def line(self, text: str) -> None:
        self.told.append(f"= {text}")


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def progress(heard: Heard) -> Progress:
    return Progress(PROMPT, heard)


def test_a_run_tells_its_step_its_loss_and_the_time_left(progress: Progress, heard: Heard) -> None:
    progress.hear("executing", {"node": "3"})
    progress.hear("lora_loom.said", {"node": "3", "text": "step 5 of 10, loss 0.1, 0:05 left\na note", "working": True})
    progress.hear("progress", {"node": "3", "value": 5, "max": 10})
    progress.hear("lora_loom.said", {"node": "3", "text": "saving", "working": True})
    progress.hear("lora_loom.said", {"node": "3", "text": "finished\nsaved in x", "working": False})
    assert heard.told[0] == "Trainer" and heard.told[1] == "Trainer: step 5 of 10, loss 0.1, 0:05 left"
    assert heard.told[2:] == [
        "[############............] Trainer: step 5 of 10, loss 0.1, 0:05 left",
        "[############............] Trainer: saving", "= Trainer: finished\n    saved in x",
    ]  # fmt: skip


def test_another_node_has_its_bar_and_the_time_left(progress: Progress, heard: Heard) -> None:
    progress.hear("executing", {"node": "4"})
    progress.hear("progress", {"node": "4", "value": 5, "max": 20})
    assert heard.told == ["Sampler", "[######..................] Sampler: 5 of 20  0:00 left"]


def test_what_runs_and_nodes_tell_is_kept(progress: Progress) -> None:
    progress.hear("lora_loom.run", {"node": "3", "id": "a", "step": 1})
    progress.hear("lora_loom.run", {"node": "3", "id": "a", "step": 2})
    progress.hear("executed", {"node": "4", "output": {"images": []}})
    progress.hear(7, {"node": "4"})
    progress.hear("progress", b"picture")
    assert progress.runs["3"]["step"] == 2 and progress.outputs == {"4": {"images": []}}
