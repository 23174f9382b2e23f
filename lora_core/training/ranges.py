"""Tells how choices are refused: with their name, the value and what it may be."""

from __future__ import annotations


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError for a value outside `low` to `high`, NaN included."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be between {low:g} and {high:g}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError for a name that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
