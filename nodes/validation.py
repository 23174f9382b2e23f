"""Training Validation: how Train LoRA knows when to stop."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.training.config import KEEPS, Validation
from .types import CATEGORY, ValidationType


class TrainingValidation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Validation",
            display_name="Training Validation",
            category=f"{CATEGORY}/train",
            description="Shows when to stop training: Train LoRA measures the loss on pictures that it does not train on, always with the same noise, and says when it no longer improves.",
            search_aliases=["validation loss", "early stopping", "overfitting", "best checkpoint", "held-out", "plateau"],
            inputs=[
                io.Float.Input("held_out", default=0.1, min=0.0, max=0.5, step=0.01, tooltip="Share of the pictures that is kept for validation and not trained on (1 to 16 pictures). 0: trains on all pictures and validates on 8 of them, which cannot show overfitting."),
                io.Int.Input("every", default=100, min=1, max=1_000_000, tooltip="Steps between validations."),
                io.Int.Input("draws", default=4, min=1, max=64, tooltip="Noise samples per picture, spread over the noise levels. More are more reliable and take longer; with one or two pictures use 8 or more."),
                io.Int.Input("patience", default=4, min=2, max=1000, tooltip="The run counts as finished (plateau) when this many validations bring no improvement."),
                io.Boolean.Input("early_stop", default=False, tooltip="On: stops the run at a plateau, at overfitting or when it diverges. Off: only reports it."),
                io.Combo.Input("keep", options=list(KEEPS), default="last", tooltip="Which LoRA is returned: that of the last step, or that of the best validation. The best one is always saved in the run's folder."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip="Another seed uses other validation pictures and other noise."),
            ],
            outputs=[ValidationType.Output("validation", tooltip="For Train LoRA.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, held_out, every, draws, patience, early_stop, keep, seed) -> io.NodeOutput:
        chosen = Validation(
            held_out=held_out, every=every, draws=draws, patience=patience, early_stop=early_stop, keep=keep, seed=seed
        )
        return io.NodeOutput(chosen)
