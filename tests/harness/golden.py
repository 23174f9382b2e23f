"""Makes what the golden files in tests/golden hold, built anew of constants: nothing is drawn, trained or read from a
clock.

`tests/golden/make.py` writes the files. They are those of version 0.1.0 and are not to be written again when a test
finds that they differ: what it found is that a run, a cache or a picture that a person has would no longer be known.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.analysis.device_check import Check, CheckFinding
from lora_loom.lora_core.analysis.leakage import CLASS, CONCEPT, Leakage, PictureChange
from lora_loom.lora_core.analysis.memorisation import Memorisation, Nearest
from lora_loom.lora_core.data.dataset import Dataset, Options
from lora_loom.lora_core.data.reading import from_tensors
from lora_loom.lora_core.files import lineage, metadata
from lora_loom.lora_core.files.card import Card
from lora_loom.lora_core.files.hashes import content_hash
from lora_loom.lora_core.files.lineage import Parent
from lora_loom.lora_core.kinds import BOFT, OFT, Difference, DoRA, GLoRA, LoHa, LoKr, Padded, Placed, Replacement
from lora_loom.lora_core.kinds.correction import Correction
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.runs.recipe_json import RecipeRecord
from lora_loom.lora_core.runs.result import Finished
from lora_loom.lora_core.stack import attribution
from lora_loom.lora_core.stack.rows import Row
from lora_loom.lora_core.training import validation
from lora_loom.lora_core.training.batches import Batches
from lora_loom.lora_core.training.config import (
    LoraConfig,
    OptimizerConfig,
    Recipe,
    TextConfig,
    TrainConfig,
    Validation,
    fingerprint,
)
from lora_loom.lora_core.training.health import Health
from lora_loom.lora_core.training.inject import Factors
from lora_loom.lora_core.training.layers import LayersConfig, Rule
from lora_loom.lora_core.training.objective_config import ObjectiveConfig
from lora_loom.lora_core.training.record import Point, Record
from lora_loom.lora_core.training.state import TrainState
from lora_loom.lora_core.training.steps import Look, StepResult
from lora_loom.lora_core.training.trainer import Trouble, make_optimizer
from lora_loom.lora_core.training.validation import Draw
from torch import Tensor, nn

from harness.comfyui import ROOT

FOLDER = ROOT / "tests" / "golden"
KEYS = FOLDER / "keys.json"
IDENTITY, KEY, STEP, NAME = "600d" * 4, "golden key", 3, "golden"
RUN = FOLDER / "run" / f"{NAME}-{IDENTITY[:8]}"
CACHE = FOLDER / "cache"

_PLAIN = Recipe(LoraConfig(), TrainConfig())
RECIPES = {
    "as it comes": _PLAIN,
    "layers chosen": replace(_PLAIN, lora=LoraConfig(8, 4.0, "all-linear", ("mid*", "up"), ("norm",))),
    "rules": replace(
        _PLAIN,
        lora=LoraConfig(options=LayersConfig(rules=(Rule("attn2", 8, 4.0, 0.5), Rule("to_q"), Rule("ff", rate=2.0)))),
    ),
    "options": replace(
        _PLAIN, lora=LoraConfig(options=LayersConfig("alpha / sqrt(rank)", 16.0, 0.1, 0.2, 1.5, (), True))
    ),
    "steps": replace(_PLAIN, train=TrainConfig(steps=20, learning_rate=3e-4, batch_size=2, accumulation=3, seed=7)),
    "objective": replace(
        _PLAIN,
        train=TrainConfig(
            objective=ObjectiveConfig(
                "huber", 0.2, "constant", "min_snr", 4.0, "shifted", 2.5, 0.1, 0.9, 1.1, 0.05, 0.3, 0.8
            )
        ),
    ),
    "text": replace(_PLAIN, text=TextConfig(4, 5e-5)),
    "preserve": replace(_PLAIN, train=TrainConfig(caption_dropout=0.1, preservation=0.5), preserve=("cat", "dog")),
    "watched": replace(_PLAIN, validation=Validation(0.2, 50, 2, 3, True, "best", 5)),
    **{
        name: replace(_PLAIN, train=TrainConfig(learning_rate=1.0, optimizer=optimizer))
        for name, optimizer in {
            "adamw": OptimizerConfig("adamw", "rex", 5, 2, 0.1, 0.8, 0.95, 1e-6, 0.5, 0.99),
            "adamw8bit": OptimizerConfig("adamw8bit"),
            "adafactor": OptimizerConfig("adafactor", "linear"),
            "lion": OptimizerConfig("lion", "cosine_restarts", restarts=3),
            "prodigy": OptimizerConfig("prodigy", "constant"),
            "schedule_free_adamw": OptimizerConfig("schedule_free_adamw", "constant"),
            "muon": OptimizerConfig("muon", weight_decay=0.0),
        }.items()
    },
}  # fmt: skip
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free_adamw", "muon")
RESULT = StepResult(3, 0.25, 1.5, 1e-3, 0.5, 0.125, (Look(0, 0.1, 0.2), Look(1, 0.9, 0.3)))
TROUBLE = Trouble(3, "step 4 was dropped: the loss was nan")
FINISHED = Finished(STEP, f"step_{STEP:06d}.safetensors", STEP, [0.5, 0.375, 0.25], "It is well.\n3 steps", "well")
DRAWS = [Draw(0, 0.125, 12345678901234567), Draw(2, 0.1 + 0.2, 3)]


def numbers(*shape: int, start: int = 0) -> Tensor:
    """fp32 that every machine has exactly."""
    return (torch.arange(start, start + int(torch.tensor(shape).prod())) / 8).reshape(shape)


def turned(rows: Tensor) -> Tensor:
    """Return a reordering of rows that undoes itself."""
    return rows.flip(0)


def low_rank(start: int = 0) -> LowRank:
    return LowRank(numbers(2, 4, start=start), numbers(3, 2, start=start + 1), 1.5)


def corrections() -> dict[str, Correction]:
    """Return one of each kind, of a weight (3, 4) or (4, 4)."""
    square = numbers(2, 2, 2)
    loha = LoHa(numbers(3, 2), numbers(2, 4), numbers(3, 2, start=3), numbers(2, 4, start=5), 0.5)
    return {
        "loha": loha,
        "lokr": LoKr((numbers(1, 2),), (numbers(3, 2),), 2.0),
        "glora": GLoRA(numbers(2, 4), numbers(4, 2), numbers(2, 4), numbers(3, 2), 0.25),
        "oft": OFT(square, 0.5),
        "boft": BOFT(square[None], 0.25, numbers(4, 1)),
        "difference": Difference(numbers(3, 4)),
        "replacement": Replacement(numbers(3, 4)),
        "dora": DoRA(low_rank(), numbers(3), 0, "base"),
        "dora of loha": DoRA(loha, numbers(4), 1),
        "padded": Padded(low_rank()),
        "placed": Placed(Difference(numbers(2, 4)), 1, 2),
        "placed, turned": Placed(Difference(numbers(2, 4)), 0, 2, turned),
    }  # fmt: skip


def parent() -> Parent:
    return Parent(
        "ink.safetensors", "ab" * 32, 0.8, 0.5, "someone", "CC0-1.0", "inkish", "base.safetensors",
        [{"name": "older", "sha256": "cd" * 32, "strength": 1.0}], "MID=0.5", "adapter", {"ss_steps": "7"},
        {"modelspec.signature": "ef" * 32},
    )  # fmt: skip


def dataset(options: Options | None = None) -> Dataset:
    """Two pictures, each of one colour, so that no scaling of a picture changes what they are."""
    pictures = [torch.full((64, 64, 3), 0.2), torch.full((96, 64, 3), 0.6)]
    return from_tensors(pictures, ["a sks, red, round", "sks, blue"], "sks", 64, 16, 2, options or Options())


OPTIONS = Options(True, 2, True, 1, 3, (64, 128), 0.5, False, "auto", True)


def settings(recipe: Recipe) -> RecipeRecord:
    return RecipeRecord(
        recipe, {"fingerprint": "0123"}, {"family": "sd15", "files": {"model": ["base.safetensors"]}},
        {"lora_loom": "0.1.0"},
    )  # fmt: skip


def lora() -> Adapter:
    """Return a LoRA with all that a header tells."""
    layers = {"diffusion_model.a": low_rank(), "text_encoders.l.b": low_rank(3)}
    recipe = replace(RECIPES["rules"], validation=RECIPES["watched"].validation, text=RECIPES["text"].text)
    facts = metadata.Facts(
        "golden", "stable-diffusion-v1", "sd_v1", "base.safetensors", "12" * 32, "345678", "sks", "epsilon", (64, 64),
        steps=STEP, max_steps=20, batch_size=2, accumulation=1, learning_rate=1e-4, text_learning_rate=5e-5,
        optimizer="AdamW", scheduler="cosine", warmup=1, max_grad_norm=1.0, caption_dropout=0.1, clip_skip=2, seed=7,
        targets=("attention", "mid*"), min_snr_gamma=5.0, loss="huber", noise_offset=0.05, max_norm=1.5, num_images=2,
        num_class_images=1, buckets={(64, 64): 2.0}, tag_frequency={"2_sks": {"red": 1}},
        dataset_dirs={"2_sks": (2, 2)}, class_dirs={"1_cat": (1, 1)}, folder_triggers={"2_sks": "sks"},
        settings=settings(recipe).to_json(), merged_from=(parent(),), made_by={"method": "sum"},
        continued_from=parent(),
    )  # fmt: skip
    adapter = Adapter(layers)
    return replace(adapter, metadata=metadata.build(facts, adapter))


def fresh(optimizer: str) -> TrainState:
    """A run that has not begun."""
    generator, config = torch.Generator().manual_seed(0), RECIPES[optimizer].train
    factors = Factors({"a": nn.Linear(4, 3), "b": nn.Conv2d(1, 2, 2)}, 1, 1.0, generator)
    return TrainState(factors, Batches(["x"] * 3, 2, 2, generator), generator, make_optimizer(factors, config))


def stepped(optimizer: str) -> TrainState:
    """A run whose optimiser has made a step, of whatever numbers."""
    state = fresh(optimizer)
    state.factors.flat.grad.copy_(numbers(*state.factors.flat.shape))
    state.optimizer.step()
    state.factors.flat.grad.zero_()
    return state


def advanced(optimizer: str) -> TrainState:
    """A run at STEP that has everything a state can have, in numbers that no machine works out differently."""
    state = stepped(optimizer)
    with torch.no_grad():
        state.factors.flat.copy_(numbers(*state.factors.flat.shape))
        for values in state.optimizer.state.values():
            for name in values:
                values[name] = numbers(*values[name].shape).to(values[name].dtype)
    state.generator.set_state(torch.Generator().manual_seed(1).get_state())
    state.step, state.losses, state.events = STEP, [0.5, 0.375, 0.25], 5
    state.batches.queue, state.health = [[0, 1], [2]], Health(2, 1, 0.3)
    state.ema = numbers(*state.factors.flat.shape, start=2) if optimizer == "adamw" else None
    state.record = Record(key=validation.key(DRAWS), base=[0.5, 0.25], points=[Point(2, [0.5, 0.125])])
    state.record.take(RESULT, 200)
    state.record.windows[-1].sizes = [0.5]
    return state


def told() -> dict[str, Any]:
    """Identities, hashes and texts of what ComfyUI is not asked for."""
    picture = attribution.entry(Row("styles/ink", 0.8, 0.5), lora().metadata, "ab" * 32)
    return {
        "identities": {name: fingerprint(recipe.lora, recipe.train) for name, recipe in RECIPES.items()},
        "further identities": {
            "text": fingerprint(RECIPES["text"].text),
            "watched": fingerprint("0.1.0", IDENTITY, RECIPES["watched"].validation, ["a.png"]),
        },
        "settings": {name: settings(recipe).to_json() for name, recipe in RECIPES.items()},
        "contents": {name: content_hash(Adapter({}, {}, {"a": (each,)})) for name, each in corrections().items()},
        "content of LoRA": content_hash(lora()),
        "draws": validation.key(DRAWS),
        "data sets": [dataset().fingerprint(), dataset(OPTIONS).fingerprint()],
        "pictures": [each.digest for each in (*dataset().examples, *dataset(OPTIONS).examples)],
        "parent": parent().described(),
        "optimizers": {name: RECIPES[name].train.optimizer.described() for name in OPTIMIZERS},
        "picture": picture,
        "hashes of picture": attribution.lora_hashes([picture]),
        "key of content": lineage.CONTENT,
        **_figures(),
    }


def _figures() -> dict[str, Any]:
    """Return what nodes and the picker tell as JSON."""
    finding = CheckFinding("time", "step", True, "0.1 s", {"seconds": 0.1}, True)
    changes = {CONCEPT: PictureChange(0.5, 0.25, 0.125), CLASS: PictureChange(0.25, 0.125, 0.5)}
    return {
        "card": Card("t", ("w",), "sd15", "me", "CC0-1.0", "at 0.8", True, "").to_dict(),
        "leakage": Leakage(changes, {CONCEPT: 1, CLASS: 2}).figures(),
        "memorisation": Memorisation((Nearest(0, 0.5, 0.25, None),), (0.5,), ()).figures(),
        "check": json.loads(Check({"device": "cpu"}, [finding], 1.0).as_json())["findings"],
    }


def stored() -> dict[str, Any]:
    return json.loads(KEYS.read_text(encoding="utf-8"))


def as_stored(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value))


def state_path(optimizer: str) -> Path:
    return FOLDER / "states" / f"{optimizer}.safetensors"
