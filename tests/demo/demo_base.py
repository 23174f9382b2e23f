"""The demo base as ComfyUI sees it: its three files, its layout, and pictures made by the stock loaders and sampler.

Importing this module imports ComfyUI (from COMFYUI_PATH, or the copy in .comfyui/) and keeps it on the CPU.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or HERE.parents[1] / ".comfyui" / "ComfyUI")
if not (COMFYUI / "comfy").is_dir():
    raise SystemExit(f"no ComfyUI in {COMFYUI}: set COMFYUI_PATH to its folder")
if str(COMFYUI) not in sys.path:
    sys.path.insert(0, str(COMFYUI))

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True
comfy.cli_args.args.use_pytorch_cross_attention = True  # twice the speed of the default on a CPU

import comfy.latent_formats  # noqa: E402
import comfy.ldm.wan.model  # noqa: E402
import comfy.ldm.wan.vae  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import safetensors.torch  # noqa: E402
from comfy import sd1_clip  # noqa: E402

WORDS = 16  # positions of the text encoder: start, up to 14 tokens, end
WIDTH = 768  # of a text feature
LATENT = comfy.latent_formats.Wan21()
DIT = dict(
    model_type="t2v",
    patch_size=(1, 2, 2),
    dim=128,
    ffn_dim=512,
    num_heads=2,
    num_layers=6,
    in_dim=16,
    out_dim=16,
    freq_dim=256,
    text_dim=WIDTH,
    cross_attn_norm=True,
)
VAE = dict(
    dim=8,
    z_dim=16,
    dim_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    attn_scales=[],
    dropout=0.0,
    temperal_downsample=[False, True, True],
    image_channels=3,
    conv_out_channels=3,
)


@dataclass(frozen=True)
class Files:
    """The three files under a ComfyUI models folder."""

    models: Path

    @property
    def dit(self) -> Path:
        return self.models / "diffusion_models" / "loom_demo.safetensors"

    @property
    def vae(self) -> Path:
        return self.models / "vae" / "loom_demo_vae.safetensors"

    @property
    def words(self) -> Path:
        return self.models / "text_encoders" / "loom_demo_words.pt"


def new_vae(seed: int = 0) -> comfy.ldm.wan.vae.WanVAE:
    """He-initialised. Only the last time slice of each 3-D kernel is ever used for a picture; the others are zero."""
    vae, generator = comfy.ldm.wan.vae.WanVAE(**VAE), torch.Generator().manual_seed(seed)
    for name, weight in vae.named_parameters():
        with torch.no_grad():
            if name.endswith("gamma") or weight.ndim == 1:
                weight.fill_(float(name.endswith("gamma")))
            else:
                fan_in = weight[0].numel() // (weight.shape[2] if weight.ndim == 5 else 1)
                weight.normal_(0, fan_in**-0.5, generator=generator)
                if weight.ndim == 5:
                    weight[:, :, :-1] = 0
    return vae


def load_vae(path: Path) -> comfy.ldm.wan.vae.WanVAE:
    vae = new_vae()
    vae.load_state_dict({name: value.float() for name, value in comfy.utils.load_torch_file(str(path)).items()})
    return vae


def new_dit(seed: int = 0) -> comfy.ldm.wan.model.WanModel:
    """Matrices N(0, 1/fan_in) times 0.7; modulation and output start near zero."""
    dit = comfy.ldm.wan.model.WanModel(**DIT, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in dit.named_parameters():
        with torch.no_grad():
            if weight.ndim == 1:
                weight.fill_(float("norm" in name and name.endswith("weight")))
            elif name.endswith("modulation"):
                weight.normal_(0, 0.02, generator=generator)
            else:
                small = "time_projection" in name or name.startswith("head")
                weight.normal_(0, (0.14 if small else 0.7) * weight[0].numel() ** -0.5, generator=generator)
    return dit


def new_words(seed: int = 0) -> dict[str, Tensor]:
    """A CLIP-L state dict of full shape and next to no storage, which the stock CLIPLoader accepts.

    Every layer is a stride-0 zero, so the transformer is the identity. The token table is a Hankel view of 50 thousand
    random numbers: row i starts at number i. What comes out is LayerNorm(token + position), a fixed feature per word.
    """
    generator = torch.Generator().manual_seed(seed)
    zero, one = torch.zeros(1, dtype=torch.float16), torch.ones(1, dtype=torch.float16)
    tokens = torch.randn(49408 + WIDTH, generator=generator).half().as_strided((49408, WIDTH), (1, 1))
    positions = torch.randn(WORDS, WIDTH, generator=generator).mul(0.35).half()
    state = {"embeddings.token_embedding.weight": tokens, "embeddings.position_embedding.weight": positions}
    norms, linears = {"final_layer_norm": WIDTH}, {}
    for i in range(12):
        layer = f"encoder.layers.{i}."
        norms |= {f"{layer}layer_norm1": WIDTH, f"{layer}layer_norm2": WIDTH}
        linears |= {f"{layer}self_attn.{name}": (WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linears |= {f"{layer}mlp.fc1": (4 * WIDTH, WIDTH), f"{layer}mlp.fc2": (WIDTH, 4 * WIDTH)}
    for name, width in norms.items():
        state |= {f"{name}.weight": one.expand(width), f"{name}.bias": zero.expand(width)}
    for name, shape in linears.items():
        state |= {f"{name}.weight": zero.expand(shape), f"{name}.bias": zero.expand(shape[0])}
    state = {f"text_model.{name}": value for name, value in state.items()}
    return state | {"text_projection.weight": zero.expand(WIDTH, WIDTH)}


class Words:
    """Computes what the text encoder file does, without the 124 million parameters: captions -> [n, WORDS, WIDTH]."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.tokens = state["text_model.embeddings.token_embedding.weight"]
        self.positions = state["text_model.embeddings.position_embedding.weight"].float()
        self.tokenizer = sd1_clip.SDTokenizer(tokenizer_data={"clip_l_max_length": WORDS})
        self.known: dict[str, Tensor] = {}

    def _feature(self, caption: str) -> Tensor:
        if caption not in self.known:
            ids = torch.tensor([token[0] for token in self.tokenizer.tokenize_with_weights(caption)[0]])
            self.known[caption] = torch.nn.functional.layer_norm(self.tokens[ids].float() + self.positions, (WIDTH,))
        return self.known[caption]

    def __call__(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self._feature(caption) for caption in captions])


