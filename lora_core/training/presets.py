"""Lists what each family is trained with where a person does not choose: one row per family, with where its figures
are from.

alpha equals rank in every row, so `learning_rate` acts on the correction itself. Trainers that fix alpha at 1
(sd-scripts, OneTrainer, musubi-tuner by default) need a higher rate for the same effect: their figures are not ours.
The "shift" of sd-scripts, musubi-tuner and diffusion-pipe is a logit-normal law moved by log(shift), here
`shifted_logit_normal`; the factor is that of a 1024 x 1024 picture. Models whose own sampling shifts larger pictures
more are trained likewise, by `shifted_by_size`: log(shift) is 0.5 at 256 tokens of 16 x 16 pixels and grows linearly,
to 1.15 at 4096 tokens for FLUX.1, at 6400 for Krea 2, to 0.9 at 8192 for Qwen-Image (their schedulers in diffusers,
musubi-tuner's flux_shift, krea2_shift and qwen_shift). FLUX.2's is FLUX.1's for many steps (`compute_empirical_mu` of
its authors); what it adds for few is no matter of training. No row weighs the loss: plain eps, v or flow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..families.table import DEMO_BASE
from .config import OptimizerConfig, Targets
from .objective_config import AUTO, SHIFTED, TimestepLaw

_ADAMW = OptimizerConfig()


@dataclass(frozen=True)
class StepsLaw:
    """Says how long to train: `each` for every picture, within `least` and `most`, all for one picture per step.

    diffusers' DreamBooth examples take 500 steps for 5 pictures, ai-toolkit's 2000 for a usual set and 500 to 4000 as
    its range. The rank is not in it: on the demo base ranks of 4, 8 and 16 are as far after as many steps.
    """

    each: int = 100
    least: int = 500
    most: int = 3000

    def of(self, pictures: int, per_step: int) -> int:
        """Return the steps for so many pictures: with more than one per step as few as show each as often, but at least
        half of `least`, in whole tens."""
        shown = min(max(self.each * pictures, self.least), self.most)
        return -(-max(shown // per_step, self.least // 2 if per_step > 1 else 1) // 10) * 10


@dataclass(frozen=True)
class Preset:
    """`resolution` is the side in pixels of a square picture; `base` names what to train in place of a few-step model.

    `evidence` is for people: a paper, the authors' recipe, or trainers by name. `steps` tells how long to train, `cfg`
    what the family is usually sampled with, 1 where its guidance is built in. `quiet_rate` multiplies the learning rate
    under quiet directions, and `quiet` is whether auto takes these: both were measured on the demo base alone, so that
    for others a person has to ask for them. `law_before` is what auto meant in version 0.1.0 where that was another law
    with its shift: runs that were begun with it go on with it.
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
    cfg: float = 4.0
    steps: StepsLaw = StepsLaw()
    quiet_rate: float = 3.0
    quiet: bool = False
    law_before: tuple[TimestepLaw, float] | None = None


_LOGIT, _BY_SIZE, _MLP = "shifted_logit_normal", "shifted_by_size", "attention+mlp"
NEUTRAL = Preset("no values are known for this family, so general ones")

