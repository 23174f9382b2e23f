"""Which tests of tests/nodes also run on the pretend device."""

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
    """The tests of one kind of device: `tests` are files below tests/nodes, or tests of a file of which not all are
    meant; where a test is one of several families, only those of these `families`. A test is called `file.py::name`,
    or, where its parameters begin so, `file.py::name[...`. `elsewhere` are tests that take long and tell no more of
    devices than those that stay; `left_out` says why a test cannot hold there."""

    tests: tuple[str, ...]
    families: frozenset[str]
    elsewhere: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


class Selection:
    """A pytest plugin. A file that is named on the command line is collected though it be no part of the ring."""

    def __init__(self, ring: Ring, config: pytest.Config) -> None:
        self.ring = ring
        self.asked = {Path(config.invocation_params.dir, arg.partition("::")[0]).resolve() for arg in config.args}

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        if collection_path.suffix != ".py" or collection_path.name == "conftest.py" or collection_path in self.asked:
            return None
        inside = collection_path.is_relative_to(FOLDER)
        return None if inside and _name(collection_path) in map(_file, self.ring.tests) else True

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        names = {item: item.nodeid.removeprefix("tests/nodes/") for item in items}
        if all(path.is_dir() for path in self.asked):
            singles = [key for key in self.ring.tests if "::" in key]
            _check_used(names.values(), [*singles, *self.ring.elsewhere, *self.ring.left_out])
        taken = [item for item in items if self._is_taken(item, names[item])]
        config.hook.pytest_deselected(items=[item for item in items if item not in taken])
        items[:] = taken

    def _is_taken(self, item: pytest.Item, name: str) -> bool:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        chosen = name.startswith(DEVICE) or not isinstance(family, str) or family in self.ring.families
        left = any(_is_of(key, name) for key in (*self.ring.elsewhere, *self.ring.left_out))
        return chosen and self._is_meant(name) and not left

    def _is_meant(self, name: str) -> bool:
        singles = [key for key in self.ring.tests if key.startswith(_file(name) + "::")]
        whole = not singles or FOLDER / _file(name) in self.asked
        return whole or any(_is_of(key, name) for key in singles)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        """Rates of the device are given: measuring them takes a GPU milliseconds, and this one 20 s."""
        from lora_loom.nodes.bridge.session import memory_plan

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory_plan, "rates_of", lambda *_: Rates(1e13, 1e11, 1e-5, 1e10))
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


def _file(name: str) -> str:
    return name.partition("::")[0]


_FAMILIES = frozenset({"sd15", "flux1", "qwen_image"})
_IN_RAM = "its model of a few layers lies in RAM wherever ComfyUI computes, and unloading passes it over"
_OTHERS = "test_load_stack.py::test_a_lora_of_another_family_is_refused_with_both_names"  # it loads all families
_CHECK = "test_check_gpu.py::test_node_finds_all_right_and_leaves_its_files"  # trains in every way
RINGS = {
    "gpu": Ring(
        tests=(
            "model/test_encoding.py", "model/test_fused_layers.py", "model/test_guests.py", "model/test_spans.py",
            "model/test_prior.py::test_each_sample_has_the_prior_of_its_own_picture",
            "model/test_text_encoders.py", "session/test_offload.py",
            "stack/test_apply_chain.py", "stack/test_loudness.py",
            "stack/test_regional.py::test_each_part_is_as_if_its_rows_were_alone",
            "stack/test_regional.py::test_what_no_mask_covers_is_without_the_rows_that_have_one",
            "stack/test_regional.py::test_parts_of_sampling_and_pictures_of_a_batch",
            "stack/test_regional.py::test_layers_of_few_bits_and_of_third_parties",
            "stack/test_regional.py::test_controlnets_masks_of_prompts_and_caches_hold_in_every_part",
            "stack/test_regional.py::test_windows_over_a_long_video",
            "training/test_continue_from.py",
            "training/test_validation.py::test_looking_changes_nothing",
            "training/test_validation.py::test_text_encoders_and_offload_are_looked_at_too",
            _CHECK, "test_derived.py", "test_dora.py", "test_gradients.py", "test_interference.py", "test_kinds.py",
            "test_leaks.py", "test_load_stack.py", "test_merge_lora.py", "test_objective_and_layers.py",
            "test_optimizer.py", "test_placement.py", "test_previews.py", "test_report.py", "test_resize_extract.py",
            "test_save_lora.py", "test_train_lora.py",
            "device/test_budgets.py", "device/test_dynamic_vram.py", "device/test_novram.py",
        ),
        families=_FAMILIES,
        elsewhere=(
            "model/test_encoding.py::test_combined_sets_train_together",
            "model/test_encoding.py::test_runs_with_variants_repeat_and_go_on_to_the_same_bytes[2",
            "test_previews.py::test_steps_that_are_done_again_have_no_preview_until_then",
            "test_report.py::test_memorisation_names_the_planted_picture",
            "test_report.py::test_preservation_leaks_less",
            "test_report.py::test_strength_and_seed_are_used",
            _OTHERS,
            "model/test_text_encoders.py::test_every_text_choice_is_a_run_of_its_own",
            "model/test_text_encoders.py::test_preservation_silences_the_text_encoder_too",
            "model/test_text_encoders.py::test_same_seed_same_bytes_cut_off_or_not[sdxl",
            "model/test_text_encoders.py::test_text_encoder_alone_learns",
            "test_train_lora.py::test_another_base_model_is_another_run",
            "test_train_lora.py::test_another_clip_skip_is_another_run",
            "test_train_lora.py::test_another_seed_is_another_run",
            "test_train_lora.py::test_auto_is_the_same_run_as_its_values_typed_in",
        ),
        left_out={
            "model/test_encoding.py::test_when_all_is_kept_nothing_is_loaded":
                "models that lie in RAM stay loaded beside it",
            "test_dora.py::test_diffusers_reads_our_file": "what it is compared with, diffusers, is built in RAM",
            "stack/test_apply_chain.py::test_branches_add_up_and_with_comfyuis_bypass": _IN_RAM,
            "stack/test_apply_chain.py::test_a_collected_clone_leaves_the_branches_hanging": _IN_RAM,
            "model/test_spans.py::test_stacks_add_up_with_each_other_and_with_other_nodes": _IN_RAM,
            "model/test_spans.py::test_parts_of_two_stacks_keep_their_order": _IN_RAM,
            "model/test_spans.py::test_copies_of_a_model_run_in_threads": _IN_RAM,
            "model/test_spans.py::test_comfyui_plans_for_the_factors_and_frees_them": _IN_RAM,
        },
    ),
    "mac": Ring(
        tests=(
            "stack/test_loudness.py", "test_derived.py", "test_interference.py", "test_kinds.py", "test_load_stack.py",
            "test_merge_lora.py", "test_previews.py::test_the_vae_comes_and_goes_and_the_model_stays",
            "test_resize_extract.py", "test_save_lora.py",
            "test_train_lora.py::test_checkpointing_gives_the_same_lora",
            "test_train_lora.py::test_result_and_a_model_left_as_it_was",
        ),
        families=_FAMILIES,
        elsewhere=(_OTHERS,),
    ),
    "arc": Ring(
        tests=("test_derived.py", "test_interference.py", "test_kinds.py", "test_resize_extract.py"),
        families=_FAMILIES,
    ),
}  # fmt: skip
