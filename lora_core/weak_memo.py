"""Results that are kept for as long as what they are of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def remembered(function: Callable[[_Item], _Result]) -> Callable[[_Item], _Result]:
    """A function of one object, which does not change, called once for each."""
    results: WeakKeyDictionary[_Item, _Result] = WeakKeyDictionary()

    def call(item: _Item) -> _Result:
        if item not in results:
            results[item] = function(item)
        return results[item]

    return call
