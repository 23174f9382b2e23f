"""Makes the data set of a slider that is learned from pictures, in the place of prompts."""

from __future__ import annotations

from collections.abc import Sequence

from .dataset import Dataset
from .pairs import paired
from .task import LearnSliderPairs


def slider_pairs(more: Dataset | None, less: Dataset | None, written: Sequence[str], guidance: float) -> Dataset:
    """Return the pairs of both sets, by name. Raises ValueError where one of the sets is lacking, where there are
    prompts as well, in the inputs that are `written`, and as `paired` does."""
    if more is None or less is None:
        lacking, other = ("more", "less") if more is None else ("less", "more")
        raise ValueError(
            f"{other}_pictures is connected and {lacking}_pictures is not; connect both, or neither to learn from "
            "prompts"
        )
    if written:
        raise ValueError(
            f"the slider has pictures and also prompts in {' and '.join(written)}; empty these, or disconnect the "
            "pictures"
        )
    return paired(more, less, LearnSliderPairs(guidance))
