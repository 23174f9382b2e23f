"""Training Optimizer: how Train LoRA turns gradients into steps."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.training.config import OPTIMIZERS, SCHEDULES, OptimizerConfig
from .types import CATEGORY, OptimizerType

_AVERAGING = " or ".join(name for name, row in OPTIMIZERS.items() if row.averages)


class TrainingOptimizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Optimizer",
            display_name="Training Optimizer",
            category=f"{CATEGORY}/train",
            description="Chooses Train LoRA's optimiser and its settings. As it comes it changes nothing: these are the settings of a Train LoRA without it.",
            search_aliases=[*OPTIMIZERS, "learning rate schedule", "ema"],
            inputs=[
                io.Combo.Input("optimizer", options=list(OPTIMIZERS), default="adamw", tooltip=" ".join(row.tip for row in OPTIMIZERS.values() if row.tip)),
                io.Combo.Input("lr_schedule", options=list(SCHEDULES), default="cosine", tooltip=f"How the learning rate changes after the warm-up. All except constant end near 0. Only constant goes with {_AVERAGING}."),
                io.Int.Input("warmup", default=0, min=0, max=1_000_000, tooltip="Steps over which the learning rate rises from zero."),
                io.Int.Input("restarts", default=1, min=1, max=1000, tooltip="How often cosine_restarts goes back to the full learning rate; other schedules do not use it."),
                io.Float.Input("weight_decay", default=0.01, min=0.0, max=10.0, step=0.001, round=False, tooltip="Share by which the factors shrink at every step, times the learning rate. 0 is off."),
                io.Float.Input("beta1", default=0.0, min=0.0, max=0.9999999, step=0.01, round=False, tooltip="Memory of the gradient's direction; 0 is the optimiser's own, such as 0.9."),
                io.Float.Input("beta2", default=0.0, min=0.0, max=0.9999999, step=0.001, round=False, tooltip="Memory of the gradient's size; 0 is the optimiser's own, such as 0.999."),
                io.Float.Input("eps", default=0.0, min=0.0, max=0.9999999, step=1e-9, round=False, tooltip="Floor of the gradient's size; 0 is the optimiser's own, such as 1e-8."),
                io.Float.Input("max_grad_norm", default=1.0, min=0.0, max=1e6, step=0.1, tooltip="Gradients longer than this are shortened to it; 0 leaves them."),
                io.Float.Input("ema_decay", default=0.0, min=0.0, max=0.9999999, step=0.001, round=False, tooltip="0 is off. Else the LoRA is a running average of itself: 0.99 looks back about 100 steps, 0.999 about 1000."),
            ],
            outputs=[OptimizerType.Output("optimizer", tooltip="For Train LoRA.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, optimizer, lr_schedule, warmup, restarts, weight_decay, beta1, beta2, eps, max_grad_norm, ema_decay
    ):
        choices = {
            "name": optimizer, "schedule": lr_schedule, "warmup": warmup, "restarts": restarts,
            "weight_decay": weight_decay, "beta1": beta1, "beta2": beta2, "eps": eps, "max_grad_norm": max_grad_norm,
            "ema_decay": ema_decay,
        }  # fmt: skip
        if None in choices.values():  # one comes over a wire, and is seen by execute
            return True
        try:
            OptimizerConfig(**choices)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, optimizer, lr_schedule, warmup, restarts, weight_decay, beta1, beta2, eps, max_grad_norm, ema_decay
    ) -> io.NodeOutput:  # fmt: skip
        config = OptimizerConfig(
            name=optimizer, schedule=lr_schedule, warmup=warmup, restarts=restarts, weight_decay=weight_decay, beta1=beta1,
            beta2=beta2, eps=eps, max_grad_norm=max_grad_norm, ema_decay=ema_decay,
        )  # fmt: skip
        return io.NodeOutput(config)
