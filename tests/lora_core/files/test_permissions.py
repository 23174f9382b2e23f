"""Civitai's four answers: what several come to, beside a licence and alone."""

from __future__ import annotations

import itertools

import pytest

from lora_core.files.permissions import Permissions, common, permissions_of, rights_to
from lora_core.files.rights import Rights

BITS = (None, True, False)


def test_a_no_of_one_is_a_no_and_a_yes_needs_all() -> None:
    for one, other in itertools.product(BITS, BITS):
        wanted = False if False in (one, other) else None if None in (one, other) else True
        found = common([Permissions(derivatives=one), Permissions(derivatives=other)])
        assert found.derivatives is wanted
    assert common([]) == Permissions()


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (("Image", "Sell"), ("Image",), ("Image",)), ((), None, ()), (("Image",), None, None),
        (("Image",), ("Sell",), ()), (None, None, None),
    ],
)  # fmt: skip
def test_uses(one, other, both) -> None:
    assert common([Permissions(commercial=one), Permissions(commercial=other)]).commercial == both


def test_licence_and_permissions_settle_each_other() -> None:
    found = rights_to("CC-BY-4.0", Permissions(no_credit=True, commercial=()))
    assert found == Rights(("CC-BY-4.0",), False, True, True, False)
    assert rights_to("", Permissions(True, ("Image",), True, True)).commercial is True
    assert not rights_to("", Permissions()).known


def test_a_table_of_a_stranger() -> None:
    told = {"allowNoCredit": "yes", "allowCommercialUse": "{Image,RentCivit,Nonsense}", "allowDerivatives": False}
    found = permissions_of(told)
    assert found == Permissions(None, ("Image", "RentCivit"), False) and permissions_of(found.table()) == found
    assert permissions_of([]) == permissions_of(None) == Permissions()
    with pytest.raises(ValueError, match="Civitai knows"):
        Permissions(commercial=("Everything",))
