"""Sample pictures of a run while it trains: by ComfyUI's sampler, from the very model that is being trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import cast

import comfy.model_management
from PIL import Image
from torch import Tensor

from ....lora_core.data.dataset import Dataset, Example
from ....lora_core.data.prompts import pairs
from ....lora_core.drawing.sheet import SheetRow, placed
from ....lora_core.ranks.group import here
from ....lora_core.runs import kept_picture
from ....lora_core.runs.kept_picture import KINDS, Part
from ....lora_core.stored import as_text, stored
from ....lora_core.training.slider_strip import where
from ....lora_core.training.state import TrainState
from ..host.node_outputs import as_picture
from ..host.wires import Clip, Model, Vae
from ..model.denoiser import ComfyDenoiser
from ..model.encoding import Tick, encode_captions
from ..model.names import family_of
from ..model.references import NONE, Beside, with_texts
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
class Edit:
    """A picture of the data set, from whose references a row of previews is drawn, and those as CONDITIONING has
    them."""

    example: Example
    beside: Beside = NONE


@dataclass(frozen=True)
class PreparedPreviews:
    """Previews made ready for a data set: their prompts with the trigger and without it, encoded for this model, and
    for each row the `edits` that it shows, if any. With `strengths` every prompt is a strip of pictures at these times
    the strength, that of the base model among them."""

    previews: Previews
    rows: tuple[tuple[str, ...], ...]
    encoded: Conditions
    vae: Vae
    edits: tuple[Edit, ...] = ()
    strengths: tuple[float, ...] = ()

    def due(self, step: int, last: int) -> bool:
        return step == last or bool(self.previews.every and step % self.previews.every == 0)

    def note(self) -> str:
        digests = tuple(edit.example.digest for edit in self.edits)
        return as_text((self.previews, self.rows, *filter(None, (digests, self.strengths))))

    def asked(self) -> list[tuple[str, Beside]]:
        """Return every prompt with what stands beside it, row by row."""
        edits = self.edits or [None] * len(self.rows)
        return [
            (prompt, edit.beside if edit else NONE)
            for row, edit in zip(self.rows, edits, strict=True)
            for prompt in row
        ]


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
    examples: Sequence[Example] = (), slider: Sequence[str] | None = None,
) -> PreparedPreviews | None:  # fmt: skip
    """The previews of a run whose data set has these triggers, not encoded yet; `words` are its class words, `examples`
    those whose references are shown in turn, and `slider` the neutral prompts of a slider, whose previews are
    strips."""
    if previews is None:
        return None
    side = resolution // 64 * 64 or 64
    sampling = previews.sampling
    previews = replace(
        previews, sampling=replace(sampling, width=sampling.width or side, height=sampling.height or side)
    )
    check_size(vae, previews.sampling.width, previews.sampling.height)
    if slider is not None:
        return PreparedPreviews(previews, tuple((own,) for own in previews.prompts or slider), {}, vae, strengths=STRIP)
    rows = tuple(pairs(previews.prompts or triggers, triggers, words[0] if words else ""))
    edits = tuple(Edit(examples[number % len(examples)]) for number in range(len(rows))) if examples else ()
    return PreparedPreviews(previews, rows, {}, vae, edits)


def encoded(shown: PreparedPreviews, clip: Clip, text: bool, tick: Tick) -> PreparedPreviews:
    """With `text`, text encoders are trained, and prompts are kept as tokens and encoded for every preview."""
    prompts = {shown.previews.negative, *(prompt for row in shown.rows for prompt in row)}
    made = tokenized(clip, prompts) if text else encode_captions(clip, prompts, None, tick, group=here())
    return replace(shown, encoded=made)


def with_references(
    shown: PreparedPreviews, clip: Clip, model: Model, dataset: Dataset, beside: Sequence[Beside], tick: Tick
) -> PreparedPreviews:
    """With the references of each row as CONDITIONING has them, of which `beside` are those of all views."""
    if not shown.edits:
        return shown
    starts = accumulate((example.num_views for example in dataset.examples), initial=0)
    first = {id(example): beside[start] for example, start in zip(dataset.examples, starts, strict=False)}
    own = [replace(first[id(edit.example)], texts={}) for edit in shown.edits]
    held = [next(edit.example.references_of_views()) for edit in shown.edits]
    prompts = [(*row, shown.previews.negative) for row in shown.rows]
    made = with_texts(clip, model, own, held, [dict.fromkeys(each) for each in prompts], tick, here())
    edits = zip(shown.edits, made, strict=True)
    return replace(shown, edits=tuple(replace(edit, beside=each) for edit, each in edits))


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
