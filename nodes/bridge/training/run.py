"""Train an Adapter on a MODEL: encode, attach, step, and keep the run on disk whatever happens."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import comfy.model_management
import torch
from PIL import Image

from ....lora_core.adapter import Adapter
from ....lora_core.files import metadata
from ....lora_core.ranks.group import here
from ....lora_core.ranks.lost import reached
from ....lora_core.runs.result import Finished
from ....lora_core.runs.run_folder import RunFolder, UnsavedError
from ....lora_core.training.batches import Batches
from ....lora_core.training.config import Recipe
from ....lora_core.training.inject import Factors, attached
from ....lora_core.training.plan import Measures, Plan
from ....lora_core.training.presets import preset_of
from ....lora_core.training.reality import Expected
from ....lora_core.training.state import TrainState
from ....lora_core.training.tasks import PICTURES
from ....lora_core.training.trainer import Sample, Trouble, make_optimizer, train
from ....lora_core.training.unmoved import Unmoved
from ....lora_core.training.validation import Pictures
from ..host.ending import ended_by_signals
from ..host.ranks import by_first, cancelled_together, on_all, put_off
from ..host.wires import Model
from ..model.denoiser import ComfyDenoiser
from ..model.text_encoders import TextDenoiser
from ..model.weights import ComfyWeightReader
from ..session.graphs import possible, replaying, unused
from ..session.memory_plan import Planner, UnforeseeableError
from ..session.needs import keep_need
from ..session.rehearsal import Job
from ..session.session import aside, loaded, trainable
from . import bleeding, earlier_result, prepare, strength
from .agreement import agree, check_ranks, note
from .continue_from import spoken_with
from .earlier_auto import as_begun
from .header_facts import run_facts
from .order import Order, Run, Sources
from .prepared import Material, Prepared, labelled
from .previewer import Previewer
from .previews import check_previews
from .quieted import keep, quieted
from .reality import Reality
from .run_folders import begun, place, stop_told, tell
from .run_progress import RunProgress
from .samples import make_samples
from .summary import summary
from .trained import Trained, by_first_rank
from .trial import check_guests
from .validation import Watch, weight_norms

log = logging.getLogger("lora_loom")


def train_lora(sources: Sources, recipe: Recipe, run: Run) -> Trained:
    """Train to the recipe's last step, or go on from where a run with these very settings was cut off.

    Several ranks make one run: each step is shared among them, and the first keeps the run, on all the same comes out.
    Raises ValueError for anything wrong with the input before the first step.
    """
    check_ranks(sources, recipe)
    begun_with = as_begun(sources, recipe, run)
    order = on_all(lambda: _checked(sources, *begun_with))
    with order.progress.watched():
        return _trained(order)


def _trained(order: Order) -> Trained:
    earlier: list[tuple] = []
    if by_first(lambda: _finds(order, earlier)):
        return by_first_rank(lambda: _again(order, *earlier[0]))
    on_all(lambda: check_guests(order))
    material = _encoded(order)
    order.progress.enters("loading the model")
    with _session(order, material) as (patcher, measures, expected):
        order, work = _set_up(order, material, patcher)
        work = replace(work, measures=measures, expected=expected)
        with _folder(order, work) as kept, stop_told(work.state, kept, order.progress):
            keep(work.quiet, kept, order.progress)
            return _run(order, work, kept)


def _finds(order: Order, earlier: list[tuple]) -> bool:
    """Add what came out of this run, if it was finished before."""
    earlier.extend(filter(None, [earlier_result.find(order)]))
    return bool(earlier)


def _checked(sources: Sources, recipe: Recipe, run: Run) -> Order:
    subject, hits = prepare.check(sources, recipe)
    pictures = Pictures(sources.dataset, recipe)
    shown = bool(sources.dataset.trigger) or prepare.slider_prompts(sources.dataset) is not None
    check_previews(run.previews, sources.model, sources.vae, shown)
    told = prepare.notes(sources, [run.note, note(recipe.train), *run.notes, *hits])
    progress = RunProgress(run.name, recipe.train.steps, told, run.chosen)
    return Order(sources, recipe, run, subject, pictures, progress)


def _again(order: Order, folder: Path, told: Finished, charts: Image.Image, sheet: Image.Image | None) -> Trained:
    """Return what came out of a run that was finished before."""
    kept = earlier_result.kept_adapter(folder, told)
    facts = replace(_facts(order), **metadata.usage_of(kept.metadata))
    adapter = labelled(facts, replace(kept, metadata={}), told.kept_step)
    log.info("%s was finished before", folder.name)
    order.progress.at(folder, told.losses)
    on_node = _ended(order.progress, told, folder)
    outcome = {"report": told.report, "charts": charts, "sheet": sheet, "chosen": order.run.chosen}
    return Trained(adapter, told.losses, folder, on_node, **outcome)


def _facts(order: Order) -> metadata.Facts:
    return run_facts(order.sources, order.recipe, order.run, order.progress, order.pictures.learned_dataset())


def _encoded(order: Order) -> Material:
    sources, recipe, run, progress = order.sources, order.recipe, order.run, order.progress
    plain = sources.clip, Adapter({})
    speaker, carried = plain if order.text else spoken_with(sources.model, sources.clip, sources.start)
    neutral = prepare.encode_neutral(sources, speaker, recipe, progress)
    encoded, latents, priors = prepare.encode(sources, speaker, recipe, progress)
    beside = prepare.encode_beside(sources, speaker, progress)
    facts = _facts(order)
    shown = prepare.prepare_previews(sources, speaker, recipe, run, beside, progress)
    shown = shown if here().first else None
    return Material(encoded, neutral, latents, priors, references=beside, shown=shown, carried=carried, facts=facts)


@contextmanager
def _session(order: Order, material: Material) -> Iterator[tuple[Model, Measures, Expected | None]]:
    """Yield the loaded ModelPatcher to train, with the measures that fit what is free, and what is expected of a step;
    what it needs is shown before.

    Raises ValueError when the run would not fit.
    """
    run, text = order.run, order.text
    made = material.encoded, material.latents, material.priors, material.references, material.shown
    job = prepare.job(order.sources, order.recipe, *made, order.subject.layers)
    with trainable(order.sources.model) as patcher, aside(text and text.patcher) as encoders:
        planner = Planner(patcher, text)
        asked = possible(run.measures, text is not None, planner.device, order.task)
        settled, measures, needed, line = on_all(lambda: _planned(planner, job, asked, run.automatic))
        if settled and order.task == PICTURES:
            keep_need(order.sources.model, job, asked, settled.need.total)
        foreseen = planner.way(measures)
        order.progress.keep(line)
        log.info("%s: %s", run.name, line)
        tell(order.progress, unused(run.measures, measures, text is not None, planner.device, order.task))
        with loaded(patcher, measures, needed, encoders) as way:
            if settled:
                tell(order.progress, planner.otherwise(job, settled, foreseen, way))
            yield patcher, measures, planner.expected(job, settled, way) if settled else None


def _planned(planner: Planner, job: Job, asked: Measures, automatic: bool) -> tuple[Plan | None, Measures, float, str]:
    """The plan, or None where none could be made; its measures, what is needed beside the weights, and what to say."""
    try:
        settled, line = planner.settle(job, asked, automatic)
        return settled, settled.measures, settled.need.total - settled.need.weights, line
    except UnforeseeableError as reason:
        return None, *planner.unforeseen(asked, automatic, reason)


def _set_up(order: Order, material: Material, patcher: Model) -> tuple[Order, Prepared]:
    """Factors and samples of a run at its first step, which goes on loud where there are no quiet directions."""
    text = order.text
    denoiser = TextDenoiser(patcher, text) if text else ComfyDenoiser(patcher)
    settled, found = quieted(order, material.neutral, patcher, denoiser, material.latents)
    if settled is not order:
        order, material = settled, replace(material, facts=_facts(settled))
    sources, recipe, subject = order.sources, order.recipe, order.subject
    samples = make_samples(
        denoiser, sources.dataset, material.encoded, material.latents, material.priors, recipe.preserved, recipe.held,
        material.references,
    )  # fmt: skip
    quiet = found and found.quieting(recipe.train.quiet)
    beside = {"start": sources.start, "kept": subject.kept, "frozen": ComfyWeightReader()}
    factors = partial(Factors, subject.layers, device=patcher.load_device, **beside, quiet=quiet)
    state = _fresh_state(factors, recipe, samples, order.pictures)
    state.given = found.digest if found else ""
    return order, Prepared(patcher, denoiser, samples, state, material, found)


def _folder(order: Order, work: Prepared) -> AbstractContextManager[RunFolder]:
    """The run's folder, with the state brought to where the run goes on."""
    run = order.run
    identity, settings, before = prepare.identified(order, work.patcher)
    if here().size > 1:
        agree(lambda: settings)
    return begun(run.name, identity, settings, work.state, run.start_over, order.progress, before)


