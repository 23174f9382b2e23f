"""Sizes, scaling, dropout and rules of single layers."""

from __future__ import annotations

import math

import pytest
import torch
from lora_loom.lora_core.training.inject import Factors, attached
from lora_loom.lora_core.training.layers import LayersConfig, Rule, counted, parse_rules
from torch import nn
from torch.utils.checkpoint import checkpoint

NAMES = ["down.0.attn1.to_q", "down.0.attn2.to_q", "down.1.attn2.to_k", "text_encoders.l.q"]


def make(layers: dict[str, nn.Module], options: LayersConfig, rank: int = 4, alpha: float = 2.0) -> Factors:
    return Factors(layers, rank, alpha, torch.Generator().manual_seed(1), text_rank=3, options=options)


def linears(names: list[str] = NAMES) -> dict[str, nn.Module]:
    return {name: nn.Linear(12, 10).requires_grad_(False) for name in names}


def fill(factors: Factors) -> None:
    factors.flat.copy_(torch.randn(len(factors.flat), generator=torch.Generator().manual_seed(2)))


def test_rules_are_read_line_by_line():
    text = "attn2 = rank 8, alpha 4, rate 0.5\n\n# all of the first\ndown.0.* = rate 1e-1\n"
    assert parse_rules(text) == (Rule("attn2", 8, 4.0, 0.5), Rule("down.0.*", rate=0.1)) and parse_rules(" \n") == ()
    assert str(parse_rules(text)[0]) == "attn2 = rank 8, alpha 4, rate 0.5"


@pytest.mark.parametrize(
    "line", ["attn2", "attn2 =", "= rank 8", "attn2 = rank", "attn2 = rank 8.5", "attn2 = rank 8 alpha 4", "a = dim 8"]
)
def test_a_line_that_cannot_be_read_is_quoted(line):
    with pytest.raises(ValueError) as caught:
        parse_rules(f"a = rank 1\n{line}")
    assert repr(line) in str(caught.value) and "attn2 = rank 8, alpha 4, rate 0.5" in str(caught.value)


def test_numbers_of_a_rule_have_limits():
    with pytest.raises(ValueError, match="rank of 'a' is 0; it must be between 1 and 1024"):
        parse_rules("a = rank 0")


def test_every_rule_tells_how_many_layers_it_hits():
    rules = parse_rules("attn2 = rank 8\n*to_q = rate 2")
    assert counted(rules, NAMES, "") == [
        "per_layer: attn2 = rank 8 applies to 2 of 4 layers", "per_layer: *to_q = rate 2 applies to 2 of 4 layers",
    ]  # fmt: skip
    with pytest.raises(
        ValueError, match="per_layer: 'attn3 = rank 8' matches none of the 4 trained layers; they are: a"
    ):
        counted(parse_rules("attn3 = rank 8"), NAMES, "a, b")


def test_later_rules_win_setting_by_setting():
    rules = parse_rules("attn2 = rank 8, rate 0.5\ndown.1 = rank 2, alpha 3\ntext_encoders = rate 2")
    factors = make(linears(), LayersConfig(rules=rules))
    ranks = {name: (layer.rank, layer.scaling) for name, layer in factors.low_ranks().items()}
    assert list(ranks.values()) == [(4, 0.5), (8, 0.5), (2, 1.5), (3, 0.5)]
    found = [(part.text, part.rate, len(part.flat)) for part in factors.parts]
    assert found == [(False, 0.5, (8 + 2) * 22), (False, 1.0, 4 * 22), (True, 2.0, 3 * 22)]


