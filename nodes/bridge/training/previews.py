"""Sample pictures of a run while it trains: by ComfyUI's sampler, from the very model that is being trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import comfy.model_management
from PIL import Image
from torch import Tensor

from ....lora_core.data.prompts import pairs
from ....lora_core.drawing.sheet import SheetRow, placed
from ....lora_core.ranks.group import here
from ....lora_core.runs import kept_picture
from ....lora_core.runs.kept_picture import KINDS, Part
from ....lora_core.stored import as_text, stored
from ....lora_core.training.state import TrainState
from ..host.wires import Clip, Model, Vae
from ..model.denoiser import ComfyDenoiser
from ..model.encoding import Tick, encode_captions
from ..model.names import family_of
from ..model.sampling import Sampling, check_size, decoded, drop, latents, sampling_inside
from ..model.text_encoders import TextDenoiser, tokenized
from .run_progress import RunProgress

log = logging.getLogger("lora_loom")
Conditions = dict[str, list]  # CONDITIONING by prompt
STRIP = (-2.0, -1.0, 0.0, 1.0, 2.0)  # strengths of a slider's pictures


@stored("sampling prompts negative every strength", tag="Previews")
@dataclass(frozen=True)
class Previews:
    """Says what to show and when; `every` 0 shows the end alone. Width and height 0 are the training resolution."""

    sampling: Sampling
    prompts: tuple[str, ...] = ()
    negative: str = ""
    every: int = 250
    strength: float = 1.0


@dataclass(frozen=True)
class PreparedPreviews:
    """Previews made ready for a data set: their prompts with the trigger and without it, encoded for this model. With
    `strengths` every prompt is a strip of pictures at these times the strength, that of the base model among them."""

    previews: Previews
    rows: tuple[tuple[str, ...], ...]
    encoded: Conditions
    vae: Vae
    strengths: tuple[float, ...] = ()

    def due(self, step: int, last: int) -> bool:
        return step == last or bool(self.previews.every and step % self.previews.every == 0)

    def note(self) -> str:
        return as_text((self.previews, self.rows, *((self.strengths,) if self.strengths else ())))


def check_previews(previews: Previews | None, model: Model, vae: Vae, subject: bool) -> None:
    """Raises ValueError for previews that cannot be made; `subject`: something is shown where no prompt is written."""
    if previews is None:
        return
    if system := family_of(model).system:
        raise ValueError(
            f"previews do not work with {system}, because its stages sample one after another; disconnect previews"
        )
    if not previews.prompts and not subject:
        raise ValueError("Training Previews has no prompt and LoRA Dataset has no trigger word; write a prompt")
    check_size(vae, previews.sampling.width, previews.sampling.height)


def planned(
    previews: Previews | None, vae: Vae, triggers: Sequence[str], words: tuple[str, ...], resolution: int,
    slider: Sequence[str] | None = None,
) -> PreparedPreviews | None:  # fmt: skip
    """The previews of a run whose data set has these triggers, not encoded yet; `words` are its class words, and
    `slider` the neutral prompts of a slider, whose previews are strips."""
    if previews is None:
        return None
    side = resolution // 64 * 64 or 64
    sampling = previews.sampling
    previews = replace(
        previews, sampling=replace(sampling, width=sampling.width or side, height=sampling.height or side)
    )
    check_size(vae, previews.sampling.width, previews.sampling.height)
    if slider is not None:
        return PreparedPreviews(previews, tuple((own,) for own in previews.prompts or slider), {}, vae, STRIP)
    rows = tuple(pairs(previews.prompts or triggers, triggers, words[0] if words else ""))
    return PreparedPreviews(previews, rows, {}, vae)


def encoded(shown: PreparedPreviews, clip: Clip, text: bool, tick: Tick) -> PreparedPreviews:
    """With `text`, text encoders are trained, and prompts are kept as tokens and encoded for every preview."""
    prompts = {shown.previews.negative, *(prompt for row in shown.rows for prompt in row)}
    made = tokenized(clip, prompts) if text else encode_captions(clip, prompts, None, tick, group=here())
    return replace(shown, encoded=made)


def kept_sheet(folder: Path, step: int, shown: PreparedPreviews) -> Image.Image | None:
    """Return the sheet of that step that an earlier run of these very previews left in its folder."""
    return kept_picture.read(_path(folder, step), shown.note())


def _path(folder: Path, step: int) -> Path:
    return folder / "previews" / f"step_{step:06d}.png"


class Previewer:
    """Shows a run's previews: on its node, and as `previews/step_<number>.png` in its folder.

    Every sheet has, for each prompt, a picture of the base model and one of the LoRA so far, with the trigger and
    without it. Only the last sheet and the base model's pictures are kept in memory. When memory runs out in a preview,
    the run goes on without any.
    """

    def __init__(
        self, shown: PreparedPreviews | None, patcher: Model, denoiser: ComfyDenoiser, state: TrainState,
        folder: Path, last: int, progress: RunProgress,
    ):  # fmt: skip
        self.shown, self.patcher, self.denoiser, self.state = shown, patcher, denoiser, state
        self.folder, self.last, self.progress = folder, last, progress
        self.base: list[Image.Image] = []
        self.sheet: Image.Image | None = None

    def begin(self, again: bool) -> None:
        """Show where the run starts: with the base model, or with what a run that goes on had not shown yet."""
        if again:
            self.went_back()
        if self.shown and self.shown.due(self.state.step, self.last):
            self.sheet = None if again else kept_sheet(self.folder, self.state.step, self.shown)
            if self.sheet is None:
                self.after()

    def went_back(self) -> None:
        """Delete what was shown of steps that are to be done again, by the rank that showed it."""
        for path in self._path().parent.glob("step_*.png"):
            if path.name > self._path().name and here().first:
                with suppress(OSError):
                    path.unlink()

    def after(self) -> None:
        """Show the step that was just done, when it is due."""
        if self.shown and self.shown.due(self.state.step, self.last) and not self._rendered():
            line = "out of memory in a preview: the run continues without previews; next time make them smaller"
            log.warning(line)
            self.progress.keep(line)
            self.shown = None
            comfy.model_management.soft_empty_cache()

    @property
    def _asked(self) -> PreparedPreviews:
        """Return what is to be shown, where something is."""
        return cast(PreparedPreviews, self.shown)

    def _rendered(self) -> bool:
        """False when memory ran out."""
        try:
            self.sheet, parts = self._render()
        except MemoryError:
            return False
        except (comfy.model_management.OOM_EXCEPTION, comfy.model_management.ACCELERATOR_ERROR) as error:
            if not comfy.model_management.is_oom(error):
                raise
            return False
        finally:
            drop(self._asked.vae)
        self._write(self.sheet, parts)
        self.progress.beside = self.sheet
        self.progress.update(self.state.step, picture=self.sheet)
        return True

    def _write(self, sheet: Image.Image, parts: list[Part]) -> None:
        """A sheet that the disk does not take is shown all the same."""
        try:
            kept_picture.write(self._path(), sheet, self._asked.note(), parts)
            self.progress.previewed(self.state.step)
        except OSError as error:
            log.warning("%s was not written: %s", self._path(), error.strerror or error)

    def _render(self) -> tuple[Image.Image, list[Part]]:
        flat = [prompt for row in self._asked.rows for prompt in row]
        start = not any(branch.lora_B.any() for branch in self.state.factors.branches.values())
        with self._sampling():
            if not self.base:
                with self.state.factors.silence():
                    base = self._latents(flat, "base")
            times = [0.0] if start else self._asked.strengths or (1.0,)
            trained = [self._trained(flat, each * self._asked.previews.strength) for each in times if each]
            self.base = self.base or [decoded(self._asked.vae, latent) for latent in base]
            pictures = [[decoded(self._asked.vae, latent) for latent in own] for own in trained]
        if self._asked.strengths:
            return self._strip(pictures), []
        return self._page(self.base if start else pictures[0])

    def _trained(self, prompts: list[str], strength: float) -> list[Tensor]:
        with self.state.judged(), self.state.factors.at(strength):
            return self._latents(prompts, f"step {self.state.step}")

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        text = self.denoiser.text if isinstance(self.denoiser, TextDenoiser) else None
        with sampling_inside(self.patcher, text):
            yield

    def _latents(self, prompts: list[str], what: str) -> list[Tensor]:
        encode, made = self._encoder(), {}
        negative = encode(self._asked.previews.negative)
        for number, prompt in enumerate(prompts):
            self.progress.say(f"preview of {what}: {number} of {len(prompts)}")
            if prompt not in made:
                made[prompt] = latents(self.patcher, encode(prompt), negative, self._asked.previews.sampling)
        return [made[prompt] for prompt in prompts]

    def _encoder(self) -> Callable[[str], list]:
        if not isinstance(self.denoiser, TextDenoiser):
            return self._asked.encoded.__getitem__
        return self._encoded_now

    def _encoded_now(self, prompt: str) -> list:
        """CONDITIONING by the text encoders as they are now."""
        ((tokens, values),) = self._asked.encoded[prompt]
        ((text, pooled),) = cast(TextDenoiser, self.denoiser).encode([tokens])
        return [[text, {**values, "pooled_output": pooled}]]

    def _strip(self, pictures: Sequence[Sequence[Image.Image]]) -> Image.Image:
        """The pictures of each strength between those of the base model; of an untouched LoRA these alone."""
        times, step = (self._asked.strengths if pictures else (0.0,)), self.state.step
        trained = iter(pictures)
        columns = [next(trained) if each else self.base for each in times]
        labels = [f"{each * self._asked.previews.strength:g}" for each in times]
        prompts = [prompt for row in self._asked.rows for prompt in row]
        rows = [
            SheetRow(prompt, list(own), labels) for prompt, own in zip(prompts, zip(*columns, strict=True), strict=True)
        ]
        return placed(rows, f"step {step} of {self.last}")[0]

    def _page(self, pictures: list[Image.Image]) -> tuple[Image.Image, list[Part]]:
        rows, step, both = [], self.state.step, iter(zip(self.base, pictures, strict=True))
        for prompts in self._asked.rows:
            shown = [picture for _ in prompts for picture in next(both)]
            labels = [label for _ in prompts for label in ("base", f"step {step}")]
            rows.append(SheetRow("  |  ".join(prompts), shown, labels))
        page, boxes = placed(rows, f"step {step} of {self.last}")
        shown = [(row, prompt, kind) for row, own in enumerate(self._asked.rows) for prompt in own for kind in KINDS]
        return page, [Part(*about, box) for about, box in zip(shown, boxes, strict=True)]

    def _path(self) -> Path:
        return _path(self.folder, self.state.step)
