"""Which tests of tests/nodes also run on the pretend device, and what is known to be wrong there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness.comfyui import ROOT
from harness.windows import replacing_as_windows
from lora_loom.lora_core.training.plan import Rates

FOLDER = ROOT / "tests" / "nodes"
DEVICE = "device/"  # below it, tests that are for the ring alone


@dataclass(frozen=True)
class Ring:
    """The tests of one kind of device: `files` of tests/nodes, of each only the tests of these `families` where a test
    is one of several families. Keys of the others are tests, `file.py::name`, or those of them whose parameters begin
    so, `file.py::name[...`: `left_out` says why a test cannot hold there, `wrong` what is wrong in the pack, until it
    is mended."""

    files: tuple[str, ...]
    families: frozenset[str]
    left_out: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


class Selection:
    """A pytest plugin. A file that is named on the command line is collected though it be no part of the ring."""

    def __init__(self, ring: Ring, config: pytest.Config) -> None:
        self.ring = ring
        self.asked = {Path(config.invocation_params.dir, arg.partition("::")[0]).resolve() for arg in config.args}

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        if collection_path.suffix != ".py" or collection_path.name == "conftest.py" or collection_path in self.asked:
            return None
        inside = collection_path.is_relative_to(FOLDER)
        return None if inside and _name(collection_path) in self.ring.files else True

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        names = {item: item.nodeid.removeprefix("tests/nodes/") for item in items}
        if all(path.is_dir() for path in self.asked):
            _check_used(names.values(), [*self.ring.left_out, *self.ring.wrong])
        taken = [item for item in items if self._is_taken(item, names[item])]
        config.hook.pytest_deselected(items=[item for item in items if item not in taken])
        items[:] = taken
        for item in items:
            for key, what in self.ring.wrong.items():
                if _is_of(key, names[item]):
                    item.add_marker(pytest.mark.xfail(reason=what, strict=True))

    def _is_taken(self, item: pytest.Item, name: str) -> bool:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        chosen = name.startswith(DEVICE) or not isinstance(family, str) or family in self.ring.families
        return chosen and not any(_is_of(key, name) for key in self.ring.left_out)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        """Rates of the device are given: measuring them takes a GPU milliseconds, and this one 20 s."""
        from lora_loom.nodes.bridge import memory

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "rates_of", lambda device, dtype: Rates(1e13, 1e11, 1e-5, 1e10))
            yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self) -> Iterable[None]:
        with replacing_as_windows():
            yield


def _is_of(key: str, name: str) -> bool:
    return name.startswith(key) if "[" in key else name.partition("[")[0] == key


def _check_used(names: Iterable[str], keys: Iterable[str]) -> None:
    """A key that names no test is out of date."""
    names = list(names)
    for key in keys:
        if not any(_is_of(key, name) for name in names):
            raise pytest.UsageError(f"tests/pretend/ring.py: there is no test {key}")


def _name(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


_FAMILIES = frozenset({"sd15", "flux1", "qwen_image"})
_IN_RAM = "its model of a few layers lies in RAM wherever ComfyUI computes, and unloading passes it over"
RINGS = {
    "gpu": Ring(
        files=(
            "test_apply.py", "test_continue.py", "test_derived.py", "test_dora.py", "test_encoding.py",
            "test_ending.py", "test_fused.py", "test_gradients.py", "test_guests.py", "test_interference.py",
            "test_kinds.py", "test_leaks.py", "test_loud.py", "test_merge.py",
            "test_objective_and_layers.py", "test_offload.py", "test_optimizer.py",
            "test_previews.py", "test_report.py", "test_resize_extract.py", "test_runs.py",
            "test_spans.py", "test_stack.py", "test_text.py", "test_training.py",
            "device/test_budgets.py", "device/test_dynamic_vram.py",
        ),
        families=_FAMILIES,
        left_out={
            "test_encoding.py::test_when_all_is_kept_nothing_is_loaded": "models that lie in RAM stay loaded beside it",
            "test_dora.py::test_diffusers_reads_our_file": "what it is compared with, diffusers, is built in RAM",
            "test_apply.py::test_branches_add_up_and_with_comfyuis_bypass": _IN_RAM,
            "test_apply.py::test_a_collected_clone_leaves_the_branches_hanging": _IN_RAM,
            "test_spans.py::test_stacks_add_up_with_each_other_and_with_other_nodes": _IN_RAM,
            "test_spans.py::test_parts_of_two_stacks_keep_their_order": _IN_RAM,
            "test_spans.py::test_copies_of_a_model_run_in_threads": _IN_RAM,
            "test_spans.py::test_comfyui_plans_for_the_factors_and_frees_them": _IN_RAM,
        },
    ),
    "mac": Ring(
        files=(
            "test_derived.py", "test_interference.py", "test_loud.py", "test_merge.py", "test_resize_extract.py",
            "test_stack.py",
        ),
        families=_FAMILIES,
    ),
}  # fmt: skip
