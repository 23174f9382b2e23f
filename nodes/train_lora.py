"""Train LoRA: low-rank factors on a MODEL's attention, from a LoRA Dataset."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..lora_core.files.names import safe_name
from ..lora_core.training.config import (
    SCHEDULES,
    TARGETS,
    LoraConfig,
    OptimizerConfig,
    Recipe,
    TextConfig,
    TrainConfig,
)
from ..lora_core.training.layers import LayersConfig
from ..lora_core.training.objective_config import WEIGHTINGS, ObjectiveConfig
from ..lora_core.training.plan import Measures
from .bridge.host.folders import NONE, lora_state, run_id
from .bridge.host.node_outputs import as_image_batch, as_lora_model, as_one_batch, report_ui
from .bridge.host.progress import posted_workflow
from .bridge.quiet.choice import QUIET
from .bridge.quiet.choice import chosen as quiet_choice
from .bridge.stack.entries import check_rows
from .bridge.training.assistants import read_assistants
from .bridge.training.choices import AUTO, TIMESTEPS, choices, steps_for
from .bridge.training.continue_from import read_start
from .bridge.training.order import Run, Sources
from .bridge.training.run import train_lora
from .types import (
    CATEGORY,
    AdapterType,
    ContractType,
    LayersType,
    LoraDatasetType,
    LoraStackType,
    ObjectiveType,
    OptimizerType,
    PreviewsType,
    ValidationType,
    file_input,
)

MOST_STEPS = 1_000_000
MOST_PRESERVATION = 100.0


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_TrainLora",
            display_name="Train LoRA (Loom)",  # ComfyUI's own trainer is called Train LoRA, too
            category=f"{CATEGORY}/train",
            description="Trains a LoRA on the connected model. You can cancel at any time: the run is saved, and queueing the same settings again continues it.",
            search_aliases=["lora trainer", "finetune", "dreambooth", "lora loom"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model. Training does not change it."),
                io.Clip.Input("clip", tooltip="Text encoder of the model, for the captions."),
                io.Vae.Input("vae", tooltip="VAE of the model, for the pictures."),
                LoraDatasetType.Input("dataset", tooltip="From LoRA Dataset."),
                io.Int.Input("steps", default=1000, min=0, max=MOST_STEPS, tooltip="Number of optimiser steps. Start with 50 to 100 per picture. 0 = auto: from the number of pictures and the model family; the node shows it."),
                io.Int.Input("rank", default=0, min=0, max=1024, tooltip="Capacity of the LoRA. 0 = auto: a value that suits the model family. Use 4 to 16 for a concept, 16 to 64 for a style. A higher rank makes a larger file."),
                io.Float.Input("alpha", default=0.0, min=0.0, max=10_000.0, step=0.5, round=False, tooltip="The LoRA is scaled by alpha / rank. 0 = auto: the same as rank."),
                io.Float.Input("learning_rate", default=0.0, min=0.0, max=1.0, step=1e-5, round=False, tooltip="0 = auto: a value that suits the model family, usually 1e-4; the node shows it. Halve it when results look burnt."),
                io.Combo.Input("targets", options=[AUTO, *TARGETS], default=AUTO, tooltip="Which layers are trained. auto: suits the model family. attention: q, k, v and output layers of every attention. The others train more layers."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip="On one machine, the same seed and settings give exactly the same file."),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="Pictures per forward pass, each with its own caption and noise level."),
                io.Int.Input("accumulation", default=1, min=1, max=1024, tooltip="Gradient accumulation: forward passes per optimiser step. Works like a larger batch, without more memory."),
                io.String.Input("run_name", default="my_lora", optional=True, advanced=True, tooltip="Name of the run. Its files are saved in output/lora_loom/<name>-<settings>."),
                io.Combo.Input("resume", options=["continue", "start over"], default="continue", optional=True, advanced=True, tooltip="continue: a run with the same settings continues where it was interrupted; a finished run is returned at once. start over: begins a new run."),
                io.Combo.Input("timesteps", options=list(TIMESTEPS), default=AUTO, optional=True, advanced=True, tooltip="How noise levels (timesteps) are sampled. auto: suits the model family."),
                io.Float.Input("shift", default=3.0, min=0.01, max=100.0, step=0.05, optional=True, advanced=True, tooltip="For timesteps with 'shifted' in the name: a higher shift trains more on noisy pictures. Not used by auto."),
                io.Combo.Input("weighting", options=list(WEIGHTINGS), default="none", optional=True, advanced=True, tooltip="Loss weight of each noise level. none: all the same, the plain loss of the model."),
                io.Combo.Input("lr_schedule", options=list(SCHEDULES), default="cosine", optional=True, advanced=True, tooltip="How the learning rate changes over the steps."),
                io.Int.Input("warmup", default=0, min=0, max=100_000, optional=True, advanced=True, tooltip="Steps over which the learning rate rises from zero to its full value."),
                io.Float.Input("caption_dropout", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True, tooltip="Share of pictures that are trained with an empty caption, from 0 to 1. A little (0.05 to 0.1) keeps CFG guidance working."),
                io.Float.Input("max_grad_norm", default=1.0, min=0.0, max=1000.0, step=0.1, optional=True, advanced=True, tooltip="Gradient clipping: a larger gradient is scaled down to this norm. 0 is off."),
                io.Boolean.Input("gradient_checkpointing", default=True, optional=True, advanced=True, tooltip="Computes each block again in the backward pass: needs far less memory and takes about 50 % more time."),
                io.Int.Input("save_every", default=250, min=0, max=1_000_000, optional=True, advanced=True, tooltip="Steps between saves of the LoRA. 0 saves it only at the end, on cancel and on errors. The training state is also saved every five minutes."),
                io.String.Input("include", default="", optional=True, advanced=True, tooltip="More layers to train, by name, separated by commas; * matches anything. Example: time_embed*, *.ff.net.2."),
                io.String.Input("exclude", default="", optional=True, advanced=True, tooltip="Layers not to train, written as in include."),
                io.String.Input("preserve", default="", optional=True, advanced=True, tooltip="Class words, separated by commas: for the trigger 'sks dog' write dog. Captions with a class word in place of the trigger keep the result of the base model. Of sliders and pairs without a trigger: whole prompts that keep it. Needs preservation above 0."),
                io.Float.Input("preservation", default=0.0, min=0.0, max=MOST_PRESERVATION, step=0.1, optional=True, advanced=True, tooltip="Weight of preserve: 0 is off, 1 is as strong as the training itself. Each step takes about twice as long."),
                io.Combo.Input("memory", options=["auto", "as set"], default="auto", optional=True, advanced=True, tooltip="When the run does not fit into memory: auto switches on checkpointing and then offload, as little as needed; as set stops with an error that says what would help."),
                io.Float.Input("offload", default=0.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True, tooltip="Share of the blocks (0 to 1, at least) whose weights stay in RAM until they are needed: less VRAM, slower steps, the same result."),
                io.Int.Input("text_rank", default=0, min=0, max=1024, optional=True, advanced=True, tooltip="Rank of the text encoder's LoRA, for SD 1.5 and SDXL. 0: the text encoder is not trained. 4 to 16 is enough."),
                io.Float.Input("text_learning_rate", default=0.0, min=0.0, max=1.0, step=1e-5, round=False, optional=True, advanced=True, tooltip="Learning rate of the text encoder. 0 = auto: half of learning_rate."),
                io.Vae.Input("prior_vae", optional=True, tooltip="Only for Stable Cascade stage B: the stage C encoder (effnet_encoder); and for the Kandinsky 2.2 decoder: its CLIP vision model, by CLIP Vision as VAE."),
                OptimizerType.Input("optimizer", optional=True, tooltip="From Training Optimizer; it replaces lr_schedule, warmup and max_grad_norm of this node."),
                ObjectiveType.Input("objective", optional=True, tooltip="From Training Objective; it replaces timesteps, shift and weighting of this node."),
                LayersType.Input("layers", optional=True, tooltip="From LoRA Layers: scaling, dropout, norm limit, DoRA, and settings for single layers."),
                PreviewsType.Input("previews", optional=True, tooltip="From Training Previews: pictures made with the LoRA during training. They do not change the result."),
                ValidationType.Input("validation", optional=True, tooltip="From Training Validation: shows when to stop. It can also stop the run or return the best LoRA."),
                file_input("continue_from", optional=True, advanced=True, tooltip="A LoRA file to continue from, in any format. Its layers keep their rank and alpha / rank. None: start a new LoRA."),
                io.Boolean.Input("cuda_graphs", default=False, optional=True, advanced=True, tooltip="Experimental, and not yet tried on a GPU: replay steps from CUDA graphs, which should be faster where a GPU waits for Python. For runs without gradient_checkpointing, offload and text_rank. The first steps are compared with plain ones; if they differ, the run continues without graphs."),
                io.Combo.Input("quiet", options=list(QUIET), default=AUTO, optional=True, advanced=True, tooltip="Keeps what the LoRA is not about as it was: other pictures change much less. directions: learns only where the base model is quiet on neutral prompts. directions+preservation: also holds the model's own answers on such prompts, in every 4th step. auto: the latter when LoRA Dataset has a trigger and it was measured on the model's family, which so far is the demo base alone; else off."),
                io.String.Input("neutral_prompts", default="", multiline=True, optional=True, advanced=True, tooltip="For quiet: more prompts whose pictures are to stay as they are, one per line, without the trigger. They are added to a list that comes with the pack."),
                ContractType.Input("contract", optional=True, tooltip="From LoRA Contract: what the LoRA is and what may be done with it, saved in its file. What it leaves empty is filled from the base model, the data set and the run."),
                LoraStackType.Input("assistants", optional=True, tooltip="LoRAs that are on in training steps only, from Load LoRA Stack: for models distilled to few steps, the training adapter made for them. Previews, validation and the saved LoRA are without them. The text strength is not used."),
            ],
            outputs=[
                io.LoraModel.Output("lora_model", tooltip="For ComfyUI's own Load LoRA Model and Save LoRA Weights."),
                io.LossMap.Output("loss_map", tooltip="For ComfyUI's Plot Loss Graph."),
                AdapterType.Output("adapter", tooltip="For Save LoRA and Merge LoRA."),
                io.Image.Output("previews", tooltip="The last preview sheet; a dark square without Training Previews."),
                io.String.Output("report", tooltip="How the run went: a verdict, validation, loss by noise level, norms, and the loss of each picture."),
                io.Image.Output("charts", tooltip="The report as charts, for Preview Image."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, run_name="my_lora", steps=None, warmup=0, preserve="", preservation=0.0, rank=None, alpha=None,
        learning_rate=None, continue_from=NONE,
    ):  # fmt: skip
        try:
            safe_name("lora" if run_name is None else run_name)
            _check_or_auto(LoraConfig, rank=rank, alpha=alpha)
            _check_or_auto(TrainConfig, learning_rate=learning_rate)
        except ValueError as error:
            return str(error)
        if steps is not None and not 0 <= steps <= MOST_STEPS:
            return f"steps is {steps}; it must be between 1 and {MOST_STEPS}, or 0 for auto"
        if steps and warmup is not None and not 0 <= warmup < steps:
            return f"warmup is {warmup} steps but the run has only {steps}; use fewer warm-up steps"
        if preservation is not None and not 0 <= preservation <= MOST_PRESERVATION:
            return f"preservation is {preservation:g}; it must be between 0 and {MOST_PRESERVATION:g}"
        if preservation and preserve is not None and not _patterns(preserve):
            return f"preservation is {preservation:g} but preserve has no class word; write one, such as person, or set preservation to 0"
        return check_rows([continue_from])

    @classmethod
    def fingerprint_inputs(cls, continue_from=NONE, **_):
        return lora_state(continue_from)

    @classmethod
    def execute(
        cls, model, clip, vae, dataset, steps, rank, alpha, learning_rate, targets, seed, batch_size, accumulation,
        run_name="my_lora", resume="continue", timesteps=AUTO, shift=3.0, weighting="none", lr_schedule="cosine", warmup=0,
        caption_dropout=0.0, max_grad_norm=1.0, gradient_checkpointing=True, save_every=250, include="", exclude="",
        preserve="", preservation=0.0, memory=AUTO, offload=0.0, text_rank=0, text_learning_rate=0.0, prior_vae=None,
        optimizer=None, objective=None, layers=None, previews=None, validation=None, continue_from=NONE, cuda_graphs=False,
        quiet=AUTO, neutral_prompts="", contract=None, assistants=None,
    ) -> io.NodeOutput:  # fmt: skip
        optimizer = optimizer or OptimizerConfig(schedule=lr_schedule, warmup=warmup, max_grad_norm=max_grad_norm)
        objective = objective or ObjectiveConfig(timesteps=timesteps, shift=shift, weighting=weighting)
        start = read_start(continue_from, model, clip, targets == AUTO, rank, alpha)
        aids = read_assistants(assistants, model)
        law, shift = objective.timesteps, objective.shift
        hushed = quiet_choice(quiet, model, dataset, _patterns(preserve), neutral_prompts)
        chosen = choices(model, targets, rank, alpha, learning_rate, law, shift, optimizer, start, quiet=hushed.mu > 0)
        objective = replace(objective, timesteps=chosen.timesteps, shift=chosen.shift)
        lora = LoraConfig(
            chosen.rank, chosen.alpha, chosen.targets,
            include=_patterns(include), exclude=_patterns(exclude), options=layers or LayersConfig(),
        )  # fmt: skip
        steps, told = steps_for(model, dataset, batch_size * accumulation, steps)
        config = TrainConfig(
            steps=steps, learning_rate=chosen.learning_rate, batch_size=batch_size, accumulation=accumulation, seed=seed,
            optimizer=optimizer, objective=objective, caption_dropout=caption_dropout,
            **hushed.training(preservation),
        )  # fmt: skip
        measures, auto = Measures(gradient_checkpointing, offload, graph=cuda_graphs), chosen.chosen()
        auto |= {"steps": str(steps)} if told else {}
        text = TextConfig(text_rank, text_learning_rate or chosen.learning_rate / 2) if text_rank else None
        auto |= {"text_learning_rate": f"{text.learning_rate:g}"} if text and not text_learning_rate else {}
        auto |= {"quiet": hushed.choice} if quiet == AUTO else {}
        run = Run(
            run_name, save_every, measures, automatic=memory == AUTO, start_over=resume == "start over",
            note=chosen.note(), notes=(told, *aids.notes, *hushed.notes), coverage=hushed.coverage, previews=previews, chosen=auto,
            workflow=posted_workflow(cls), before=chosen.earlier(quiet != AUTO),
            loud=chosen.loud() if chosen.quiet else None, contract=contract,
        )  # fmt: skip
        recipe = Recipe(lora, config, text, preserve=_patterns(preserve), validation=validation, neutral=hushed.prompts)
        sources = Sources(model, clip, vae, dataset, prior_vae=prior_vae, start=start, assistants=aids)
        trained = train_lora(sources, recipe, run)
        charts = as_image_batch(trained.charts)
        return io.NodeOutput(
            as_lora_model(trained.adapter), {"loss": trained.losses}, trained.adapter, as_one_batch(trained.sheet),
            trained.report, charts, ui=report_ui(cls, trained.told, charts, trained.chosen) | {"run": (run_id(trained.folder),)},
        )  # fmt: skip


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _check_or_auto(kind, **values) -> None:
    """Raises ValueError for a value that is neither 0, which is auto, nor in its range; links (None) are not known."""
    try:
        kind(**{name: value for name, value in values.items() if value})
    except ValueError as error:
        raise ValueError(f"{error}, or 0 for auto") from None