def _run(order: Order, work: Prepared, kept: RunFolder) -> Trained:
    """Step by step to the end."""
    run, config, progress, state = order.run, order.recipe.train, order.progress, work.state
    kept.keep_workflow(progress.stamped(run.workflow))
    previewer = Previewer(
        work.material.shown, work.patcher, work.denoiser, state, folder=kept.path, last=config.steps, progress=progress
    )
    own = work.material
    encoded = own.encoded, own.latents, own.priors
    watch = Watch(
        order.recipe, order.pictures, state, work.denoiser, work.samples, weights=weight_norms(order.subject.layers),
        folder=kept.path, describe=work.adapter, label=partial(labelled, work.material.facts),
        enters=progress.enters, cfg=preset_of(order.subject.family.preset_name).cfg,
        neutral=strength.asked(work.denoiser, order, *encoded), suggests=work.suggests,
        task=order.task, concepts=bleeding.questions(work.denoiser, order, *encoded),
    )  # fmt: skip
    progress.at(kept.path, state.losses, watch.marks)
    problem, unmoved, device = "", Unmoved(state.factors), work.denoiser.device
    replayed = replaying(device, work.measures, partial(tell, progress))
    assisting = order.sources.assistants.beside(work.patcher.model, device)
    try:
        with ExitStack() as inside:
            inside.enter_context(cancelled_together())
            inside.enter_context(ended_by_signals())
            inside.enter_context(attached(state.factors.branches))
            inside.enter_context(attached(assisting.branches))
            inside.enter_context(kept.kept(state, work.adapter))
            gradient = inside.enter_context(replayed)
            reality = Reality(device, work.expected, progress, gradient)
            with put_off():
                previewer.begin(run.start_over)
            steps = train(
                config, state, work.denoiser, work.samples, report=partial(_trouble, progress, kept, previewer),
                relief=reality.relief, gradient=gradient, asked=comfy.model_management.processing_interrupted,
                aid=assisting.on, task=order.task,
            )  # fmt: skip
            for result in watch.over(reality.over(steps)):
                reached(result.step)
                tell(progress, unmoved.look())
                kept.note(result)
                with put_off():
                    progress.took(result)
                due = run.save_every and result.step % run.save_every == 0
                tell(progress, _saved(progress, kept, state, work) if due else kept.save_in_time(state))
                with put_off():
                    previewer.after()
            on_all(comfy.model_management.throw_exception_if_processing_interrupted)
            progress.enters("saving")
    except UnsavedError as error:
        problem = f"{_unsaved(kept.lora(state.step))}. {error}."
        tell(progress, f"warning: {problem}")
    else:
        kept.finish()
    return by_first_rank(lambda: _outcome(order, work, kept, watch, unmoved, problem, previewer), work.adapter)


