"""Quiet runs with all else that a run can be: as with every product by itself in fp64, and exact when cut off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from harness.calls import relative_error, run_node
from harness.runs import Outputs, cancelled, read, train, write_pictures
from lora_loom.lora_core.training.config import OptimizerConfig
from lora_loom.lora_core.training.layers import LayersConfig
from lora_loom.lora_core.training.quieted import Quieted
from lora_loom.nodes.load_stack import LoadLoraStack
from tiny.stored import load_stored

pytestmark = pytest.mark.usefixtures("runs", "few")
Made = Callable[[str], tiny.Loaded]
FORMS = ("fp8_e4m3fn", "scaled_fp8", "nvfp4")


def _optimizer(name: str) -> OptimizerConfig:
    return OptimizerConfig(name, "constant")


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "batch of 4, 2 at a time": ("wan_demo", {"batch_size": 2, "accumulation": 2}),
    "one at a time": ("wan_demo", {"batch_size": 1}),
    "no checkpointing": ("sd15", {"gradient_checkpointing": False}),
    "blocks copied from RAM": ("flux1", {"offload": 1.0, "memory": "as set"}),
    "fused layers": ("flux1", {"targets": "all-linear"}),
    "convolutions": ("sd15", {"targets": "linear+conv"}),
    "text encoders": ("sd15", {"text_rank": 2, "targets": "attention+mlp"}),
    "DoRA": ("sd15", {"layers": LayersConfig(dora=True)}),
    "on a stack, in the weights": ("flux1 under weights", {}),
    "on a stack, beside them": ("flux1 under beside", {}),
    "preservation": ("wan_demo", {"quiet": "directions+preservation"}),
    **{form: (f"flux1 as {form}", {"targets": "attention+mlp"}) for form in FORMS},
    **{name: ("wan_demo", {"optimizer": _optimizer(name)}) for name in ("adamw8bit", "prodigy", "muon")},
}  # fmt: skip


@pytest.fixture
def named(tmp_path: Path) -> Any:
    return read(write_pictures(tmp_path / "pictures"), "number")


@pytest.fixture
def made(models, make_lora, loras: Path, tmp_path: Path) -> Made:
    """A base model by its family, `under` a LoRA applied so, or stored `as` a form."""

    def make(name: str) -> tiny.Loaded:
        family, how, what = (*name.split(), "", "")[:3]
        trio = models(family)
        if how == "as":
            with torch.inference_mode():
                return replace(trio, model=load_stored(family, tmp_path, what))
        if how == "under":
            make_lora(family, loras / "below.safetensors", size=0.5)
            row = {"lora_1": "below.safetensors", "strength_1": 1.0, "text_strength_1": 1.0, "apply": what}
            return replace(trio, model=run_node(LoadLoraStack, model=trio.model, **row)[0])
        return trio

    return make


def plainly(patched: pytest.MonkeyPatch) -> None:
    """Have what `Quieted` works out in batches worked out layer by layer, by the definition of P in fp64."""
    init = Quieted.__init__

    def remembered(self: Quieted, flat: Any, matrices: Any, quiet: Any) -> None:
        init(self, flat, matrices, quiet)
        own = {name: own.to(flat.device) for name, own in self.quiet.items()}
        self.plain = [(matrices[name, 0], self.leaves[name, 0], quieting) for name, quieting in own.items()]

    def refresh(self: Quieted) -> None:
        if self.version == self.flat._version:
            return
        with torch.inference_mode(False), torch.no_grad():
            self.shown.copy_(self.flat)
            for trained, shown, own in self.plain:
                shown.copy_(own.apply(trained.double()))
        self.version = self.flat._version

    def carry_back(self: Quieted) -> None:
        for _, shown, own in self.plain:
            shown.grad.copy_(own.apply(shown.grad.double()))

    patched.setattr(Quieted, "__init__", remembered)
    patched.setattr(Quieted, "refresh", refresh)
    patched.setattr(Quieted, "carry_back", torch.no_grad()(carry_back))


def weights_of(found: Outputs) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in found.lora_model.values()])


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_definition_and_goes_on_exactly(made: Made, named, case: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("lora_loom.nodes.bridge.quiet.choice.EVERY", 2)
    name, changes = CASES[case]
    trio, changes = made(name), {"steps": 2, "quiet": "directions", "accumulation": 1, **changes}
    if changes.get("optimizer") == _optimizer("prodigy"):
        changes["learning_rate"] = 1.0
    whole = train(trio, named, **changes)
    with pytest.MonkeyPatch.context() as patched:
        plainly(patched)
        plain = train(trio, named, **changes, run_name="plain")
    assert whole.loss_map["loss"] == pytest.approx(plain.loss_map["loss"], rel=1e-5)
    error = relative_error(weights_of(whole), weights_of(plain))
    assert error < 1e-4, "and 0.2 from a loud one"
    with cancelled(trio, changes["accumulation"] + 1):
        train(trio, named, **changes, run_name="cut")
    cut = train(trio, named, **changes, run_name="cut")
    assert torch.equal(weights_of(cut), weights_of(whole)) and cut.loss_map == whole.loss_map
