"""Files for and from diffusers: the same weights in a real UNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from diffusers.training_utils import _collate_lora_metadata
from lora_loom.lora_core.adapter import Adapter
from lora_loom.lora_core.files import formats, save
from lora_loom.lora_core.files.formats import FileLayer
from lora_loom.lora_core.low_rank import LowRank
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
    )  # fmt: skip


def weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    return {name.replace(".base_layer", ""): tensor.clone() for name, tensor in unet.state_dict().items()}


def loaded(path: Path) -> dict[str, Tensor]:
    """Return what diffusers adds to each weight when a pipeline loads the file, by the road of `load_lora_weights`."""
    unet = tiny_unet()
    before = weights(unet)
    state, alphas, metadata = Loader.lora_state_dict(str(path), unet_config=unet.config, return_lora_metadata=True)
    Loader.load_lora_into_unet(state, network_alphas=alphas, unet=unet, metadata=metadata)
    unet.fuse_lora()
    unet.unload_lora()
    return {key.removesuffix(".weight"): after - before[key] for key, after in weights(unet).items()
            if not torch.equal(after, before[key])}  # fmt: skip


def adapter(ranks: tuple[int, ...] = (4,)) -> Adapter:
    """A correction of every attention projection and one convolution, named as the UNet names them."""
    generator = torch.Generator().manual_seed(1)
    layers = {}
    for name, tensor in tiny_unet().state_dict().items():
        if name.endswith((".to_q.weight", ".to_k.weight", ".to_out.0.weight", "downsamplers.0.conv.weight")):
            rank = ranks[len(layers) % len(ranks)]
            down = torch.randn(rank, tensor[0].numel(), generator=generator)
            up = torch.randn(len(tensor), rank, generator=generator)
            layers[name.removesuffix(".weight")] = LowRank(down, up * 0.1, 2.0, tuple(tensor.shape[2:]))
    return Adapter(layers)


def assert_same(applied: dict[str, Tensor], wanted: Adapter) -> None:
    assert applied.keys() == wanted.layers.keys()
    for name, layer in wanted.layers.items():
        delta = layer.delta_weight()
        assert float((applied[name].reshape(delta.shape) - delta).norm()) < 1e-4 * float(delta.norm()), name


@pytest.mark.parametrize("ranks", [(4,), (2, 4, 4)], ids=["one rank", "mixed ranks"])
def test_diffusers_applies_our_peft_files(ranks: tuple[int, ...], tmp_path: Path):
    ours = adapter(ranks)
    names = {name: [FileLayer("unet." + name)] for name in ours.layers}
    path = tmp_path / "x.safetensors"
    save.save(path, formats.encode(ours, "peft", names, torch.float32), {"title": "x", "format": "pt"})
    assert_same(loaded(path), ours)


def test_diffusers_applies_our_kohya_files(tmp_path: Path):
    ours = adapter()
    names = {name: [FileLayer("lora_unet_" + name.replace(".", "_"))] for name in ours.layers}
    path = tmp_path / "x.safetensors"
    save.save(path, formats.encode(ours, "kohya", names, torch.float32), {"title": "x"})
    assert_same(loaded(path), ours)


@pytest.mark.parametrize("config", [
    {"r": 4, "lora_alpha": 4}, {"r": 4, "lora_alpha": 16}, {"r": 4, "lora_alpha": 16, "use_rslora": True},
    {"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}, "rank_pattern": {"attn1.to_q": 2}},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("with_metadata", [True, False])
def test_files_of_diffusers_are_read_as_diffusers_reads_them(config: dict, with_metadata: bool, tmp_path: Path):
    unet = tiny_unet()
    unet.add_adapter(LoraConfig(target_modules=["to_q", "to_v"], init_lora_weights=False, **config))
    metadata = _collate_lora_metadata({"unet": unet}) if with_metadata else {}
    Loader.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(unet), **metadata)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    ours = formats.read(path)
    assert all(name.startswith("unet.") for name in ours.layers)
    assert_same(loaded(path), Adapter({name.removeprefix("unet."): layer for name, layer in ours.layers.items()}))
