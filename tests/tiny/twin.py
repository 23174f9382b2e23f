"""The same network in diffusers: its own class with a tiny ComfyUI model's weights, and the same input for both.

The weights are renamed by diffusers' own converters of single files where those take any width, and by ComfyUI's tables
elsewhere: that both networks then give the same output is what makes the rest a proof.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import comfy.model_management
import comfy.utils
import diffusers
import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from diffusers import loaders
from diffusers.loaders import single_file_utils as single_file
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior
from diffusers.pipelines.deprecated.wuerstchen.pipeline_wuerstchen_prior import WuerstchenPriorPipeline
from einops import rearrange
from harness import older
from peft.utils import get_peft_model_state_dict
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """Arguments of one forward pass as the raw network takes them."""

    x: Tensor
    time: Tensor
    context: Tensor
    pooled: Tensor | None
    guidance: Tensor

    @classmethod
    def random(
        cls, latent: tuple[int, ...], time: list[float], context: int, pooled: int = 0, guidance: float = 3.5
    ) -> Call:
        g, batch = torch.Generator().manual_seed(0), len(time)
        x, text = torch.randn(batch, *latent, generator=g), torch.randn(batch, 10, context, generator=g)
        vector = torch.randn(batch, pooled, generator=g) if pooled else None
        return cls(x, torch.tensor(time), text, vector, torch.full((batch,), guidance))


class Twin:
    """One family. `lora` is the part of its pipelines that loads LoRA files."""

    network_class: ClassVar[type]
    lora: ClassVar[type]
    call: ClassVar[Call]
    part = "transformer"

    def __init__(self, model: Any) -> None:
        config = model.model.model_config.unet_config
        self.network = self.network_class(**self.settings(config)).requires_grad_(False).eval()
        comfy.model_management.load_models_gpu([model], force_full_load=True)  # a clone's patches may still be on it
        weights = self.renamed(config, {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()})
        self.network.load_state_dict({name: weights[name] for name in self.network.state_dict()})

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def renamed(self, config: Mapping[str, Any], weights: Weights) -> Weights:
        raise NotImplementedError

    def forward(self, call: Call) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return self.forward(self.call)

    def load_lora(self, path: Path) -> None:
        older.load_lora(self.lora, self.part, self.network, path)

    def job(self, file: Path, out: Path) -> older.Job:
        """The same for an older release of diffusers."""
        config = {name: value for name, value in self.network.config.items() if not name.startswith("_")}
        return older.Job(self.network_class.__name__, config, self.lora.__name__, self.part, str(file), str(out))

    def save_lora(self, folder: Path) -> str:
        """Save the network's adapter as diffusers does, its header included, and return the file's name.

        Anima's pipelines load LoRA and do not save it: those of Wan do it for them.
        """
        layers, header = get_peft_model_state_dict(self.network), self.network.peft_config["default"].to_dict()
        writer = self.lora if "save_lora_weights" in vars(self.lora) else loaders.WanLoraLoaderMixin
        writer.save_lora_weights(
            folder, **{f"{self.part}_lora_layers": layers, f"{self.part}_lora_adapter_metadata": header}
        )
        return "pytorch_lora_weights.safetensors"

    @torch.inference_mode()
    def of_comfy(self, model: Any) -> Tensor:
        """The raw network of a MODEL with its patches applied."""
        call = self.call
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        network = model.model.diffusion_model
        return network(call.x, call.time, context=call.context, y=call.pooled, **self.more())

    def more(self) -> dict[str, Any]:
        """What ComfyUI's network takes besides."""
        return {"guidance": self.call.guidance, "num_tokens": self.call.context.shape[1]}


class SD15(Twin):
    network_class, lora, part = diffusers.UNet2DConditionModel, loaders.StableDiffusionLoraLoaderMixin, "unet"
    call = Call.random((4, 16, 8), [500.0, 20.0], 768)

    def settings(self, config):
        width = config["model_channels"]
        return dict(
            sample_size=16, block_out_channels=[width * factor for factor in config["channel_mult"]],
            cross_attention_dim=768, attention_head_dim=8,
        )  # fmt: skip

    def renamed(self, config, weights):
        names = comfy.utils.unet_to_diffusers(config)
        return {name: weights[key] for name, key in names.items() if key in weights}

    def forward(self, call):
        return self.network(call.x, call.time, call.context).sample


