"""What a merge would be at other limits is what it is when it is made with them."""

from __future__ import annotations

import gc
import json
from dataclasses import replace

import pytest
import torch
from lora_loom.lora_core.adapter import TEXT_PREFIX, Adapter
from lora_loom.lora_core.drawing.measure import MOST_LINES, Cell, Line, Measure, Table
from lora_loom.lora_core.low_rank import LowRank
from lora_loom.lora_core.merging.cut_table import cut_measure
from lora_loom.lora_core.merging.merge import Merged, merge
from lora_loom.lora_core.merging.outlook import Loss, Outlook
from lora_loom.lora_core.merging.settings import MergeSettings
from lora_loom.lora_core.merging.truncation import Limits
from lora_loom.lora_core.stack.weighted import Weighted

KERNELS = {"diffusion_model.b": (3, 3)}
SHAPES = {"diffusion_model.a": (60, 48), "diffusion_model.b": (33, 90), f"{TEXT_PREFIX}c": (27, 27)}
SMALL = 0.008  # MB, about half of all
LIMITS = [
    Limits(1), Limits(3), Limits(0, 0.9), Limits(5, 0.7), Limits(0, 1.0, SMALL), Limits(2, 0.99, SMALL), Limits(),
    Limits(ratio=3.0), Limits(4, share=0.8), Limits(3, conv_rank=1), Limits(conv_rank=2, megabytes=SMALL),
]  # fmt: skip


def part(seed: int, strength: float = 1.0, text: float = 1.0) -> Weighted:
    generator, layers = torch.Generator().manual_seed(seed), {}
    for name, (out, columns) in SHAPES.items():
        decay = 0.7 ** torch.arange(4)
        down = torch.randn(4, columns, generator=generator) * decay[:, None]
        layers[name] = LowRank(down, torch.randn(out, 4, generator=generator), 4.0, KERNELS.get(name, ()))
    return Weighted(f"part {seed}", Adapter(layers), strength, text)


def same(found: Loss, wanted: Loss) -> None:
    assert found.ranks == wanted.ranks and found.parameters == wanted.parameters
    assert found.errors == pytest.approx(wanted.errors, rel=1e-4, abs=1e-6)
    assert found.error == pytest.approx(wanted.error, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["sum", "orthogonal"])
@pytest.mark.parametrize("before", [Limits(), Limits(2), Limits(0, 1.0, SMALL)], ids=["whole", "rank", "size"])
def test_other_limits(method: str, before: Limits) -> None:
    parts = [part(1), part(2, 0.5, -1.0)]
    made = merge(parts, MergeSettings(method), before)
    outlook = Outlook(made, "all", 0, before, bool(before))
    for limits in LIMITS:
        same(outlook.at(limits), Loss.of(merge(parts, MergeSettings(method), limits), "all"))


def test_other_strengths_of_a_single_lora() -> None:
    made = merge([part(1, 0.5, 2.0)], limits=Limits(3))
    outlook = Outlook(made, "all", 0, Limits(3), True)
    for strength, text in ((1.0, -1.0), (0.25, 0.0)):
        wanted = merge([part(1, strength, text)], limits=Limits(0, 1.0, SMALL))
        same(outlook.at(Limits(0, 1.0, SMALL), [(strength / 0.5, text / 2.0)]), Loss.of(wanted, "all"))
    with pytest.raises(ValueError, match="nothing is left"):
        outlook.at(Limits(2), [(0.0, 0.0)])


def test_other_strengths_of_several() -> None:
    """Of a sum that was not cut; what else is left of a merge does not tell."""
    before, now = [part(1, 0.5, 2.0), part(2, -1.0)], [part(1, 1.0, 0.0), part(2, 0.25, 3.0)]
    factors = [(2.0, 0.0), (-0.25, 3.0)]
    made = merge(before)
    for limits in LIMITS:
        same(Outlook(made, "all", 0, Limits(), False).at(limits, factors), Loss.of(merge(now, limits=limits), "all"))
    cut = merge(before, limits=Limits(3))
    assert Outlook(cut, "all", 0, Limits(3), True).at(Limits(2), [(2.0, 1.0)] * 2).error > 0
    for outlook in (Outlook(cut, "all", 0, Limits(3), True), Outlook(made, "all", 0, Limits(), False, plain=False)):
        with pytest.raises(LookupError):
            outlook.at(Limits(2), factors)


def test_the_header_is_as_long_as_its_figures() -> None:
    made = merge([part(1)], limits=Limits(2))
    outlook, asked = Outlook(made, "all", 500, Limits(2), True), Limits(12, 0.125, SMALL)
    wanted = merge([part(1)], limits=replace(asked, header=500 + len("120.1250.008") - len("21.00.0")))
    same(outlook.at(asked), Loss.of(wanted, "all"))


def test_what_is_gone_is_not_made_up() -> None:
    made = merge([part(1)])
    outlook, beside = Outlook(made, "all", 0, Limits(), False), Outlook(made, "all", 0, Limits(), False)
    assert outlook.at(Limits(2)).error > 0
    del made
    gc.collect()
    assert outlook.at(Limits(1)).error > 0, "what was found once is kept"
    with pytest.raises(LookupError):
        beside.at(Limits(2))


def test_the_sentence_and_the_curve_say_the_same() -> None:
    parts = [part(1), part(2)]
    measure = cut_measure(Loss.of(made := merge(parts, limits=Limits(3)), "the sum"))
    size = 2 * sum(layer.num_parameters() for layer in made.layers.values())
    assert (
        measure.verdict
        == f"{100 * made.error:.3g} % of the sum is lost: 3 layers of rank 3, {size / 1e6:.1f} MB as fp16."
    )
    assert measure.curve and measure.curve.mark == (3.0, made.error)
    for (rank, error), told in zip(measure.curve.points, measure.curve.told, strict=True):
        wanted = merge(parts, limits=Limits(int(rank)))
        assert error == pytest.approx(wanted.error, rel=1e-4, abs=1e-6)
        assert told.startswith(f"rank {rank:.0f}: {100 * error:.3g} % is lost, ")
    assert cut_measure(Loss.of(merge(parts), "the sum")).verdict.startswith("Nothing is lost: 3 layers of rank 8, ")
    assert cut_measure(Loss.of(Merged({}, {"a": 1.0}, 1.0), "all")).curve is None


def test_what_is_sent_is_bounded() -> None:
    lines = tuple(Line(f"layer {n}" + "x" * 1000, (Cell("1", 2 / 3, "y" * 1000),)) for n in range(5000))
    sent = Measure("z" * 1000, tables=(Table("bars", "t", "layer", ("error",), lines),)).as_json()
    (table,) = json.loads(sent)["tables"]
    assert len(sent) < 200_000 and len(table["lines"]) == MOST_LINES
    assert table["note"] == f"{5000 - MOST_LINES} more are in the report" and table["lines"][0]["cells"][0][1] == 0.667
