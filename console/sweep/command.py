"""A command line is one run or a sweep of many."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .. import main as one
from .. import ranks
from ..options import read
from ..result import BAD_INPUT
from ..words import Words


def main(pack: Path, arguments: Sequence[str]) -> None:
    """Ends the process."""
    options, rank = read(arguments), ranks.this()
    if options.check or not options.sweeps:
        one.main(pack, arguments)
    words = Words(silent=not rank.first, name=rank.name)
    if rank.size > 1:
        words.error("bad input: a sweep runs without torchrun; --parallel N makes N of its runs side by side")
        sys.exit(BAD_INPUT)
    from .conductor import sweep  # brings torch, which is not to be there before ComfyUI

    sys.exit(sweep(pack, options, words))
