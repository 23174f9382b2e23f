"""Several processes: measures them on this machine, and says what several GPUs can be expected to do.

Steps of 2 and 4 gloo processes of one thread are timed, and predicted by a simulator that was told only what one
process and an all-reduce of two take. What a step of each family computes and sends is counted at its real size. The
figures stand in tests/benchmarks/results/scaling.json; `--write` makes the tables of docs/scaling.md of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import _comfy  # noqa: F401  first: makes comfy importable
from _gloo import run_ranks
from _measure import arguments, begin, table
from benchmarks._calibration import checks
from benchmarks._counting import counted
from benchmarks._real import REAL
from benchmarks._scaling_page import STORED, Figures, publish

RANK_SCRIPT = Path(__file__).with_name("_gloo_rank.py")
GROUPS, MOST, BATCH = (2, 4), 4, 4
SHARES = ((1, 1), (2, 2), (2, 1), (1, 1, 1, 1), (2, 1, 1, 1))
NUMBERS = (1, 2**10, 2**18, 2**20, 2**22, 2**24)
NETWORKS = {"two levels": 64, "one level": 256}


def measure(network: str, rank: int, rounds: int) -> dict[str, Any]:
    """Time what `_gloo_rank` times in four processes of which two, or all, work."""
    cases = [{"shares": shares, "overlap": overlap} for shares in SHARES for overlap in (False, True)]
    job = {"network": network, "rank": rank, "rounds": rounds, "most": MOST, "sizes": GROUPS}
    found = run_ranks(RANK_SCRIPT, max(GROUPS), {**job, "numbers": NUMBERS, "cases": cases})
    loops = {str(size): run_ranks(RANK_SCRIPT, size, {**job, "batch": BATCH}) for size in (1, *GROUPS)}
    return {"cores": os.cpu_count(), "rank": rank, **found, "batch": BATCH, "loop": loops}


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=9)
    parser.add_argument("--keep", action="store_true", help=f"store the figures in {STORED.name}")
    parser.add_argument("--count", action="store_true", help="count the families anew and time nothing")
    parser.add_argument("--write", action="store_true", help="write the tables of docs/scaling.md, and measure nothing")
    options = begin(parser)
    stored = json.loads(STORED.read_text("ascii")) if STORED.is_file() else {}
    if options.count:
        stored["families"] = {name: counted(real) for name, real in REAL.items()}
    elif not options.write:
        chosen = list(NETWORKS.items())[: 1 if options.quick else None]
        stored["gloo"] = {name: measure(name, rank, options.rounds) for name, rank in chosen}
        for name, found in stored["gloo"].items():
            table(f"{name}, rank {found['rank']}", *checks(found))
    if options.keep or options.count:
        STORED.write_text(json.dumps(stored, indent=1) + "\n", encoding="ascii")
    if options.write:
        publish(Figures.read(stored))


if __name__ == "__main__":
    main()
