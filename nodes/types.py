"""Socket types of the pack's own, and the one it shares with other packs."""

from typing import Any

from comfy_api.latest import io

from ..lora_core.stack.regions import MASKS
from ..lora_core.stack.rows import NONE
from .bridge.model.sampling import SAMPLERS, SCHEDULERS

LoraDatasetType = io.Custom("LORALOOM_DATASET")  # lora_core.data.dataset.Dataset
AdapterType = io.Custom("LORALOOM_ADAPTER")  # lora_core.adapter.Adapter, layers in ComfyUI's names
OptimizerType = io.Custom("LORALOOM_OPTIMIZER")  # lora_core.training.config.OptimizerConfig
ObjectiveType = io.Custom("LORALOOM_OBJECTIVE")  # lora_core.training.objective_config.ObjectiveConfig
LayersType = io.Custom("LORALOOM_LAYERS")  # lora_core.training.layers.LayersConfig
PreviewsType = io.Custom("LORALOOM_PREVIEWS")  # bridge.training.previews.Previews
ValidationType = io.Custom("LORALOOM_VALIDATION")  # lora_core.training.config.Validation
ContractType = io.Custom("LORALOOM_CONTRACT")  # lora_core.trust.contract.Contract
LoraStackType = io.Custom("LORA_STACK")  # list of (file name, model strength, text strength), as other packs use it

CATEGORY = "LoRA Loom"


def file_input(id: str, tooltip: str, **options: Any) -> io.Combo.Input:
    """Return a file of the loras folders, or NONE. The list of files is in the definition of Convert LoRA alone, and
    the front end's web/js/library/files.js completes the others: a server tells its nodes in one answer, and has
    thousands of files."""
    return io.Combo.Input(id, options=[NONE], default=NONE, tooltip=tooltip, extra_dict={"lora_files": True}, **options)


def adapters_input(source: str = "Train LoRA or Merge LoRA") -> io.Autogrow.Input:
    one = AdapterType.Input("adapter", tooltip=f"From {source}.")
    template = io.Autogrow.TemplatePrefix(one, prefix="adapter", min=0, max=100)
    tooltip = "Any number of adapters from other nodes."
    return io.Autogrow.Input("adapters", template=template, optional=True, tooltip=tooltip)


def masks_input() -> io.Autogrow.Input:
    inside = "A part of the picture. A row with mask=1 is on inside mask1 only, one with mask=-1 outside of it."
    one = io.Mask.Input("mask", tooltip=inside)
    names = [f"mask{number}" for number in range(1, MASKS + 1)]
    template = io.Autogrow.TemplateNames(one, names, min=0)
    tooltip = "Parts of the picture, for rows that are on in one of them only. Every mask that rows use costs a forward in each step."
    return io.Autogrow.Input("masks", template=template, optional=True, tooltip=tooltip)


def sampling_inputs() -> list[io.Input]:
    """Return how pictures are drawn that a measurement is made of."""
    return [
        io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width of the pictures in pixels."),
        io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height of the pictures in pixels."),
        io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Sampling steps, as in KSampler."),
        io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="CFG, as in KSampler: 1 for FLUX and other models with built-in guidance."),
        io.Combo.Input("sampler_name", options=list(SAMPLERS), default="euler", tooltip="As in KSampler."),
        io.Combo.Input("scheduler", options=list(SCHEDULERS), default="normal", tooltip="As in KSampler."),
    ]  # fmt: skip
