"""LoRAs that drown the weights they correct are told in the report, whatever their kind, before a picture is black."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.calls import loaded, run_node
from harness.kinds import MAKERS, dora, written
from harness.layers import apply_layers
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.stack.weighted import Weighted, check_finite
from lora_loom.nodes.bridge.model.names import NameTable
from lora_loom.nodes.interference import LoraInterference
from lora_loom.nodes.load_stack import LoadLoraStack
from safetensors.torch import load_file, save_file
from tiny.stored import load_stored
from torch import Tensor

CONV, NORM = "lora_unet_down_blocks_0_resnets_0_conv1", "lora_unet_down_blocks_0_resnets_0_norm1"
ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
QUIET = {"LoRA": 0.1, "LoHa": 0.5, "LoKr": 0.3, "GLoRA": 0.05, "OFT": 0.02, "BOFT": 0.02, "full difference": 0.005}
LOUD = {"LoRA": 5.0, "LoHa": 5.0, "LoKr": 10.0, "GLoRA": 20.0, "OFT": 100.0, "full difference": 5.0}


def loud_line(model: Any, name: str, strength: float = 1.0) -> tuple[str, Any]:
    """Return what the report says of it, "" when nothing, and the MODEL with it."""
    out = run_node(LoadLoraStack, model=model, rows=f"<lora:{Path(name).stem}:{strength}>")
    lines = [line for line in out[3].splitlines() if "broken" in line]
    assert len(lines) < 2
    return "".join(lines), out[0]


def times(line: str) -> float:
    return float(re.search(r" is (\S+) times as large", line)[1])


def ratios(model: Any, patched: Any) -> dict[str, float]:
    """How much of its norm each changed parameter changes by, in the weights as they are sampled with."""
    before, after = loaded(model), loaded(patched)
    changed = [key for key, weight in before.items() if not torch.equal(after[key], weight)]
    return {key: float((after[key] - before[key]).norm() / before[key].norm()) for key in changed}


@pytest.mark.parametrize("strength", [1.0, -0.8])
@pytest.mark.parametrize("kind", LOUD)
def test_every_kind_is_told_with_the_figure_that_it_has(models, loras: Path, kind: str, strength: float) -> None:
    model = models("sd15").model
    line, patched = loud_line(model, written(loras, kind, model, "sd15", LOUD[kind]), strength)
    found = re.match(
        rf"{kind} is far too loud: its change of (\S+) is (\S+) times as large .*; the file is broken", line
    )
    ratio = ratios(model, patched)
    limit = 1.0 if kind == "OFT" else 10.0
    assert float(found[2]) == pytest.approx(ratio[f"{found[1]}.weight"], rel=6e-3) and float(found[2]) > limit
    assert float(found[2]) > 0.3 * max(ratio.values())
    fixed = kind in ("LoRA", "LoHa", "LoKr", "full difference")
    assert ("made for a strength" in line) == fixed


@pytest.mark.parametrize("kind", QUIET)
def test_what_is_not_loud_is_not_told(models, loras: Path, kind: str) -> None:
    model = models("sd15").model
    line, patched = loud_line(model, written(loras, kind, model, "sd15", QUIET[kind]))
    assert not line and 1e-4 < max(ratios(model, patched).values()) < 1.0


@pytest.mark.parametrize("kind", [kind for kind in LOUD if kind != "OFT"])
def test_what_gives_no_numbers_is_told(models, loras: Path, kind: str) -> None:
    """Every factor is finite; what they make is not, or is far from any weight."""
    model = models("sd15").model
    line, patched = loud_line(model, written(loras, kind, model, "sd15", 1e37))
    assert "is broken: it makes" in line or times(line) > 1e30
    if "NaN or infinite" in line:
        assert not all(weight.isfinite().all() for weight in loaded(patched).values())


@pytest.mark.parametrize("kind", ["OFT", "BOFT"])
@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_rotations_that_come_round_again_are_told_by_their_blocks(models, loras: Path, kind: str, limit: float) -> None:
    """Two half turns of BOFT are none, and an alpha limits what blocks of any size do."""
    model = models("sd15").model
    tensors = load_file(path := loras / written(loras, kind, model, "sd15", 1e15))
    alphas = {f"{name.rpartition('.')[0]}.alpha": torch.tensor(limit) for name in tensors if name.endswith("blocks")}
    save_file(tensors | alphas, path)
    line, patched = loud_line(model, path.stem)
    assert "its rotation blocks for diffusion_model." in line or " is 2 times as large" in line
    assert max(ratios(model, patched).values(), default=0.0) < 2.1


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("part, size", [("dora_scale", 300.0), ("lora_up.weight", 30_000.0)])
def test_dora_is_told_by_what_comes_out(models, loras: Path, axis: int, part: str, size: float) -> None:
    """Per column the norms of the sum are set, so that no update is loud; per row those of W alone count."""
    model = models("sd15").model
    table = NameTable(model)
    weight = loaded(model)[f"{table.targets[ATTENTION].layer}.weight"]
    tensors = dora(ATTENTION, tuple(weight.shape), axis)
    own = weight.norm(dim=1 - axis).reshape(tensors[f"{ATTENTION}.dora_scale"].shape)
    sound = {name: tensor * 0.1 for name, tensor in tensors.items()} | {f"{ATTENTION}.dora_scale": own.clone()}
    save_file(sound, loras / "sound.safetensors")
    assert loud_line(model, "sound")[0] == ""
    sound[f"{ATTENTION}.{part}"] *= size
    save_file(sound, loras / "wild.safetensors")
    line, patched = loud_line(model, "wild")
    (ratio,) = ratios(model, patched).values()
    assert bool(line) == (ratio > 10.0) == (part == "dora_scale" or axis == 0)
    assert not line or times(line) == pytest.approx(ratio, rel=6e-3)


@pytest.mark.parametrize(
    "name, size, told",
    [
        (f"{CONV}.diff_b", 300.0, True),
        (f"{CONV}.diff_b", 0.3, False),
        (f"{NORM}.w_norm", 300.0, True),
        (f"{NORM}.w_norm", 0.3, False),
        (f"{NORM}.set_weight", 3000.0, True),
        (f"{NORM}.set_weight", 0.9, False),
    ],
)
def test_biases_and_norms_are_told(models, loras: Path, name: str, size: float, told: bool) -> None:
    model = models("sd15").model
    table = NameTable(model)
    length = table.shapes[table.targets[CONV if "conv" in name else NORM].layer][0]
    own: dict[str, Tensor] = {name: torch.full((length,), size)}
    if name.endswith("diff_b"):
        own |= {f"{CONV}.lora_up.weight": torch.zeros(length, 1, 1, 1)}
        own |= {f"{CONV}.lora_down.weight": torch.zeros(1, *table.shapes[table.targets[CONV].layer][1:])}
    save_file(own, loras / "vector.safetensors")
    line, _ = loud_line(model, "vector")
    assert line.startswith("vector is far too loud") == told and ("in_layers.0 " in line or ".bias " in line) == told


def test_the_loudest_of_many_layers_is_found(models, loras: Path) -> None:
    """The loudest layers, of which three are looked at, are found by their factors alone."""
    model = models("flux1").model
    for kind in ("LoHa", "LoKr", "OFT"):
        tensors = load_file(loras / written(loras, kind, model, "flux1", QUIET[kind]))
        layers = {name.rpartition(".")[0] for name in tensors}
        for layer in sorted(layers):
            wild = {n: t * 1e4 if n.startswith(f"{layer}.") and "alpha" not in n else t for n, t in tensors.items()}
            save_file(wild, loras / "one.safetensors")
            assert loud_line(model, "one")[0], (kind, layer)


@pytest.mark.parametrize(
    "peak, told", [(60_000.0, "far too loud: its change of"), (70_000.0, "broken: it makes the weight")]
)
def test_a_weight_of_fp16_that_overflows_is_told(
    models, tmp_path: Path, random_adapter, peak: float, told: str
) -> None:
    """fp16 has numbers up to 65504, and one that is larger makes pictures black."""
    model = load_stored("sd15", tmp_path, "fp16")
    quiet = random_adapter(model)
    name, layer = next(iter(quiet.layers.items()))
    down, up = torch.zeros_like(layer.lora_A[:1]), torch.zeros_like(layer.lora_B[:, :1])
    down[0, 0], up[0, 0] = peak, 1.0
    wild = Adapter({name: LowRank(down, up, 1.0)})
    adapters = {"adapter0": wild, "adapter1": quiet}
    _, report, *_ = run_node(LoraInterference, model=model, strengths="", adapters=adapters)
    assert report.startswith(f"adapter 1 is {told} {name} ") and report.count("the file is broken") == (peak < 65504)
    patched = loaded(apply_layers(model, None, wild.layers)[0])[f"{name}.weight"]
    assert bool(patched.isfinite().all()) == (peak < 65504)


def test_numbers_that_are_none_are_refused_in_every_kind(models, loras: Path) -> None:
    model = models("sd15").model
    for kind in MAKERS:
        tensors = load_file(path := loras / written(loras, kind, model, "sd15"))
        name = sorted(name for name in tensors if "alpha" not in name)[0]
        tensors[name].view(-1)[0] = torch.nan
        save_file(tensors, path)
        with pytest.raises(ValueError, match="NaN or infinite values"):
            run_node(LoadLoraStack, model=model, rows=f"<lora:{path.stem}:1>")


def test_adapters_in_memory_are_asked_for_numbers_in_every_kind(models, loras: Path) -> None:
    """As a run that diverged leaves them: merges and figures stop, plain or not."""
    from lora_loom.lora_core.files import formats

    model = models("sd15").model
    for kind in MAKERS:
        adapter = formats.read(loras / written(loras, kind, model, "sd15"))
        check_finite([Weighted("a", adapter, 1.0, 1.0)])
        bad = Adapter({}, {}, {name: tuple(item.to(torch.float32, copy=True) for item in items)
                               for name, items in adapter.others.items()})  # fmt: skip
        next(iter(bad.others.values()))[0].tensors()[0].view(-1)[0] = torch.inf
        with pytest.raises(ValueError, match="NaN or infinite values"):
            check_finite([Weighted("a", bad, 1.0, 1.0)])
        check_finite([Weighted("a", bad, 0.0, 0.0)])
    plain = Adapter({"x": LowRank(torch.full((1, 2), torch.nan), torch.ones(2, 1), 1.0)})
    with pytest.raises(ValueError, match="NaN or infinite values"):
        check_finite([Weighted("a", plain, 1.0, 1.0)])
