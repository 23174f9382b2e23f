"""Says what sample pictures a run shows while it trains, and makes their prompts ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ....lora_core.data.dataset import Dataset, Example
from ....lora_core.data.prompts import pairs
from ....lora_core.ranks.group import here
from ....lora_core.stored import as_text, stored
from ..host.wires import Clip, Model, Vae
from ..model.encoding import Tick, encode_captions
from ..model.names import family_of
from ..model.references import NONE, Beside, with_texts
from ..model.sampling import Sampling, check_size
from ..model.text_encoders import tokenized

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
