"""Holds what is to be trained, on what, and how a run is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....lora_core.data.dataset import Dataset
from ....lora_core.families.table import Family
from ....lora_core.training.config import Recipe
from ....lora_core.training.plan import Measures
from ....lora_core.training.presets import Choices
from ....lora_core.training.start import Start
from ....lora_core.training.tasks import Task, task_of
from ....lora_core.training.validation import Pictures
from ....lora_core.trust.contract import Contract
from ..host.wires import Clip, Model, Vae
from ..model.denoiser import prediction_type
from ..model.names import family_of
from ..model.trained_layers import Layers, chosen_layers
from .assistants import Assistants
from .previews import Previews
from .run_progress import RunProgress


@dataclass(frozen=True)
class Run:
    """Holds the settings of a run that do not change what is learned. `automatic` takes further `measures` when these
    do not fit into memory. `note` and `notes` stay on the node, `chosen` in the fields of what was left to the run, by
    name, and `workflow`, of the front end, in the run's folder. `before` is all else that auto has meant, `loud`
    what it means if there are no quiet directions to be had, and `coverage` tells of its neutral prompts. `contract` is
    what is said of the LoRA in its header."""

    name: str = "lora"
    save_every: int = 250
    measures: Measures = Measures()
    automatic: bool = True
    start_over: bool = False
    note: str = ""
    notes: tuple[str, ...] = ()
    previews: Previews | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)
    workflow: Mapping[str, Any] | None = None
    before: tuple[Choices, ...] = ()
    loud: Choices | None = None
    coverage: str = ""
    contract: Contract | None = None


@dataclass(frozen=True)
class Sources:
    """Holds what a run learns from. `prior_vae` encodes what an earlier stage would tell of a picture, for families
    with a prior only; `start` is a LoRA to go on from, and `assistants` are on while it learns."""

    model: Model
    clip: Clip
    vae: Vae
    dataset: Dataset
    prior_vae: Vae | None = None
    start: Start | None = None
    assistants: Assistants = Assistants()


@dataclass(frozen=True)
class Subject:
    """Holds what is known of the MODEL that is trained: its family, what its network predicts (`prediction_type`), the
    layers that are trained, and those of a LoRA to go on from that are attached as they are."""

    family: Family
    prediction: str
    layers: Layers
    kept: Layers

    @classmethod
    def of(cls, sources: Sources, recipe: Recipe) -> Subject:
        """Raises ValueError for a layer of the LoRA to go on from that cannot be attached."""
        model = sources.model
        encoders = sources.clip.patcher.model if recipe.text else None
        chosen = chosen_layers(model.model.diffusion_model, encoders, recipe.lora, sources.start)
        return cls(family_of(model), prediction_type(model), *chosen)


@dataclass(frozen=True)
class Order:
    """Holds what is to be trained, already checked, and where its progress is told."""

    sources: Sources
    recipe: Recipe
    run: Run
    subject: Subject
    pictures: Pictures
    progress: RunProgress

    @property
    def task(self) -> Task:
        """Return what is minimised."""
        return task_of(self.sources.dataset.task)

    @property
    def text(self) -> Clip | None:
        """Return the CLIP that is trained along, if any."""
        return self.sources.clip if self.recipe.text else None