class SDXL(SD15):
    lora = loaders.StableDiffusionXLLoraLoaderMixin
    sizes = torch.tensor([[512.0, 384.0, 0.0, 8.0, 1024.0, 768.0], [384.0, 512.0, 16.0, 0.0, 768.0, 1024.0]])

    @classmethod
    def _call(cls) -> Call:
        """ComfyUI hands the network the six sizes embedded, diffusers as they are."""
        call = Call.random((4, 16, 8), [500.0, 20.0], 96, 64)
        sizes = timestep_embedding(cls.sizes.flatten(), 256).reshape(len(cls.sizes), -1)
        return replace(call, pooled=torch.cat([call.pooled, sizes], 1))

    def settings(self, config):
        width = config["model_channels"]
        return dict(
            sample_size=16, block_out_channels=[width * factor for factor in config["channel_mult"]],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2), cross_attention_dim=96, attention_head_dim=1,
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=config["adm_in_channels"],
        )  # fmt: skip

    def renamed(self, config, weights):
        embedding = {f"add_embedding.linear_{n}.{part}": weights[f"label_emb.0.{2 * n - 2}.{part}"]
                     for n in (1, 2) for part in ("weight", "bias")}  # fmt: skip
        return super().renamed(config, weights) | embedding

    def forward(self, call):
        added = {"text_embeds": call.pooled[:, :64], "time_ids": self.sizes}
        return self.network(call.x, call.time, call.context, added_cond_kwargs=added).sample


SDXL.call = SDXL._call()


class SD3(Twin):
    network_class, lora = diffusers.SD3Transformer2DModel, loaders.SD3LoraLoaderMixin
    call = Call.random((16, 16, 8), [500.0, 20.0], 4096, 128)

    def settings(self, config):
        return dict(
            sample_size=32, num_layers=config["depth"], num_attention_heads=config["depth"],
            caption_projection_dim=64 * config["depth"], pooled_projection_dim=config["adm_in_channels"],
            pos_embed_max_size=config["pos_embed_max_size"], qk_norm="rms_norm",
            dual_attention_layers=tuple(config["x_block_self_attn_layers"]),
        )  # fmt: skip

    def renamed(self, config, weights):
        return single_file.convert_sd3_transformer_checkpoint_to_diffusers(weights)

    def forward(self, call):
        return self.network(call.x, call.context, call.pooled, call.time).sample


class Flux(Twin):
    """FLUX.1, dev or schnell."""

    network_class, lora = diffusers.FluxTransformer2DModel, loaders.FluxLoraLoaderMixin
    call = Call.random((16, 16, 8), [0.5, 0.02], 64, 64)

    def settings(self, config):
        return dict(
            num_layers=config["depth"], num_single_layers=config["depth_single_blocks"], num_attention_heads=1,
            joint_attention_dim=64, pooled_projection_dim=64, guidance_embeds=config["guidance_embed"],
        )  # fmt: skip

    def renamed(self, config, weights):
        return dict(_by_table(comfy.utils.flux_to_diffusers(config), weights))

    def forward(self, call):
        return self.packed(call, call.pooled, call.time, guidance=self.guidance(call))

    def guidance(self, call: Call) -> Tensor | None:
        return call.guidance if self.network.config.guidance_embeds else None

    def packed(self, call: Call, *more: Any, patch: int = 2, axes: int = 3, **named: Any) -> Tensor:
        rows, columns = (side // patch for side in call.x.shape[2:])
        tokens = rearrange(call.x, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
        zeros = [torch.zeros(1)] * (axes - 3)
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)), *zeros)
        text_places = torch.zeros(call.context.shape[1], axes)
        if axes == 4:
            text_places[:, 3] = torch.arange(len(text_places))
        out = self.network(tokens, call.context, *more, img_ids=places, txt_ids=text_places, **named).sample
        return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=patch, q=patch)