def _outcome(
    order: Order, work: Prepared, kept: RunFolder, watch: Watch, unmoved: Unmoved, problem: str,
    previewer: Previewer,
) -> Trained:  # fmt: skip
    """Return what comes out of a run at its end; kept, so that the same run is not made again."""
    state, progress = work.state, order.progress
    adapter, (report, charts) = watch.result(), watch.report_and_charts(unmoved.sentence, previewer.where)
    report = f"{problem}\n\n{report}" if problem else report
    said = summary(state, adapter, report, *filter(None, (watch.said, previewer.where)))
    kept_step = int(adapter.metadata["ss_steps"])
    file = kept.lora(state.step) if kept_step == state.step else watch.path
    told = Finished(state.step, file.name, kept_step, list(state.losses), report, said)
    if not problem:
        earlier_result.keep(order, kept, told, adapter, charts)
    on_node = _ended(progress, told, kept.path, problem)
    outcome = {"report": report, "charts": charts, "sheet": previewer.sheet, "chosen": order.run.chosen}
    return Trained(adapter, told.losses, kept.path, on_node, **outcome)


def _ended(progress: RunProgress, told: Finished, folder: Path, problem: str = "") -> str:
    """Return what stays on the node of a run that is finished."""
    return progress.end(f"{told.summary}\n{problem or f'saved in {place(folder)}'}")


def _saved(progress: RunProgress, kept: RunFolder, state: TrainState, work: Prepared) -> str:
    """Save the run, or return why not."""
    progress.enters("saving")
    if not (problem := kept.try_save(state, work.adapter)):
        progress.saved(state.step)
    return problem


def _unsaved(lora: Path) -> str:
    if os.path.isfile(lora):  # the state is the larger of the two
        return f"The LoRA was saved as {lora.name}, but the state of the run was not"
    return "The LoRA was not saved to disk. This node still returns it: save it with Save LoRA"


def _fresh_state(make: Callable[..., Factors], recipe: Recipe, samples: list[Sample], pictures: Pictures) -> TrainState:
    lora, config = recipe.lora, recipe.train
    text_rank, text_rate = (recipe.text.rank, recipe.text.learning_rate) if recipe.text else (0, 0.0)
    generator = torch.Generator().manual_seed(config.seed)
    factors = make(lora.rank, lora.alpha, generator, text_rank, options=lora.options)
    batches = Batches([sample.kind for sample in samples], config.batch_size, pictures.times(), generator)
    return TrainState(factors, batches, generator, make_optimizer(factors, config, text_rate))


def _trouble(progress: RunProgress, kept: RunFolder, previewer: Previewer, trouble: Trouble) -> None:
    kept.note(trouble)
    log.warning(trouble.text)
    if trouble.went_back:
        previewer.went_back()
        progress.keep(f"warning: {trouble.text}")
    with put_off():
        comfy.model_management.throw_exception_if_processing_interrupted()