PRESETS = {
    "SD 1.5": Preset(
        "diffusers' recipe (attention, 1e-4, uniform); kohya and OneTrainer add the feed-forward",
        resolution=512, base="the SD 1.5 base", cfg=7.0,
    ),
    "SDXL": Preset(
        "diffusers and SimpleTuner agree (attention, 1e-4, uniform, 1024); kohya and OneTrainer add the feed-forward",
        base="the SDXL base", cfg=7.0,
    ),
    "SD 3.5": Preset(
        "Esser et al. 2024 (logit-normal, shift 3 at 1024), diffusers' recipe (attention, 1e-4)",
        timesteps=_LOGIT, shift=3.0, base="SD 3.5 large or medium", cfg=4.5,
    ),
    "FLUX.1 dev": Preset(
        "ai-toolkit (16/16, 1e-4), kohya (flux_shift, guidance 1), most trainers take the feed-forward too",
        _MLP, timesteps=_BY_SIZE, shift=3.16, base="FLUX.1 dev", law_before=(_LOGIT, 3.16), cfg=1.0,
    ),
    "FLUX.1 schnell": Preset(
        "as FLUX.1 dev, but it is sampled without a shift", _MLP, timesteps="logit_normal", base="FLUX.1 dev", cfg=1.0,
    ),
    "Chroma": Preset(
        "kohya (logit-normal, guidance 0), ai-toolkit (rank 16, 1e-4)",
        _MLP, timesteps="logit_normal", base="Chroma1-HD",
    ),
    "FLUX.2": Preset(
        "musubi-tuner and ai-toolkit agree (rank 32, 1e-4), its authors' shift for many steps",
        _MLP, 32, 32.0, timesteps=_BY_SIZE, shift=3.16, base="FLUX.2 klein base", law_before=(_LOGIT, 3.16), cfg=1.0,
    ),
    "Wan 2.1": Preset(
        "musubi-tuner (rank 32, shift 3), ai-toolkit (1e-4); ComfyUI's shift 8 is for long clips",
        _MLP, 32, 32.0, timesteps=_LOGIT, shift=3.0, resolution=640, base="Wan 2.1 or 2.2 as its authors released it",
        cfg=5.0,
    ),
    "Qwen-Image": Preset(
        "musubi-tuner (rank 16, qwen_shift, its authors' own), ai-toolkit (1e-4)",
        _MLP, timesteps=_BY_SIZE, shift=2.0, base="Qwen-Image", law_before=(_LOGIT, 2.2),
    ),
    "Krea 2": Preset(
        "its authors' recipe in diffusers (32/32, 3e-4), musubi-tuner (krea2_shift, its authors' own)",
        _MLP, 32, 32.0, learning_rate=3e-4, timesteps=_BY_SIZE, shift=2.475, base="Krea 2 RAW",
        law_before=(_LOGIT, 2.5),
    ),
    "Ernie-Image": Preset(
        "musubi-tuner (rank 32, 1e-4, logit-normal without a shift), OneTrainer (the same law, feed-forward too)",
        _MLP, 32, 32.0, timesteps="logit_normal", base="ERNIE-Image (not Turbo)",
    ),
    "HiDream I1": Preset(
        "diffusers' recipe (attention, 1e-4, uniform on its scheduler's shift, no loss of the experts' balance), "
        "ai-toolkit (32/32, shift 3, not the experts)",
        "attention", 32, 32.0, timesteps="shifted", shift=3.0, base="HiDream I1 Full", cfg=5.0,
    ),
    "Ideogram 4": Preset(
        "OneTrainer (5e-5, logit-normal), which like musubi-tuner takes the feed-forward too; shift 2 of the model's "
        "own schedule",
        _MLP, learning_rate=5e-5, timesteps=_LOGIT, shift=2.0, base="Ideogram 4",
    ),
    "LTX-Video": Preset(
        "its authors' trainer (attention, 32/32, 2e-4, and its shift for a picture of 768 x 768 pixels)",
        rank=32, alpha=32.0, learning_rate=2e-4, timesteps=_LOGIT, shift=2.2, resolution=768,
        base="LTX-Video (dev, not distilled)", cfg=3.0,
    ),
    "Kandinsky 5": Preset(
        "musubi-tuner (rank 32, 1e-4), shift 3 of ComfyUI's sampling of pictures",
        _MLP, 32, 32.0, timesteps=_LOGIT, shift=3.0, base="Kandinsky 5 SFT or pretrain", cfg=5.0,
    ),
    "Anima": Preset(
        "kohya (logit-normal without a shift); 1e-4 in ai-toolkit, far softer in kohya and OneTrainer, so between them",
        _MLP, learning_rate=5e-5, timesteps="logit_normal", base="Anima base",
    ),
    "Stable Cascade C": Preset("SimpleTuner (16/16, 1e-4, attention), uniform", base="Stable Cascade stage C"),
    "Stable Cascade B": Preset(
        "as stage C; its authors train LoRAs on stage C only", base="Stable Cascade stage B", cfg=1.1,
    ),
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
        _MLP, 8, 8.0, learning_rate=3e-3, timesteps=_LOGIT, shift=3.0, resolution=96, cfg=3.0,
        steps=StepsLaw(25, 200, 1000), quiet=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """Holds what a run is trained with; `automatic` names the values that were chosen for the person. `loud_rate` is
    the learning rate where quiet directions are not taken."""

    family: str
    targets: Targets
    rank: int
    alpha: float
    learning_rate: float
    timesteps: TimestepLaw
    shift: float
    automatic: tuple[str, ...] = ()
    quiet: bool = False
    loud_rate: float = 0.0

    def chosen(self) -> dict[str, str]:
        """Return the automatic values as text, by the name of the input."""
        return {name: text for name, text in self.values().items() if name in self.automatic}

    def values(self) -> dict[str, str]:
        """Return all values as text, by the name of the input."""
        law = f"{self.timesteps} timesteps" + (f" at shift {self.shift:g}" if self.timesteps in SHIFTED else "")
        law += " for 1024 x 1024 pixels" if self.timesteps == _BY_SIZE else ""
        return {
            "rank": str(self.rank), "alpha": f"{self.alpha:g}", "learning_rate": f"{self.learning_rate:g}",
            "targets": self.targets, "timesteps": law,
        }  # fmt: skip

    def note(self) -> str:
        """Return one line about the automatic values and where they are from; empty when there are none."""
        if not self.automatic:
            return ""
        labels = {"rank": "rank ", "alpha": "alpha ", "learning_rate": "learning rate "}
        chosen = ", ".join(labels.get(name, "") + text for name, text in self.chosen().items())
        found = f"auto for {self.family}: {chosen} ({preset_of(self.family).evidence})"
        if not self.quiet or "learning_rate" not in self.automatic:
            return found
        preset = preset_of(self.family)
        where = "" if preset.quiet else ", as was right for the demo base; it was not measured on this family"
        return f"{found}; under quiet directions the learning rate is {preset.quiet_rate:g} times that without{where}"

    def loud(self) -> Choices:
        """Return the same without quiet directions."""
        return replace(self, quiet=False, learning_rate=self.loud_rate)

    def earlier(self, quiet_chosen: bool = False) -> tuple[Choices, ...]:
        """Return all else that auto has meant, with which runs may have been begun: the timesteps of version 0.1.0, and
        no quiet directions unless a person has chosen them."""
        law = preset_of(self.family).law_before if "timesteps" in self.automatic else None
        rates = [self, *([self.loud()] if self.quiet and not quiet_chosen else [])]
        laws = [replace(each, timesteps=law[0], shift=law[1]) for each in rates] if law else []
        return (*rates[1:], *laws)


def preset_of(family: str) -> Preset:
    """Return the row of a family's preset, or neutral figures."""
    return PRESETS.get(family, NEUTRAL)


def choose(
    family: str, targets: Targets | Literal["auto"], rank: int, alpha: float, learning_rate: float,
    timesteps: TimestepLaw | Literal["auto"], shift: float, optimizer: OptimizerConfig = _ADAMW, quiet: bool = False,
) -> Choices:  # fmt: skip
    """Return the value of the family's preset for everything that is 0 or 'auto'; `quiet` tells of quiet directions.

    The presets' learning rates are AdamW's, others' are taken from that. alpha keeps the preset's ratio to the
    rank in use. A law without a shift gets shift 1, so that the same training is the same run however it was asked for.
    """
    preset = preset_of(family)
    typed = dict(targets=targets, rank=rank, alpha=alpha, learning_rate=learning_rate, timesteps=timesteps)
    rank, loud = rank or preset.rank, learning_rate or optimizer.usual_rate(preset.learning_rate)
    law = preset.timesteps if timesteps == AUTO else timesteps
    shift = preset.shift if timesteps == AUTO else shift
    return Choices(
        family=family,
        targets=preset.targets if targets == AUTO else targets,
        rank=rank,
        alpha=alpha or preset.alpha / preset.rank * rank,
        learning_rate=learning_rate or optimizer.usual_rate(preset.learning_rate * preset.quiet_rate)
        if quiet
        else loud,
        timesteps=law,
        shift=shift if law in SHIFTED else 1.0,
        automatic=tuple(name for name, value in typed.items() if value in (0, AUTO)),
        quiet=quiet,
        loud_rate=loud,
    )