class Chroma(Flux):
    network_class = diffusers.ChromaTransformer2DModel
    call = Call.random((16, 16, 8), [0.5, 0.02], 64, guidance=0.0)

    def settings(self, config):
        return dict(
            num_layers=config["depth"], num_single_layers=config["depth_single_blocks"], num_attention_heads=1,
            joint_attention_dim=64, approximator_hidden_dim=config["hidden_dim"],
            approximator_layers=config["n_layers"],
        )  # fmt: skip

    def renamed(self, config, weights):
        names = {"in_layer": "linear_1", "out_layer": "linear_2", "scale": "weight"}
        own = {k: v for k, v in weights.items() if k.startswith("distilled_guidance_layer.")}
        own = {".".join(names.get(part, part) for part in key.split(".")): v for key, v in own.items()}
        return super().renamed(config, weights) | own

    def forward(self, call):
        """ComfyUI numbers the modulations as 344 of any network, of which the last two are the final layer's."""
        embed = self.network.time_text_embed
        every = type(embed)(num_channels=16, out_dim=344).mod_proj
        embed.mod_proj = torch.cat([every[: len(embed.mod_proj) - 2], every[-2:]])
        return self.packed(call, call.time)


class Flux2(Flux):
    network_class, lora = diffusers.Flux2Transformer2DModel, loaders.Flux2LoraLoaderMixin
    call = Call.random((128, 6, 4), [0.5, 0.02], 192)

    def settings(self, config):
        return dict(
            in_channels=128, num_layers=config["depth"], num_single_layers=config["depth_single_blocks"],
            num_attention_heads=1, joint_attention_dim=192, guidance_embeds=config["guidance_embed"],
        )  # fmt: skip

    def renamed(self, config, weights):
        return single_file.convert_flux2_transformer_checkpoint_to_diffusers(weights)

    def forward(self, call):
        return self.packed(call, call.time, patch=1, axes=4, guidance=self.guidance(call))


class QwenImage(Twin):
    network_class, lora = diffusers.QwenImageTransformer2DModel, loaders.QwenImageLoraLoaderMixin
    call = Call.random((16, 1, 16, 8), [0.5, 0.02], 64)

    def settings(self, config):
        same = ("in_channels", "num_layers", "attention_head_dim", "num_attention_heads", "joint_attention_dim")
        return {key: config[key] for key in same}

    def renamed(self, config, weights):
        return weights

    def forward(self, call):
        tokens, rows = _patches(call.x)
        shapes = [[(1, rows, tokens.shape[1] // rows)]] * len(tokens)
        return _picture(self.network(tokens, call.context, timestep=call.time, img_shapes=shapes).sample, rows)


class Krea2(Twin):
    network_class, lora = diffusers.Krea2Transformer2DModel, loaders.Krea2LoraLoaderMixin
    call = Call.random((16, 1, 16, 8), [0.5, 0.02], 12 * 40)

    def settings(self, config):
        return dict(
            num_layers=config["layers"], num_attention_heads=1, num_key_value_heads=1, intermediate_size=384,
            text_hidden_dim=config["txtdim"], num_text_layers=config["txtlayers"], text_intermediate_size=128,
        )  # fmt: skip

    def renamed(self, config, weights):
        return single_file.convert_krea2_transformer_checkpoint_to_diffusers(weights)

    def forward(self, call):
        tokens, rows = _patches(call.x)
        columns = tokens.shape[1] // rows
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)))
        places = torch.cat([torch.zeros(call.context.shape[1], 3), places])
        text = call.context.unflatten(-1, (12, -1))
        return _picture(self.network(tokens, text, call.time, places).sample, rows)


class ErnieImage(Twin):
    network_class, lora = diffusers.ErnieImageTransformer2DModel, loaders.ErnieImageLoraLoaderMixin
    call = Call.random((128, 8, 4), [500.0, 20.0], 64)

    def settings(self, config):
        same = ("hidden_size", "num_attention_heads", "num_layers", "ffn_hidden_size", "text_in_dim")
        return {key: config[key] for key in same}

    def renamed(self, config, weights):
        return weights

    def forward(self, call):
        return self.network(call.x, call.time, call.context, torch.full(call.time.shape, call.context.shape[1])).sample


class HiDream(Twin):
    """Square pictures: others are filled up in diffusers, and not in ComfyUI."""

    network_class, lora = diffusers.HiDreamImageTransformer2DModel, loaders.HiDreamImageLoraLoaderMixin
    call = Call.random((16, 16, 16), [500.0, 20.0], 64, 128)
    llama = torch.randn(2, 2, 7, 64, generator=torch.Generator().manual_seed(1))

    def settings(self, config):
        names = inspect.signature(self.network_class).parameters
        return {name: value for name, value in config.items() if name in names}

    def renamed(self, config, weights):
        return weights

    def forward(self, call):
        layers = self.llama.movedim(1, 0)
        return -self.network(call.x, call.time, call.context, layers, call.pooled).sample

    def more(self) -> dict[str, Any]:
        return {"encoder_hidden_states_llama3": self.llama}