def test_each_part_is_one_piece_and_the_draws_do_not_depend_on_the_layout():
    plain, split = (make(linears(), LayersConfig(lora_plus_ratio=ratio)) for ratio in (1.0, 16.0))
    assert [(part.text, part.rate) for part in split.parts] == [(False, 1), (False, 16), (True, 1), (True, 16)]
    assert sum(len(part.flat) for part in split.parts) == len(split.flat) == len(plain.flat)
    for name, branch in split.branches.items():
        assert torch.equal(branch.lora_A, plain.branches[name].lora_A) and not branch.lora_B.any()
    split.flat.grad.copy_(torch.arange(len(split.flat)))
    assert torch.equal(torch.cat([part.flat.grad for part in split.parts]), split.flat.grad)
    for part in split.parts:
        assert torch.equal(torch.cat([matrix.grad.flatten() for matrix in part.matrices]), part.flat.grad)
    assert torch.equal(split.text_gradient(), torch.cat([part.flat.grad for part in split.parts[2:]]))


@pytest.mark.parametrize("rank", [2, 7, 64])
def test_rslora_is_alpha_over_the_root_of_the_rank_whatever_a_layer_can_have(rank):
    factors = make({"a": nn.Linear(80, 70), "small": nn.Linear(3, 70)}, LayersConfig("alpha / sqrt(rank)"), rank)
    layers = factors.low_ranks()
    assert layers["a"].alpha == pytest.approx(2.0 * math.sqrt(rank))
    assert [layer.scaling for layer in layers.values()] == pytest.approx([2.0 / math.sqrt(rank)] * 2)


@pytest.mark.parametrize("layer", [nn.Linear(12, 10), nn.Conv2d(3, 10, 2)], ids=["linear", "conv"])
@pytest.mark.parametrize("options", [LayersConfig(rank_dropout=0.5), LayersConfig(layer_dropout=0.5)], ids=str)
def test_dropout_is_unbiased_and_the_same_when_recomputed(layer, options):
    """The mean over many draws is the answer without; a checkpointed pass has the gradient of a plain one."""
    layer.requires_grad_(False)
    factors, draw = make({"a": layer}, options), torch.Generator().manual_seed(3)
    fill(factors)
    x = torch.randn(2, *((12,) if isinstance(layer, nn.Linear) else (3, 4, 4)), requires_grad=True)
    with attached(factors.branches):
        wanted, total, kinds = layer(x).detach(), 0.0, set()
        for _ in range(2000):
            with torch.no_grad(), factors.dropped(draw):
                kinds.add(tuple(factors.branches["a"].keep.tolist()))
                total = total + layer(x)
        torch.testing.assert_close(total / 2000, wanted, rtol=0, atol=0.15 * float(wanted.std()))
        assert len(kinds) == (16 if options.rank_dropout else 2) and {v for k in kinds for v in k} == {0.0, 2.0}
        gradients, draw = [], torch.Generator().manual_seed(8)
        with factors.dropped(draw):
            assert factors.branches["a"].keep.any()
            for run in (layer, lambda value: checkpoint(layer, value, use_reentrant=False)):
                factors.flat.grad.zero_()
                run(x).square().sum().backward()
                gradients.append(factors.flat.grad.clone())
        assert torch.equal(*gradients) and gradients[0].any()
        assert torch.equal(layer(x), wanted), "outside, nothing is left out"


def test_what_is_left_out_has_no_gradient():
    factors = make(linears(NAMES[:1]), LayersConfig(rank_dropout=0.5))
    fill(factors)
    layer = factors.branches[NAMES[0]]
    with attached(factors.branches), factors.dropped(torch.Generator().manual_seed(0)):
        layer.module(torch.randn(5, 12)).square().sum().backward()
        out = layer.keep == 0
    assert 0 < int(out.sum()) < 4
    assert not layer.lora_A.grad[out].any() and not layer.lora_B.grad[:, out].any()
    assert layer.lora_A.grad[~out].all() and layer.lora_B.grad[:, ~out].all()


def test_without_dropout_nothing_is_drawn():
    draw = torch.Generator().manual_seed(0)
    before = draw.get_state()
    with make(linears(), LayersConfig()).dropped(draw):
        pass
    assert torch.equal(draw.get_state(), before)
