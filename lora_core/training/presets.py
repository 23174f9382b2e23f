"""Lists what each family is trained with where a person does not choose: one row per family, with where its figures
are from.

alpha equals rank in every row, so `learning_rate` acts on the correction itself. Trainers that fix alpha at 1
(sd-scripts, OneTrainer, musubi-tuner by default) need a higher rate for the same effect: their figures are not ours.
The "shift" of sd-scripts, musubi-tuner and diffusion-pipe is a logit-normal law moved by log(shift), here
`shifted_logit_normal`; the factor is that of a 1024 x 1024 picture. exp(1.15) = 3.16 is FLUX's own there, and ComfyUI's
ModelSamplingFlux samples FLUX.1, Qwen-Image and Krea 2 with it. No row weighs the loss: plain eps, v or flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..families.table import DEMO_BASE
from .config import OptimizerConfig, Targets
from .objective_config import AUTO, SHIFTED, TimestepLaw

_ADAMW = OptimizerConfig()


@dataclass(frozen=True)
class Preset:
    """`resolution` is the side in pixels of a square picture; `base` names what to train in place of a few-step model.

    `evidence` is for people: a paper, the authors' recipe, or trainers by name.
    """

    evidence: str
    targets: Targets = "attention"
    rank: int = 16
    alpha: float = 16.0
    learning_rate: float = 1e-4
    timesteps: TimestepLaw = "uniform"
    shift: float = 1.0
    resolution: int = 1024
    optimizer: str = "AdamW"
    base: str = ""


_LOGIT, _MLP = "shifted_logit_normal", "attention+mlp"
NEUTRAL = Preset("no values are known for this family, so general ones")

PRESETS = {
    "SD 1.5": Preset(
        "diffusers' recipe (attention, 1e-4, uniform); kohya and OneTrainer add the feed-forward",
        resolution=512, base="the SD 1.5 base",
    ),
    "SDXL": Preset(
        "diffusers and SimpleTuner agree (attention, 1e-4, uniform, 1024); kohya and OneTrainer add the feed-forward",
        base="the SDXL base",
    ),
    "SD 3.5": Preset(
        "Esser et al. 2024 (logit-normal, shift 3 at 1024), diffusers' recipe (attention, 1e-4)",
        timesteps=_LOGIT, shift=3.0, base="SD 3.5 large or medium",
    ),
    "FLUX.1 dev": Preset(
        "ai-toolkit (16/16, 1e-4), kohya (shift 3.16, guidance 1), most trainers take the feed-forward too",
        _MLP, timesteps=_LOGIT, shift=3.16, base="FLUX.1 dev",
    ),
    "FLUX.1 schnell": Preset(
        "as FLUX.1 dev, but it is sampled without a shift", _MLP, timesteps="logit_normal", base="FLUX.1 dev",
    ),
    "Chroma": Preset(
        "kohya (logit-normal, guidance 0), ai-toolkit (rank 16, 1e-4)",
        _MLP, timesteps="logit_normal", base="Chroma1-HD",
    ),
    "FLUX.2": Preset(
        "musubi-tuner and ai-toolkit agree (rank 32, 1e-4), shift 3 of both musubi-tuner and diffusion-pipe",
        _MLP, 32, 32.0, timesteps=_LOGIT, shift=3.16, base="FLUX.2 klein base",
    ),
    "Wan 2.1": Preset(
        "musubi-tuner (rank 32, shift 3), ai-toolkit (1e-4); ComfyUI's shift 8 is for long clips",
        _MLP, 32, 32.0, timesteps=_LOGIT, shift=3.0, resolution=640, base="Wan 2.1 or 2.2 as its authors released it",
    ),
    "Qwen-Image": Preset(
        "musubi-tuner (rank 16, shift 2.2, near the authors' 2.0), ai-toolkit (1e-4)",
        _MLP, timesteps=_LOGIT, shift=2.2, base="Qwen-Image",
    ),
    "Krea 2": Preset(
        "its authors' recipe in diffusers (32/32, 3e-4), musubi-tuner (shift 2.5, its own at 1024)",
        _MLP, 32, 32.0, learning_rate=3e-4, timesteps=_LOGIT, shift=2.5, base="Krea 2 RAW",
    ),
    "Kandinsky 5": Preset(
        "musubi-tuner (rank 32, 1e-4), shift 3 of ComfyUI's sampling of pictures",
        _MLP, 32, 32.0, timesteps=_LOGIT, shift=3.0, base="Kandinsky 5 SFT or pretrain",
    ),
    "Anima": Preset(
        "kohya (logit-normal without a shift); 1e-4 in ai-toolkit, far softer in kohya and OneTrainer, so between them",
        _MLP, learning_rate=5e-5, timesteps="logit_normal", base="Anima base",
    ),
    "Stable Cascade C": Preset("SimpleTuner (16/16, 1e-4, attention), uniform", base="Stable Cascade stage C"),
    "Stable Cascade B": Preset("as stage C; its authors train LoRAs on stage C only", base="Stable Cascade stage B"),
    "Kandinsky 2.2 prior": Preset(
        "diffusers' recipe (attention, rank 4, 1e-4, uniform, 768)", "attention", 4, 4.0, resolution=768,
        base="the prior of Kandinsky 2.2",
    ),
    "Kandinsky 2.2 decoder": Preset(
        "diffusers' recipe (attention with the image's keys and values, rank 4, 1e-4, uniform, 768)",
        "attention", 4, 4.0, resolution=768, base="the decoder of Kandinsky 2.2",
    ),
    "Wuerstchen v2 prior": Preset(
        "diffusers' recipe (attention, 1e-4, uniform), OneTrainer (rank 16, 1024; its 3e-4 is for alpha 1)",
        base="the prior of Wuerstchen v2",
    ),
    "Z-Image": Preset(
        "musubi-tuner and ai-toolkit agree (rank 32, 1e-4), shift 2 of musubi-tuner",
        _MLP, 32, 32.0, timesteps=_LOGIT, shift=2.0, base="Z-Image (not Turbo) or Z-Image-De-Turbo",
    ),
    "Lumina 2": Preset(
        "diffusers' recipe (attention, 1e-4, uniform on its scheduler's shift 6, which is ComfyUI's)",
        timesteps="shifted", shift=6.0, base="Lumina 2",
    ),
    DEMO_BASE: Preset(
        "`python dev.py bench learn`, for a network 12 times as narrow as the smallest Wan 2.1",
        _MLP, 8, 8.0, learning_rate=3e-3, timesteps=_LOGIT, shift=3.0, resolution=96,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """Holds what a run is trained with; `automatic` names the values that were chosen for the person."""

    family: str
    targets: Targets
    rank: int
    alpha: float
    learning_rate: float
    timesteps: TimestepLaw
    shift: float
    automatic: tuple[str, ...] = ()

    def chosen(self) -> dict[str, str]:
        """The automatic values as text, by the name of the input."""
        return {name: text for name, text in self.values().items() if name in self.automatic}

    def values(self) -> dict[str, str]:
        """All values as text, by the name of the input."""
        law = f"{self.timesteps} timesteps" + (f" at shift {self.shift:g}" if self.timesteps in SHIFTED else "")
        return {
            "rank": str(self.rank), "alpha": f"{self.alpha:g}", "learning_rate": f"{self.learning_rate:g}",
            "targets": self.targets, "timesteps": law,
        }  # fmt: skip

    def note(self) -> str:
        """One line about the automatic values and where they are from; empty when there are none."""
        if not self.automatic:
            return ""
        labels = {"rank": "rank ", "alpha": "alpha ", "learning_rate": "learning rate "}
        chosen = ", ".join(labels.get(name, "") + text for name, text in self.chosen().items())
        return f"auto for {self.family}: {chosen} ({preset_of(self.family).evidence})"


def preset_of(family: str) -> Preset:
    """The row of a family's preset, or neutral figures."""
    return PRESETS.get(family, NEUTRAL)


def choose(
    family: str, targets: Targets | Literal["auto"], rank: int, alpha: float, learning_rate: float,
    timesteps: TimestepLaw | Literal["auto"], shift: float, optimizer: OptimizerConfig = _ADAMW,
) -> Choices:  # fmt: skip
    """The value of the family's preset for everything that is 0 or 'auto'.

    The presets' learning rates are AdamW's, others' are taken from that. alpha keeps the preset's ratio to the
    rank in use. A law without a shift gets shift 1, so that the same training is the same run however it was asked for.
    """
    preset = preset_of(family)
    typed = dict(targets=targets, rank=rank, alpha=alpha, learning_rate=learning_rate, timesteps=timesteps)
    rank = rank or preset.rank
    law = preset.timesteps if timesteps == AUTO else timesteps
    shift = preset.shift if timesteps == AUTO else shift
    return Choices(
        family=family,
        targets=preset.targets if targets == AUTO else targets,
        rank=rank,
        alpha=alpha or preset.alpha / preset.rank * rank,
        learning_rate=learning_rate or optimizer.usual_rate(preset.learning_rate),
        timesteps=law,
        shift=shift if law in SHIFTED else 1.0,
        automatic=tuple(name for name, value in typed.items() if value in (0, AUTO)),
    )
