"""ComfyUI's own training node, opened up so that a single step can be timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy_extras.nodes_train as nodes_train
import torch
from _measure import Step, Variant
from _training import RANK, Case
from lora_loom.nodes.bridge.check.native import Opened


def native(case: Case, model, dtype: torch.dtype, checkpointing: bool = True, bypass: bool = False) -> Variant:
    """TrainLoraNode's parts in the order of its execute(), with its defaults for everything not given here."""
    patcher = model.clone()
    patcher.set_model_compute_dtype(dtype)
    patcher.model.requires_grad_(False).train()
    set_up = nodes_train._setup_lora_adapters_bypass if bypass else nodes_train._setup_lora_adapters
    factors, _, *managers = set_up(patcher, {}, "LoRA", dtype, RANK)
    optimizer = nodes_train._create_optimizer("AdamW", factors.values(), 5e-4)
    sampler = Opened(torch.nn.MSELoss(), optimizer, lambda _: None, case.batch, training_dtype=dtype)
    guider = nodes_train.TrainGuider(patcher)
    guider.set_conds([text for conditioning in case.conditioning for text in conditioning])
    nodes_train._run_training_loop(guider, sampler, case.latents.to(dtype), len(case.latents), 0, False, False)
    guider.inner_model = patcher.model  # which the guider lets go of after its one call

    @contextmanager
    def session() -> Iterator[Step]:
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        patcher.pre_run()
        modules = nodes_train.find_modules_at_depth(patcher.model.diffusion_model) if checkpointing else []
        injections = [one for manager in managers for one in manager.create_injections(patcher.model)]
        before, comfy.model_management.in_training = comfy.model_management.in_training, True
        try:
            for module in modules:
                nodes_train.patch(module)
            for injection in injections:
                injection.inject(patcher)
            yield lambda: sampler.step(guider)
        finally:
            for injection in injections:
                injection.eject(patcher)
            for module in modules:
                nodes_train.unpatch(module)
            comfy.model_management.in_training = before
            patcher.cleanup()

    return session