def save(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """bfloat16 safetensors, replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in state.items()}
    part.write_bytes(safetensors.torch.save(state, metadata))
    part.replace(path)


def save_dit(state: dict[str, Tensor], path: Path) -> None:
    """With the `config` metadata from which UNETLoader reads what shapes cannot tell: heads and text width."""
    save(state, path, {"config": json.dumps({"transformer": {"num_heads": DIT["num_heads"], "text_dim": WIDTH}})})


def save_words(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(new_words(), path)


@contextmanager
def comfy_training() -> Iterator[None]:
    """ComfyUI's own switch: without it the rotary embedding has no gradient."""
    before, comfy.model_management.in_training = comfy.model_management.in_training, True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


class Pipeline:
    """The stock loaders (UNETLoader, VAELoader, CLIPLoader) and KSampler, called as functions."""

    def __init__(self, files: Files) -> None:
        self.model = comfy.sd.load_diffusion_model(str(files.dit))
        self.vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(files.vae)))
        self.clip = comfy.sd.load_clip([str(files.words)], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)

    def encode(self, prompt: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str,
        seed: int = 0,
        width: int = 96,
        height: int = 96,
        steps: int = 16,
        cfg: float = 3.0,
        sampler: str = "euler",
        scheduler: str = "simple",
    ) -> Tensor:
        """[3, height, width], values 0..1."""
        latent = comfy.sample.fix_empty_latent_channels(self.model, torch.zeros(1, 4, height // 8, width // 8), 8)
        noise = comfy.sample.prepare_noise(latent, seed)
        latent = comfy.sample.sample(
            self.model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            self.encode(prompt),
            self.encode(""),
            latent,
            disable_pbar=True,
            seed=seed,
        )
        return self.vae.decode(latent).reshape(height, width, 3).movedim(-1, 0)
