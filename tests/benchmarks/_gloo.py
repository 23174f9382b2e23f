"""Starts processes that are a gloo group of this machine: on the loopback interface, joined through a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_STAT = Path("/proc/stat")  # where Linux counts what all programs use


def run_ranks(script: Path, size: int, job: object) -> Any:
    """Run `script` in so many processes of one thread each; return what the first one prints last, as JSON.

    Raises RuntimeError when one of them fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = {"WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        own |= {"GROUP_FILE": str(Path(folder) / "group"), "GROUP_JOB": json.dumps(job)}
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script)],
                env={**os.environ, **own, "RANK": str(rank)},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
            for rank in range(size)
        ]
        said = ranks[0].communicate()[0]
        if failed := [status for rank in ranks if (status := rank.wait())]:
            raise RuntimeError(f"a rank of {script.name} ended with status {failed[0]}")
        return json.loads(said.splitlines()[-1])


def join() -> Any:
    """Join the group that `run_ranks` began; return its job."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['GROUP_FILE']}", rank=rank, world_size=size)
    return json.loads(os.environ["GROUP_JOB"])


@dataclass(frozen=True)
class Watch:
    """Holds seconds as they stood at one moment: of the clock, of all programs' work, and of this process's."""

    wall: float
    busy: float
    own: float

    @classmethod
    def begin(cls) -> Watch:
        times = os.times()
        return cls(time.perf_counter(), _busy(), times.user + times.system)

    def others(self) -> float:
        """Return how many cores programs beside the group have used since then, 0 where the system does not tell; all
        of the group ask at once."""
        now = Watch.begin()
        ours = torch.tensor([now.own - self.own], dtype=torch.float64)
        dist.all_reduce(ours)
        return max(0.0, (now.busy - self.busy - float(ours)) / (now.wall - self.wall))


def _busy() -> float:
    if not _STAT.exists():
        return 0.0
    user, nice, system, _, _, irq, soft, stolen, *_ = map(int, _STAT.read_text("ascii").partition("\n")[0].split()[1:])
    return (user + nice + system + irq + soft + stolen) / os.sysconf("SC_CLK_TCK")
