"""LoRA Layers: how Train LoRA scales, regularises and sizes the correction of each layer."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.training.layers import SCALINGS, LayersConfig, parse_rules
from .types import CATEGORY, LayersType


class LoraLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Layers",
            display_name="LoRA Layers",
            category=f"{CATEGORY}/train",
            description="Scaling, dropout, a cap on norms, and other ranks and learning rates for single layers. As it comes it changes nothing.",
            search_aliases=["rslora", "lora plus", "dropout", "scale weight norms", "block rank", "block weight", "dora"],
            inputs=[
                io.Combo.Input("scaling", options=list(SCALINGS), default="alpha / rank", tooltip="alpha / sqrt(rank) is rsLoRA, for high ranks; use a smaller alpha with it. The file has it in its alpha, so every program applies it."),
                io.Float.Input("lora_plus_ratio", default=1.0, min=0.01, max=1000.0, step=1.0, round=False, tooltip="LoRA+: learning rate of B over that of A. 1 is off, 16 is the paper's; lower learning_rate with it."),
                io.Float.Input("rank_dropout", default=0.0, min=0.0, max=0.9, step=0.05, tooltip="Share of each layer's ranks left out at random in a forward pass, against overfitting; 0 is off, 0.1 is mild."),
                io.Float.Input("layer_dropout", default=0.0, min=0.0, max=0.9, step=0.05, tooltip="Share of layers whose correction is left out at random in a forward pass; 0 is off."),
                io.Float.Input("max_norm", default=0.0, min=0.0, max=1e6, step=0.1, round=False, tooltip="No layer's correction grows beyond this Frobenius norm; 0 is off, 1 is usual."),
                io.String.Input("per_layer", default="", multiline=True, tooltip="One rule a line, such as attn2 = rank 8, alpha 4, rate 0.5. The name is part of a layer's name, * stands for anything; rate is a factor on the learning rate; later lines win."),
                io.Boolean.Input("dora", default=False, optional=True, tooltip="DoRA: every row of a weight also gets a magnitude of its own. It often learns more at small ranks; steps take longer."),
            ],
            outputs=[LayersType.Output("layers", tooltip="For Train LoRA.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, scaling, lora_plus_ratio, rank_dropout, layer_dropout, max_norm, per_layer, dora=False):
        choices = {
            "scaling": scaling, "lora_plus_ratio": lora_plus_ratio, "rank_dropout": rank_dropout,
            "layer_dropout": layer_dropout, "max_norm": max_norm,
        }  # fmt: skip
        if None in (*choices.values(), per_layer):  # one comes over a wire, and is seen by execute
            return True
        try:
            LayersConfig(**choices, rules=parse_rules(per_layer))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, scaling, lora_plus_ratio, rank_dropout, layer_dropout, max_norm, per_layer, dora=False
    ) -> io.NodeOutput:  # fmt: skip
        config = LayersConfig(
            scaling=scaling, lora_plus_ratio=lora_plus_ratio, rank_dropout=rank_dropout, layer_dropout=layer_dropout,
            max_norm=max_norm, rules=parse_rules(per_layer), dora=dora,
        )  # fmt: skip
        return io.NodeOutput(config)
