"""P by its eigenpairs against the matrix power in fp64, sketches against C itself, and directions on disk."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.quiet import kept
from lora_loom.lora_core.quiet.directions import Directions, UnfitError
from lora_loom.lora_core.quiet.inputs import rows_of
from lora_loom.lora_core.quiet.sizes import BUDGET, device_bytes, disk_bytes, is_narrow, pairs_for
from lora_loom.lora_core.quiet.sketch import Sketch, probes_for, sketch_bytes
from torch import Tensor, nn

MU = 0.003


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(width: int, power: float = 1.5, rows: int = 2000, seed: int = 0) -> Tensor:
    """Rows of a C whose eigenvalues fall with that power, in directions that are no axes."""
    draw = seeded(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=draw))[0]
    values = torch.arange(1, width + 1) ** -power
    return (torch.randn(rows, width, generator=draw) * values.sqrt()) @ basis.T


def exact(x: Tensor) -> tuple[Tensor, Tensor]:
    """C and P in fp64."""
    covariance = x.T.double() @ x.double() / len(x)
    values, vectors = torch.linalg.eigh(covariance)
    ways = (1 + values / (MU * values.mean())) ** -0.5
    return covariance, (vectors * (ways / ways.square().mean().sqrt())) @ vectors.T


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def sketched(x: Tensor, pairs: int) -> Directions:
    sketch = Sketch(x.shape[1], pairs)
    for part in x.split(300):
        sketch.add(part)
    return sketch.directions()


def test_all_pairs_give_the_matrix_power():
    x = inputs(48)
    quieting, (_, wanted) = sketched(x, 48).quieting(MU), exact(x)
    assert quieting.is_dense and relative(quieting.dense(), wanted) < 1e-3  # vectors are fp16
    rows = torch.randn(5, 48, generator=seeded(1))
    assert relative(quieting.apply(rows), rows.double() @ wanted) < 1e-3


@pytest.mark.parametrize("pairs", [48, 12, 1])
def test_rows_and_the_matrix_agree_and_the_inverse_undoes_them(pairs):
    quieting = sketched(inputs(48), pairs).quieting(MU)
    rows = torch.randn(5, 48, generator=seeded(1))
    assert relative(quieting.apply(rows), rows @ quieting.dense()) < 1e-5
    assert relative(quieting.apply(quieting.inverse(rows)), rows) < 5e-6
    assert relative(quieting.inverse(quieting.apply(rows.double())), rows) < 5e-7
    assert torch.equal(quieting.dense(), quieting.dense().T)


def test_the_rest_has_the_mean_of_its_eigenvalues():
    x = inputs(48)
    found, values = sketched(x, 12), torch.linalg.eigvalsh(exact(x)[0]).flip(0)
    assert relative(found.values, values[:12]) < 1e-5
    assert found.rest == pytest.approx(float(values[12:].mean()), rel=1e-4)
    assert found.tau == pytest.approx(float(values.mean()), rel=1e-5)
    wanted = [(1 + value / (MU * found.tau)) ** -0.5 for value in (*found.values.double().tolist(), found.rest)]
    size = ((sum(way**2 for way in wanted) + 35 * wanted[-1] ** 2) / 48) ** 0.5
    quieting = found.quieting(MU)
    assert quieting.scale == pytest.approx(wanted[-1] / size)
    ways = (quieting.gains + quieting.scale).mul(size).tolist()
    assert ways == pytest.approx(wanted[:-1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("pairs", [48, 12])
def test_a_is_as_large_as_what_is_trained(pairs: int):
    quieting = sketched(inputs(48), pairs).quieting(MU)
    assert float(quieting.dense().square().sum()) == pytest.approx(48, rel=2e-3)
    rows = torch.randn(4000, 48, generator=seeded(2))
    assert float(quieting.apply(rows).norm() / rows.norm()) == pytest.approx(1, rel=0.01)


def test_a_wide_input_is_sketched_near_to_its_eigenpairs():
    x = inputs(1200, rows=1500)
    found = sketched(x, 40)
    covariance = exact(x)[0]
    values = torch.linalg.eigvalsh(covariance).flip(0)
    assert found.values[0] == pytest.approx(float(values[0]), rel=5e-3)
    assert relative(found.values[:20], values[:20]) < 0.02
    assert found.tau == pytest.approx(float(values.mean()), rel=1e-5)
    vectors = found.vectors.double()
    energy = (vectors @ covariance * vectors).sum() / values[:40].sum()
    assert 0.98 < energy <= 1.001 and relative(vectors @ vectors.T, torch.eye(40)) < 1e-3
    assert found.digest == sketched(x, 40).digest != sketched(x, 41).digest
    assert probes_for(1200, 40) == 80 and sketch_bytes(1200, 40) == Sketch(1200, 40).sum.nbytes


@pytest.mark.parametrize("width", [64, 1100])
def test_inputs_that_are_all_alike_are_one_direction(width):
    x = (torch.randn(1, width, generator=seeded(4)) * 30).expand(700, width)
    quieting = sketched(x, 16).quieting(MU)
    rows = torch.randn(5, width, generator=seeded(1))
    along = x[:1] / x[0].norm()
    size = ((width - 1) / width) ** 0.5
    wanted = (rows + ((1 + width / MU) ** -0.5 - 1) * (rows @ along.T) * along) / size
    assert relative(quieting.apply(rows), wanted) < 2e-3 and relative(quieting.apply(along), along) > 0.99


@pytest.mark.parametrize("width", [8, 1100])
@pytest.mark.parametrize(("value", "why"), [(0.0, "all zero"), (float("nan"), "not finite"), (1e30, "not finite")])
def test_states_that_tell_nothing_are_told(width, value, why):
    with pytest.raises(UnfitError, match=why):
        sketched(torch.full((3, width), value), 4)


def test_no_states_at_all_are_told():
    with pytest.raises(UnfitError, match="all zero"):
        Sketch(8, 4).directions()


CONVS = [
    (nn.Conv1d(3, 2, 3, stride=2, padding=1), (2, 3, 9)),
    (nn.Conv2d(3, 2, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)), (2, 3, 7, 8)),
    (nn.Conv2d(3, 2, 3, padding="same", padding_mode="circular"), (2, 3, 6, 5)),
    (nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), (3, 6, 5)),
    (nn.Conv3d(3, 2, (1, 2, 2), stride=(1, 2, 2), padding="valid"), (1, 3, 2, 4, 4)),
    (nn.Linear(4, 2), (2, 3, 4)),
]


@pytest.mark.parametrize(("module", "shape"), CONVS)
def test_the_inputs_are_those_that_the_weight_is_multiplied_with(module, shape):
    x = torch.randn(shape, generator=seeded(2))
    rows, weight = rows_of(module, x), module.weight.detach().flatten(1)
    out = module(x).detach()
    out = (out if out.dim() > 3 or not isinstance(module, nn.Conv2d) else out[None]).double()
    channels = out if isinstance(module, nn.Linear) else out.movedim(1, -1)
    assert relative(rows @ weight.T + module.bias.detach(), channels.flatten(0, -2)) < 1e-6
    drawn = rows_of(module, x, 5, seeded(3))
    assert len(drawn) == 5 and torch.equal(drawn, rows_of(module, x, 5, seeded(3)))
    assert all((rows == row).all(1).any() for row in drawn) and rows_of(module, x, 1000).shape == rows.shape


# --- sizes ---


def test_flux_and_sdxl_stay_within_their_budgets():
    flux = [3072] * 38 * 3 + [12288] * 38 + [3072] * 38 + [15360] * 38
    sdxl = [640] * 200 + [1280] * 400 + [2560] * 10 + [5120] * 16
    for widths, most in ((flux, BUDGET), (sdxl, BUDGET // 2)):
        pairs = pairs_for(widths)
        own = [(width, pairs[width]) for width in widths]
        assert set(pairs.values()) == {256} and disk_bytes(own) < most and is_narrow(own)
        assert device_bytes(own) < disk_bytes(own) + 2**27
    assert pairs_for([128, 512, 100], 10**9) == {128: 128, 512: 256, 100: 100}
    assert pairs_for(flux * 3) == {3072: 104, 12288: 104, 15360: 104} and pairs_for(flux * 100)[3072] == 16
    assert device_bytes([(128, 128), (128, 20)]) == 4 * (128 * 128 + 20 * 128)


# --- on disk ---


def test_directions_come_back_from_disk_shared_as_they_were(tmp_path):
    one, two = sketched(inputs(48), 11), sketched(inputs(31, seed=2), 7)
    path = tmp_path / "new" / "q.safetensors"
    kept.write(path, {"q": one, "k": one, "out": two})
    found = kept.read(path)
    assert list(found) == ["q", "k", "out"] and found["q"] is found["k"]
    assert [found["q"].digest, found["out"].digest] == [one.digest, two.digest] and one.digest != two.digest
    assert path.stat().st_size < disk_bytes([(48, 11), (31, 7)]) + 1500
    assert [each.name for each in path.parent.iterdir()] == ["q.safetensors"]
    first = path.read_bytes()
    kept.write(path, {"q": one, "k": one, "out": two})
    assert path.read_bytes() == first


def test_a_file_that_is_not_what_was_written_is_none(tmp_path):
    path = tmp_path / "q.safetensors"
    assert kept.read(path) is None
    kept.write(path, {"q": sketched(inputs(48), 11)})
    whole = path.read_bytes()
    told = [(b'"lora_loom.quiet":"1"', b'"lora_loom.quiet":"2"'), (b'{\\"q\\": 0}', b'{\\"q\\": 1}'),
            (b'{\\"q\\": 0}', b'[\\"q\\", 0]')]  # fmt: skip
    changed = [whole.replace(*each) for each in told]
    for broken in (b"", whole[:5], whole[:200], whole[:-3], whole[:-1] + b"\x00", *changed):
        assert broken != whole
        path.write_bytes(broken)
        assert kept.read(path) is None
