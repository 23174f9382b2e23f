"""Draws the sample pictures of a run while it trains: by ComfyUI's sampler, from the very model that is being
trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import comfy.model_management
from PIL import Image
from torch import Tensor

from ....lora_core.data.dataset import Example
from ....lora_core.drawing.sheet import SheetRow, placed
from ....lora_core.ranks.group import here
from ....lora_core.runs import kept_picture
from ....lora_core.runs.kept_picture import KINDS, Part
from ....lora_core.training.slider_strip import where
from ....lora_core.training.state import TrainState
from ..host.node_outputs import as_picture
from ..host.wires import Model
from ..model.denoiser import ComfyDenoiser
from ..model.sampling import decoded, drop, latents, sampling_inside
from ..model.text_encoders import TextDenoiser
from .previews import PreparedPreviews
from .run_progress import RunProgress

log = logging.getLogger("lora_loom")


def references_of(example: Example, size: tuple[int, int]) -> list[Image.Image]:
    """Return the references of an example, made smaller to fit into `size`."""
    found = [as_picture(each.pixels[None]) for each in example.references]
    for picture in found:
        picture.thumbnail(size)
    return found


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
        self.where = ""  # a slider's pictures change, as `slider_strip.where` says it

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
        start = not any(branch.lora_B.any() for branch in self.state.factors.branches.values())
        with self._sampling():
            if not self.base:
                with self.state.factors.silence():
                    base = self._latents("base")
            times = [0.0] if start else self._asked.strengths or (1.0,)
            trained = [self._trained(each * self._asked.previews.strength) for each in times if each]
            self.base = self.base or [decoded(self._asked.vae, latent) for latent in base]
            pictures = [[decoded(self._asked.vae, latent) for latent in own] for own in trained]
        if self._asked.strengths:
            return self._strip(pictures), []
        return self._page(self.base if start else pictures[0])

    def _trained(self, strength: float) -> list[Tensor]:
        with self.state.judged(), self.state.factors.at(strength):
            return self._latents(f"step {self.state.step}")

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        text = self.denoiser.text if isinstance(self.denoiser, TextDenoiser) else None
        with sampling_inside(self.patcher, text):
            yield

    def _latents(self, what: str) -> list[Tensor]:
        encode, made, asked = self._encoder(), {}, self._asked.asked()
        negative = self._asked.previews.negative
        texts = {text: encode(text) for text in dict.fromkeys((negative, *(prompt for prompt, _ in asked)))}
        for number, (prompt, beside) in enumerate(asked):
            self.progress.say(f"preview of {what}: {number} of {len(asked)}")
            if (prompt, id(beside)) not in made:
                positive, against = (beside.told(text, texts, {}) for text in (prompt, negative))
                made[prompt, id(beside)] = latents(self.patcher, positive, against, self._asked.previews.sampling)
        return [made[prompt, id(beside)] for prompt, beside in asked]

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
        self.where = where(columns, self._asked.previews.strength) if pictures else ""
        rows = [
            SheetRow(prompt, list(own), labels) for prompt, own in zip(prompts, zip(*columns, strict=True), strict=True)
        ]
        return placed(rows, f"step {step} of {self.last}")[0]

    def _page(self, pictures: list[Image.Image]) -> tuple[Image.Image, list[Part]]:
        rows, parts, step, both = [], [], self.state.step, iter(zip(self.base, pictures, strict=True))
        for number, prompts in enumerate(self._asked.rows):
            shown = [picture for _ in prompts for picture in next(both)]
            labels = [label for _ in prompts for label in ("base", f"step {step}")]
            beside = references_of(self._asked.edits[number].example, shown[0].size) if self._asked.edits else []
            names = [f"reference {place}" for place in range(1, len(beside) + 1)]
            rows.append(SheetRow("  |  ".join(prompts), [*shown, *beside], [*labels, *names]))
            parts += [(number, prompt, kind) for prompt in prompts for kind in KINDS] + [(number, "", "")] * len(beside)
        page, boxes = placed(rows, f"step {step} of {self.last}")
        found = [Part(row, prompt, kind, box) for (row, prompt, kind), box in zip(parts, boxes, strict=True)]
        return page, [part for part in found if part.kind]

    def _path(self) -> Path:
        return _path(self.folder, self.state.step)
