"""Training Objective: what Train LoRA minimises, and at which noise levels."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.training.objective_config import (
    AUTO,
    HUBER_SCHEDULES,
    LEAST_MODE,
    LOSSES,
    MOST_MODE,
    TIMESTEP_LAWS,
    WEIGHTINGS,
    ObjectiveConfig,
)
from .types import CATEGORY, ObjectiveType


class TrainingObjective(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Objective",
            display_name="Training Objective",
            category=f"{CATEGORY}/train",
            description="Chooses the loss of Train LoRA, its weights, and the noise levels that are trained. With its default values it changes nothing.",
            search_aliases=["huber", "min snr", "timesteps", "noise offset", "masked loss", "prior preservation"],
            inputs=[
                io.Combo.Input("loss", options=list(LOSSES), default="mse", tooltip="mse is the standard loss. huber and smooth_l1 give less weight to large errors, for example from watermarks or unusual pictures."),
                io.Float.Input("huber_c", default=0.1, min=1e-4, max=1e4, step=0.01, round=False, tooltip="huber and smooth_l1 become linear above this error. With a very large value, huber is the same as mse."),
                io.Combo.Input("huber_schedule", options=list(HUBER_SCHEDULES), default="snr", tooltip="snr: the threshold falls from 1 for clean pictures to huber_c for pure noise. constant: huber_c everywhere."),
                io.Combo.Input("weighting", options=list(WEIGHTINGS), default="none", tooltip="Loss weight of each noise level. none: all the same. min_snr and debiased are made for eps and v models; cosmap is only for flow models."),
                io.Float.Input("snr_gamma", default=5.0, min=0.1, max=100.0, step=0.5, round=False, tooltip="min_snr limits the weight above this signal-to-noise ratio. 5 is usual."),
                io.Combo.Input("timesteps", options=[AUTO, *TIMESTEP_LAWS], default=AUTO, tooltip="How noise levels (timesteps) are sampled. auto: suits the model family. resolution_shifted: more noise for larger pictures, as FLUX is sampled."),
                io.Float.Input("shift", default=3.0, min=0.01, max=100.0, step=0.05, tooltip="For shifted, shifted_logit_normal and shifted_by_size: a higher shift trains more on noisy pictures. Not used by the others."),
                io.Float.Input("logit_mean", default=0.0, min=-10.0, max=10.0, step=0.1, round=False, tooltip="For logit-normal timesteps: above 0 trains more on noisy pictures, below 0 more on clean ones."),
                io.Float.Input("logit_std", default=1.0, min=0.01, max=10.0, step=0.1, round=False, tooltip="For logit-normal timesteps: how widely the noise levels spread."),
                io.Float.Input("mode_scale", default=1.29, min=LEAST_MODE, max=MOST_MODE, step=0.01, round=False, tooltip="For timesteps mode: above 0 trains more on middle noise levels, 0 is uniform, below 0 more on both ends."),
                io.Float.Input("noise_offset", default=0.0, min=0.0, max=1.0, step=0.01, round=False, tooltip="0 is off. About 0.05 helps SD 1.5 and SDXL to learn darker and brighter pictures. Must be 0 for flow models, which do not need it."),
                io.Float.Input("unmasked", default=0.0, min=0.0, max=1.0, step=0.05, tooltip="Loss weight outside the masks: 0 learns nothing there, 0.1 keeps the background stable. Only for data sets with masks."),
                io.Float.Input("prior_weight", default=1.0, min=0.0, max=100.0, step=0.1, round=False, tooltip="Loss weight of class images: 1 is the same as for other pictures. Only for data sets with class images."),
            ],
            outputs=[ObjectiveType.Output("objective", tooltip="For Train LoRA.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, loss, huber_c, huber_schedule, weighting, snr_gamma, timesteps, shift, logit_mean, logit_std, mode_scale,
        noise_offset, unmasked, prior_weight,
    ):  # fmt: skip
        choices = {
            "loss": loss, "huber_c": huber_c, "huber_schedule": huber_schedule, "weighting": weighting,
            "snr_gamma": snr_gamma, "timesteps": timesteps, "shift": shift, "logit_mean": logit_mean,
            "logit_std": logit_std, "mode_scale": mode_scale, "noise_offset": noise_offset, "unmasked": unmasked,
            "prior_weight": prior_weight,
        }  # fmt: skip
        if None in choices.values():  # one comes over a wire, and is seen by execute
            return True
        try:
            ObjectiveConfig(**choices)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, loss, huber_c, huber_schedule, weighting, snr_gamma, timesteps, shift, logit_mean, logit_std, mode_scale,
        noise_offset, unmasked, prior_weight,
    ) -> io.NodeOutput:  # fmt: skip
        config = ObjectiveConfig(
            loss=loss, huber_c=huber_c, huber_schedule=huber_schedule, weighting=weighting, snr_gamma=snr_gamma,
            timesteps=timesteps, shift=shift, logit_mean=logit_mean, logit_std=logit_std, mode_scale=mode_scale,
            noise_offset=noise_offset, unmasked=unmasked, prior_weight=prior_weight,
        )  # fmt: skip
        return io.NodeOutput(config)