class Ideogram4(Twin):
    network_class, lora = diffusers.Ideogram4Transformer2DModel, loaders.Ideogram4LoraLoaderMixin
    call = Call.random((128, 8, 4), [0.5, 0.02], 104)

    def settings(self, config):
        names = inspect.signature(self.network_class).parameters
        return {name: value for name, value in config.items() if name in names}

    def renamed(self, config, weights):
        for key in [key for key in weights if ".attention.qkv." in key]:
            for name, part in zip("qkv", weights.pop(key).chunk(3), strict=True):
                weights[key.replace("qkv", f"to_{name}")] = part
        return {key.replace(".attention.o.", ".attention.to_out.0."): value for key, value in weights.items()}

    def forward(self, call):
        """Text and picture in one sequence, and of each what the other lacks is zero; ComfyUI's channels are c p q."""
        batch, words, rows = len(call.x), call.context.shape[1], call.x.shape[2]
        tokens = rearrange(call.x, "b (c p q) h w -> b (h w) (p q c)", p=2, q=2)
        count = tokens.shape[1]
        places = 65536 + torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(count / rows))
        places = torch.cat([torch.arange(float(words))[:, None].expand(-1, 3), places]).expand(batch, -1, -1)
        roles = torch.tensor([[3] * words + [2] * count]).expand(batch, -1)
        out = self.network(
            torch.nn.functional.pad(tokens, (0, 0, words, 0)), 1 - call.time,
            torch.nn.functional.pad(call.context, (0, 0, 0, count)), places, torch.ones_like(roles), roles,
        ).sample[:, words:]  # fmt: skip
        return -rearrange(out, "b (h w) (p q c) -> b (c p q) h w", h=rows, p=2, q=2)


class LTXVideo(Twin):
    network_class, lora = diffusers.LTXVideoTransformer3DModel, loaders.LTXVideoLoraLoaderMixin
    call = Call.random((128, 1, 4, 2), [0.5, 0.02], 64)

    def settings(self, config):
        same = ("num_layers", "num_attention_heads", "attention_head_dim", "cross_attention_dim", "caption_channels")
        return {key: config[key] for key in same}

    def renamed(self, config, weights):
        return single_file.convert_ltx_transformer_checkpoint_to_diffusers(weights)

    def forward(self, call):
        rows, scale = call.x.shape[3], (8 / 25, 32, 32)  # pixels of a place, and seconds
        tokens = rearrange(call.x, "b c 1 h w -> b (h w) c")
        size = {"num_frames": 1, "height": rows, "width": call.x.shape[4], "rope_interpolation_scale": scale}
        out = self.network(tokens, call.context, 1000 * call.time, None, **size).sample
        return rearrange(out, "b (h w) c -> b c 1 h w", h=rows)

    def more(self) -> dict[str, Any]:
        return {"attention_mask": None}


