"""Names in files stay when a class or a field is renamed, and a class cannot change without saying which they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pytest
import torch
from harness.golden import corrections, parent
from lora_loom.lora_core import kinds
from lora_loom.lora_core.kinds.correction import Correction
from lora_loom.lora_core.stored import as_dict, as_text, as_tuple, from_dict, keys_of, stored


@stored("width high=height of", tag="Box")
@dataclass(frozen=True)
class Crate:
    """A class that was called `Box`, with a `high`."""

    width: int
    height: tuple[float, ...]
    of: object = None


@stored("width height of", tag="Plain")
@dataclass(frozen=True)
class Plain:
    """A class that has the names it always had."""

    width: int
    height: tuple
    of: object = None


INNER = Crate(1, (0.5,))
CRATE = Crate(2, (), [INNER, {"x": (INNER, "it's")}])


def test_a_renamed_class_stands_in_files_as_before():
    inner = {"width": 1, "high": (0.5,), "of": None}
    assert as_dict(CRATE) == {"width": 2, "high": (), "of": [inner, {"x": (inner, "it's")}]}
    assert from_dict(Crate, as_dict(INNER)) == INNER and keys_of(Crate) == ("width", "high", "of")
    assert as_text((INNER,)) == "(Box(width=1, high=(0.5,), of=None),)" and as_text([INNER, 1.0]).endswith(", 1.0]")
    assert as_tuple(CRATE) == ("Box", 2, (), CRATE.of)


@stored("width later? last=end?")
@dataclass(frozen=True)
class Grown:
    """A class that got two fields when there were files of it."""

    width: int
    later: float = 0.0
    end: tuple = ()


def test_a_field_that_came_later_is_left_out_while_it_is_as_before():
    assert as_dict(Grown(1)) == {"width": 1} and from_dict(Grown, {"width": 1}) == Grown(1)
    assert as_dict([Grown(1, 0.5, (2,))]) == [{"width": 1, "later": 0.5, "last": (2,)}]
    assert from_dict(Grown, as_dict(Grown(1, end=(3,)))) == Grown(1, 0.0, (3,))
    with pytest.raises(TypeError, match="no plain default"):
        stored("width? later last=end")(Grown)


def test_a_key_of_a_later_version_is_refused():
    with pytest.raises(TypeError, match="Crate has no height"):
        from_dict(Crate, {"width": 1, "height": ()})


@pytest.mark.parametrize("keys", ["width high of", "width height", "height width of", "width height of more"])
def test_a_class_whose_fields_are_others_is_refused(keys):
    with pytest.raises(TypeError, match="Crate has the fields width, height, of but stands in files with the keys"):
        stored(keys, "Box")(Crate)
    assert keys_of(Crate) == ("width", "high", "of")


def test_a_class_without_names_is_refused():
    for of in (keys_of, lambda cls: as_tuple(object.__new__(cls)), lambda cls: from_dict(cls, {})):
        with pytest.raises(TypeError, match="has no names in files; give it some with @stored"):
            of(Correction)


def test_without_a_rename_it_is_what_python_writes():
    plain = Plain(1, ((0.5, None), "it's"), {"x": [Plain(2, ())]})
    assert as_dict(plain) == asdict(plain) and list(as_dict(plain)) == list(asdict(plain))
    nested = [(Plain(1, (Plain(2, ("a",)),)),), torch.Size([1, 2]), torch.ones(2)]
    assert as_text(nested) == repr(nested)


def test_a_function_stands_by_its_name():
    assert as_text((len, corrections()["placed, turned"].reorder)) == "(<built-in function len>, turned)"


def test_a_class_without_a_tag_is_refused():
    for of in (as_text, as_tuple):
        with pytest.raises(TypeError, match="has no tag in files; give it one with @stored"):
            of(parent())


def test_every_kind_of_correction_has_names():
    found = set(_below(Correction))
    assert {*kinds.KINDS, kinds.Placed} < found == {type(value) for value in corrections().values()}
    assert all(keys_of(cls) for cls in found)


def _below(cls: type) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield from (each, *_below(each))


@stored("width deep?", tag="Taller")
@dataclass(frozen=True)
class Taller:
    """A class that had one field before."""

    width: int
    deep: int = 1


def test_a_later_field_is_told_where_it_is_not_as_before():
    assert as_dict(Taller(2)) == {"width": 2} and as_text(Taller(2)) == "Taller(width=2)"
    assert as_dict(Taller(2, 3)) == {"width": 2, "deep": 3} and as_text(Taller(2, 3)) == "Taller(width=2, deep=3)"
    assert from_dict(Taller, {"width": 2}) == Taller(2) and keys_of(Taller) == ("width", "deep")
