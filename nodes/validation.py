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
            description="Shows when a run has learnt what it can: Train LoRA looks at pictures that it does not train on, always with the same noise, and says when nothing is gained any more.",
            search_aliases=["validation loss", "early stopping", "overfitting", "best checkpoint", "held-out", "plateau"],
            inputs=[
                io.Float.Input("held_out", default=0.1, min=0.0, max=0.5, step=0.01, tooltip="Share of the pictures that are looked at and not trained on, 1 to 16 of them. 0 trains on all and looks at 8 training pictures, which cannot show overfitting."),
                io.Int.Input("every", default=100, min=1, max=1_000_000, tooltip="Steps between validations."),
                io.Int.Input("draws", default=4, min=1, max=64, tooltip="Noises for each picture, spread over the noise levels. More is steadier and takes longer; with one or two pictures use 8 or more."),
                io.Int.Input("patience", default=4, min=2, max=1000, tooltip="Without a gain over this many validations the run has reached its plateau."),
                io.Boolean.Input("early_stop", default=False, tooltip="End the run when it has reached its plateau, overfits or diverges. Off: it is only said."),
                io.Combo.Input("keep", options=list(KEEPS), default="last", tooltip="What comes out: the LoRA of the last step, or that of the best validation. The best is kept in the run's folder in any case."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip="Another seed holds out other pictures and looks at other noise."),
            ],
            outputs=[ValidationType.Output("validation", tooltip="For Train LoRA.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, held_out, every, draws, patience, early_stop, keep, seed) -> io.NodeOutput:
        chosen = Validation(
            held_out=held_out, every=every, draws=draws, patience=patience, early_stop=early_stop, keep=keep, seed=seed
        )
        return io.NodeOutput(chosen)