class Kandinsky5(Twin):
    network_class, lora = diffusers.Kandinsky5Transformer3DModel, loaders.KandinskyLoraLoaderMixin
    call = Call.random((16, 1, 16, 8), [500.0, 20.0], 64, 64)

    def settings(self, config):
        same = ("in_text_dim", "in_text_dim2", "time_dim", "model_dim", "ff_dim", "num_text_blocks",
                "num_visual_blocks", "axes_dims")  # fmt: skip
        return {key: config[key] for key in same} | dict(in_visual_dim=16, out_visual_dim=16)

    def renamed(self, config, weights):
        return weights

    def forward(self, call):
        """diffusers rounds q and k to bf16 at any precision; not here."""
        places = [torch.arange(count) for count in (1, *(side // 2 for side in call.x.shape[3:]))]
        with mock.patch.object(torch, "bfloat16", torch.float32):
            out = self.network(
                call.x.movedim(1, -1), call.context, call.time, call.pooled, places, torch.arange(call.context.shape[1])
            )
        return out.sample.movedim(-1, 1)


class ZImage(Twin):
    network_class, lora = diffusers.ZImageTransformer2DModel, loaders.ZImageLoraLoaderMixin
    call = Call.random((16, 16, 8), [0.5, 0.02], 64)

    def settings(self, config):
        same = ("dim", "n_layers", "n_refiner_layers", "n_heads", "n_kv_heads", "cap_feat_dim", "axes_dims")
        return {key: config[key] for key in same} | {"axes_lens": [1536, 512, 512]}

    def renamed(self, config, weights):
        self.network.t_embedder = type(self.network.t_embedder)(256, mid_size=config["dim"])  # ComfyUI's at this width
        return single_file.convert_z_image_transformer_checkpoint_to_diffusers(weights)

    def forward(self, call):
        out = self.network(list(call.x.unsqueeze(2)), 1 - call.time, list(call.context)).sample
        return -torch.stack(out).squeeze(2)


class Lumina2(Twin):
    network_class, lora = diffusers.Lumina2Transformer2DModel, loaders.Lumina2LoraLoaderMixin
    call = Call.random((16, 16, 8), [0.5, 0.02], 64)

    def settings(self, config):
        return dict(
            sample_size=16, hidden_size=config["dim"], num_layers=config["n_layers"],
            num_refiner_layers=config["n_refiner_layers"], num_attention_heads=config["n_heads"],
            num_kv_heads=config["n_kv_heads"], cap_feat_dim=config["cap_feat_dim"],
        )  # fmt: skip

    def renamed(self, config, weights):
        width = config["dim"] // config["n_heads"]
        heights = [width * count for count in (config["n_heads"], config["n_kv_heads"], config["n_kv_heads"])]
        for key in [key for key in weights if ".qkv." in key]:
            for name, part in zip("qkv", weights.pop(key).split(heights), strict=True):
                weights[key.replace("qkv", f"to_{name}")] = part
        return single_file.convert_lumina2_to_diffusers(weights)

    def forward(self, call):
        mask = torch.ones(call.context.shape[:2], dtype=torch.int64)
        return -self.network(call.x, 1 - call.time, call.context, mask).sample


class Wan(Twin):
    network_class, lora = diffusers.WanTransformer3DModel, loaders.WanLoraLoaderMixin
    call = Call.random((16, 1, 16, 8), [500.0, 20.0], 4096)

    def settings(self, config):
        return dict(
            num_attention_heads=config["num_heads"], attention_head_dim=config["dim"] // config["num_heads"],
            ffn_dim=config["ffn_dim"], num_layers=config["num_layers"], in_channels=config["in_dim"],
            out_channels=config["out_dim"],
        )  # fmt: skip

    def renamed(self, config, weights):
        return single_file.convert_wan_transformer_to_diffusers(weights)

    def forward(self, call):
        return self.network(call.x, call.time, call.context).sample


class Wan22(Wan):
    call = Call.random((48, 1, 16, 8), [500.0, 20.0], 4096)


class Anima(Twin):
    """Its text adapter is a model of its own in diffusers; both networks take what that adapter makes."""

    network_class, lora = diffusers.CosmosTransformer3DModel, loaders.AnimaLoraLoaderMixin
    call = Call.random((16, 1, 16, 8), [0.5, 0.02], 64)

    def settings(self, config):
        heads = config["num_heads"]
        return dict(
            num_attention_heads=heads, attention_head_dim=config["model_channels"] // heads,
            num_layers=config["num_blocks"], text_embed_dim=config["crossattn_emb_channels"],
            adaln_lora_dim=config["adaln_lora_dim"], max_size=(128, 240, 240), rope_scale=(1.0, 4.0, 4.0),
            extra_pos_embed_type=None,
        )  # fmt: skip

    def renamed(self, config, weights):
        return single_file.convert_cosmos_transformer_checkpoint_to_diffusers(weights)

    def forward(self, call):
        padding = torch.zeros(1, 1, *call.x.shape[3:])
        return self.network(call.x, call.time, call.context, padding_mask=padding).sample


class KandinskyDecoder(Twin):
    """Its pipelines load no LoRA: what does so for any UNet is asked."""

    network_class, lora, part = diffusers.UNet2DConditionModel, loaders.StableDiffusionLoraLoaderMixin, "unet"
    call = Call.random((4, 16, 8), [500.0, 20.0], 64, 64)

    def settings(self, config):
        rest = len(config["channels"]) - 1
        return dict(
            in_channels=4, out_channels=8, addition_embed_type="image", encoder_hid_dim=config["embed"],
            encoder_hid_dim_type="image_proj", cross_attention_dim=config["context"], attention_head_dim=64,
            down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * rest),
            up_block_types=(*["SimpleCrossAttnUpBlock2D"] * rest, "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", block_out_channels=config["channels"],
            layers_per_block=config["layers"], resnet_time_scale_shift="scale_shift",
        )  # fmt: skip

    def renamed(self, config, weights):
        tokens = self.network.encoder_hid_proj
        tokens.num_image_text_embeds = config["tokens"]  # 32 in diffusers, whatever the configuration
        tokens.image_embeds = torch.nn.Linear(config["embed"], config["tokens"] * config["context"])
        return weights

    def forward(self, call):
        seen = {"image_embeds": call.pooled}
        return self.network(call.x, call.time, None, added_cond_kwargs=seen).sample[:, :4]


class _Prior(Twin):
    """What diffusers calls a prior: the pipeline of Wuerstchen v2 loads LoRA for one, and Kandinsky's for none."""

    lora = WuerstchenPriorPipeline

    def load_lora(self, path: Path) -> None:
        tensors, alphas, header = self.lora.lora_state_dict(str(path), return_lora_metadata=True)
        self.lora.load_lora_into_unet(tensors, alphas, self.network, metadata=header)

    def save_lora(self, folder: Path) -> str:
        layers, header = get_peft_model_state_dict(self.network), self.network.peft_config["default"].to_dict()
        self.lora.save_lora_weights(folder, layers, unet_lora_adapter_metadata=header)
        return "pytorch_lora_weights.safetensors"

    def renamed(self, config, weights):
        return weights


class KandinskyPrior(_Prior):
    network_class = diffusers.PriorTransformer
    call = replace(
        Call.random((64, 1, 1), [500.0, 20.0], 64, 64),
        context=torch.randn(2, 77, 64, generator=torch.Generator().manual_seed(1)),
    )

    def settings(self, config):
        heads = config["width"] // 64
        return dict(
            num_attention_heads=heads, num_layers=config["depth"], embedding_dim=config["embed"],
            num_embeddings=config["words"],
        )  # fmt: skip

    def forward(self, call):
        """Without a mask diffusers' would not be causal."""
        words = torch.ones(call.context.shape[:2], dtype=torch.bool)
        out = self.network(call.x.flatten(1), call.time, call.pooled, call.context, words)
        return out.predicted_image_embedding[..., None, None]


class Wuerstchen(_Prior):
    network_class = WuerstchenPrior
    call = Call.random((16, 8, 8), [0.5, 0.02], 64)

    def settings(self, config):
        return {name: config[name] for name in ("c_in", "c", "c_cond", "c_r", "depth")} | {"nhead": config["c"] // 64}

    def forward(self, call):
        return self.network(call.x, call.time, call.context)


def _by_table(table: Mapping[str, Any], weights: Weights) -> Iterator[tuple[str, Tensor]]:
    for name, target in table.items():
        key, rows, change = (*target, None, None)[:3] if isinstance(target, tuple) else (target, None, None)
        key = key if key in weights else f"{key.removesuffix('.weight')}.scale"  # norms
        if key in weights:
            part = weights[key] if rows is None else weights[key].narrow(*rows)
            yield name, change(part) if change else part


def _patches(clip: Tensor) -> tuple[Tensor, int]:
    """Tokens of clips that are one picture long, and in how many rows they stand."""
    return rearrange(clip, "b c 1 (h p) (w q) -> b (h w) (c p q)", p=2, q=2), clip.shape[3] // 2


def _picture(tokens: Tensor, rows: int) -> Tensor:
    return rearrange(tokens, "b (h w) (c p q) -> b c 1 (h p) (w q)", h=rows, p=2, q=2)


TWINS: dict[str, type[Twin]] = {
    "sd15_full": SD15,
    "sdxl": SDXL,
    "sdxl_v": SDXL,
    "sd35_medium": SD3,
    "sd35_large": SD3,
    "flux1": Flux,
    "flux1_schnell": Flux,
    "chroma": Chroma,
    "flux2": Flux2,
    "qwen_image": QwenImage,
    "krea2": Krea2,
    "ernie_image": ErnieImage,
    "hidream": HiDream,
    "ideogram4": Ideogram4,
    "ltxv": LTXVideo,
    "kandinsky5": Kandinsky5,
    "zimage": ZImage,
    "lumina2": Lumina2,
    "wan21": Wan,
    "wan22_5b": Wan22,
    "anima": Anima,
    "kandinsky22_prior": KandinskyPrior,
    "kandinsky22_decoder": KandinskyDecoder,
    "wuerstchen2": Wuerstchen,
}
