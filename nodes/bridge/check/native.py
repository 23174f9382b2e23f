"""ComfyUI's own training node, opened up so that a single step of it can be timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import comfy_extras.nodes_train as nodes_train
import torch
from torch import Tensor

from .case import Case


class Opened(nodes_train.TrainSampler):
    """Keeps what the guider passes to a sampler instead of training."""

    def sample(
        self, guider: Any, sigmas: Any, extra_args: Any, callback: Any, noise: Any, latent_image: Any = None, *_: Any
    ) -> Tensor:
        self.given = (sigmas, extra_args, callback, noise, latent_image)
        self.conds = nodes_train.process_cond_list(guider.conds)["positive"]
        return torch.zeros_like(latent_image)

    def step(self, guider: Any) -> None:
        """TrainLoraNode's loop, once round: draw, forward, backward, optimiser."""
        guider.conds = {"positive": list(self.conds)}
        super().sample(guider, *self.given)


@contextmanager
def native_step(case: Case, length: int, rank: int) -> Iterator[Callable[[], None]]:
    """Yield one step of TrainLoraNode at its defaults, on a picture with a caption of that many tokens; all is as it
    was on leaving. Its parts are called in the order of its execute()."""
    dtype, network = case.patcher.model.get_dtype(), case.network
    with torch.inference_mode(False), torch.enable_grad():
        patcher = case.patcher.clone()
        patcher.set_model_compute_dtype(dtype)
        trained = [(weight, weight.requires_grad) for weight in patcher.model.parameters()]
        modules = nodes_train.find_modules_at_depth(patcher.model.diffusion_model)
        before, bar = comfy.model_management.in_training, getattr(nodes_train, "trange", None)
        try:
            patcher.model.requires_grad_(False).train()
            factors, *_ = nodes_train._setup_lora_adapters(patcher, {}, "LoRA", dtype, rank)
            optimizer = nodes_train._create_optimizer("AdamW", factors.values(), 5e-4)
            sampler = Opened(torch.nn.MSELoss(), optimizer, lambda _: None, 1, training_dtype=dtype)
            guider = nodes_train.TrainGuider(patcher)
            guider.set_conds(network.caption(length))
            latent = torch.randn(1, *network.latent, generator=torch.Generator().manual_seed(0)).to(dtype)
            if bar is not None:
                nodes_train.trange = partial(bar, disable=True)  # a line for every step
            nodes_train._run_training_loop(guider, sampler, latent, 1, 0, False, False)
            guider.inner_model = patcher.model  # which the guider lets go of after its one call
            comfy.model_management.load_models_gpu([patcher], force_full_load=True)
            patcher.pre_run()
            comfy.model_management.in_training = True
            for module in modules:
                nodes_train.patch(module)
            yield lambda: sampler.step(guider)
        finally:
            for module in modules:
                if hasattr(module, "org_forward"):
                    nodes_train.unpatch(module)
            comfy.model_management.in_training = before
            if bar is not None:
                nodes_train.trange = bar
            patcher.cleanup()
            patcher.model.eval()
            for weight, wanted in trained:
                weight.requires_grad_(wanted)
            comfy.model_management.unload_model_and_clones(patcher)
