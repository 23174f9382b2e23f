"""The pack's nodes, one file each."""

from comfy_api.latest import ComfyExtension, io

from .average_steps import AverageSteps
from .bridge.host import dataset_page, desk, lora_list, lora_manager, picture_metadata
from .bridge.merging import outlooks
from .bridge.stack import connected_model
from .bridge.training import before, run_routes
from .change_format import ChangeFormat
from .check_gpu import CheckGpu
from .clip_vision_as_vae import ClipVisionAsVae
from .combine_datasets import CombineDatasets
from .contract import LoraContract
from .convert_lora import ConvertLora
from .credits import LoraCredits
from .dataset import LoraDataset
from .dataset_doctor import DatasetDoctor
from .empty_two_stage_latent import EmptyTwoStageLatent
from .extract_lora import ExtractLora
from .health import LoraHealth
from .interference import LoraInterference
from .layers import LoraLayers
from .leave_one_out import LeaveOneOut
from .load_stack import LoadLoraStack
from .load_two_stage_model import LoadTwoStageModel
from .load_two_stage_text_encoder import LoadTwoStageTextEncoder
from .load_two_stage_vae import LoadTwoStageVae
from .merge_lora import MergeLora
from .objective import TrainingObjective
from .optimizer import TrainingOptimizer
from .passport import LoraPassport
from .preference_pairs import PreferencePairs
from .previews import TrainingPreviews
from .prior_to_conditioning import PriorToConditioning
from .report import LoraReport
from .resize_lora import ResizeLora
from .save_lora import SaveLora
from .slider import LoraSlider
from .train_lora import TrainLora
from .validation import TrainingValidation


class LoraLoom(ComfyExtension):
    async def on_load(self) -> None:
        picture_metadata.listen()
        lora_manager.listen()
        rooms = lora_list, run_routes, before, connected_model, outlooks, dataset_page
        desk.serve(*(room.serve_by for room in rooms))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Convert LoRA first, whose list of files the front end takes over into the others (web/js/library/files.js)."""
        return [
            ConvertLora, LoraDataset, CombineDatasets, DatasetDoctor, TrainingOptimizer, TrainingObjective, LoraLayers,
            TrainingPreviews, TrainingValidation, TrainLora, SaveLora, LoadLoraStack, MergeLora, ResizeLora, ExtractLora,
            LoraReport, LoraInterference, LeaveOneOut, CheckGpu, LoadTwoStageModel, LoadTwoStageTextEncoder, LoadTwoStageVae,
            ClipVisionAsVae, EmptyTwoStageLatent, PriorToConditioning,
            LoraContract, LoraCredits, LoraPassport, AverageSteps, PreferencePairs, ChangeFormat, LoraHealth, LoraSlider,
        ]  # fmt: skip


async def comfy_entrypoint() -> LoraLoom:
    return LoraLoom()
