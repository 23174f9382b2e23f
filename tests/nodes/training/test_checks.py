"""Bad input is refused in one sentence: when the graph is queued if that can be known, else before the first step."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import tiny
import torch
from comfy_extras import nodes_primitive
from harness.calls import Graph, encode, refusals, run_node
from lora_loom.nodes.bridge.training.checks import check_conditioning, warnings
from lora_loom.nodes.dataset import LoraDataset
from lora_loom.nodes.load_stack import LoadLoraStack
from lora_loom.nodes.train_lora import TrainLora
from safetensors.torch import save_file

import nodes

TRAIN = {
    "steps": 2, "rank": 2, "alpha": 2.0, "learning_rate": 1e-4, "targets": "attention", "seed": 0, "batch_size": 1,
    "accumulation": 1,
}  # fmt: skip
AUTOMATIC = {"rank": 0, "alpha": 0.0, "learning_rate": 0.0, "targets": "auto"}


def train_graph(folder: Path | str, dataset: dict[str, Any] = {}, train: dict[str, Any] = {}) -> Graph:  # noqa: B006
    data = {"folder": str(folder), "trigger": "", "resolution": 64, "repeats": 1, "bucket_step": 16, **dataset}
    return {
        **loaders(),
        "data": {"class_type": "LoraLoom_Dataset", "inputs": data},
        "train": {
            "class_type": "LoraLoom_TrainLora",
            "inputs": {
                "model": ["model", 0],
                "clip": ["clip", 0],
                "vae": ["vae", 0],
                "dataset": ["data", 0],
                **TRAIN,
                **train,
            },
        },
    }


def save_graph(stack: dict[str, Any] = {}, merge: dict[str, Any] = {}, save: dict[str, Any] = {}) -> Graph:  # noqa: B006
    """Stack, merge, save: an output node at the end, so that everything before it is validated."""
    rows = {"lora_1": "None", "strength_1": 1.0, "text_strength_1": 1.0}
    merging = {"rank": 0, "strengths": "", "lora_stack": ["stack", 2]}
    saving = {"adapter": ["merge", 0], "name": "lora", "format": "comfyui", "dtype": "fp16"}
    model = {"model": ["model", 0]}
    return {
        **loaders(),
        "stack": {"class_type": "LoraLoom_LoadLoraStack", "inputs": {**model, **rows, **stack}},
        "merge": {"class_type": "LoraLoom_MergeLora", "inputs": {**model, **merging, **merge}},
        "save": {"class_type": "LoraLoom_SaveLora", "inputs": {**model, **saving, **save}},
    }


def loaders() -> Graph:
    clip = {"clip_name": "loom_demo_words.pt", "type": "stable_diffusion"}
    model = {"unet_name": "loom_demo.safetensors", "weight_dtype": "default"}
    return {
        "model": {"class_type": "UNETLoader", "inputs": model},
        "clip": {"class_type": "CLIPLoader", "inputs": clip},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "loom_demo_vae.safetensors"}},
    }


# -- when the graph is queued: pictures and training -------------------------------------------------------------------


def test_good_graphs_are_taken(pictures: Path, loras: Path) -> None:
    write_lora(loras / "styles" / "good.safetensors")
    assert refusals(train_graph(pictures)) == ""
    assert refusals(save_graph({"lora_1": "styles/good.safetensors"})) == ""
    assert refusals(save_graph({"lora_1": "styles\\good.safetensors"})) == "", "as a graph from Windows names it"
    assert refusals(save_graph(save={"name": "styles/%title%_%rank%"})) == ""


def without_captions(folder: Path) -> None:
    for path in folder.glob("*.txt"):
        path.unlink()


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def removed(folder: Path) -> None:
    empty(folder)
    folder.rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty, "contains no pictures"),
        (removed, "does not exist"),
        (without_captions, "none of the 4 images in .* has a caption"),
    ],
)
def test_data_set_folder(pictures: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(pictures)
    assert_refused(train_graph(pictures), message)


@pytest.mark.parametrize("folder", ["", "  "])
def test_no_folder(folder: str) -> None:
    """Not ComfyUI's whole input folder."""
    assert_refused(train_graph(folder, {"trigger": "loom"}), "no folder is given")


def test_trigger_stands_in_for_captions(pictures: Path) -> None:
    without_captions(pictures)
    assert refusals(train_graph(pictures, {"trigger": "loom"})) == ""


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"resolution": 100}, "resolution 100 is not a multiple of bucket_step 16; use 96 or 112"),
        ({"resolution": 0}, "resolution"),
        ({"resolution": -32}, "resolution"),
        ({"resolution": 8192}, "resolution"),
        ({"bucket_step": 0}, "bucket_step"),
        ({"repeats": 0}, "smaller than min"),
    ],
)
def test_data_set_numbers(pictures: Path, dataset: dict[str, Any], message: str) -> None:
    assert_refused(train_graph(pictures, dataset), message)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"steps": 10, "warmup": 10}, "warmup is 10 steps but the run has only 10"),
        ({"steps": 10, "warmup": -1}, "warmup"),
        ({"steps": -1}, "steps"),
        ({"rank": -1}, "rank is -1; it must be between 1 and 1024, or 0 for auto"),
        ({"rank": 1025}, "rank is 1025; it must be between 1 and 1024, or 0 for auto"),
        ({"alpha": -1.0}, "alpha is -1.0; it must be between 0.001 and 10000, or 0 for auto"),
        ({"alpha": 1e-4}, "alpha is 0.0001; it must be between 0.001 and 10000, or 0 for auto"),
        ({"learning_rate": 2.0}, "learning_rate is 2.0; it must be between 1e-09 and 1, or 0 for auto"),
        ({"learning_rate": -1e-4}, "learning_rate is -0.0001; it must be between 1e-09 and 1, or 0 for auto"),
        ({"targets": "everything"}, "not in list"),
        ({"run_name": "../../escape"}, "leads out of its folder"),
        ({"run_name": ""}, "is empty"),
        ({"preservation": 1.0}, "preserve has no class word"),
        ({"preservation": 1000.0, "preserve": "person"}, "preservation is 1000"),
        ({"preservation": -1.0, "preserve": "person"}, "preservation is -1"),
    ],
)
def test_training_numbers_and_names(pictures: Path, train: dict[str, Any], message: str) -> None:
    assert_refused(train_graph(pictures, train=train), message)


def test_auto_is_taken(pictures: Path) -> None:
    assert refusals(train_graph(pictures, train=AUTOMATIC)) == ""


def test_values_that_come_through_links_wait_until_they_are_known(pictures: Path) -> None:
    nodes.NODE_CLASS_MAPPINGS |= {"Text": nodes_primitive.String, "Number": nodes_primitive.Int}
    graph = train_graph(
        pictures,
        {"folder": ["text", 0], "resolution": ["number", 0]},
        {"run_name": ["text", 0], "steps": ["number", 0], "rank": ["number", 0]},
    )
    graph["text"] = {"class_type": "Text", "inputs": {"value": "anything"}}
    graph["number"] = {"class_type": "Number", "inputs": {"value": 64}}
    assert refusals(graph) == ""


# -- when the graph is queued: LoRA files, strengths, names ------------------------------------------------------------


@pytest.mark.parametrize("value", [20.5, -21.0])
@pytest.mark.parametrize("name", ["strength_1", "text_strength_1", "strength_4"])
def test_strength_out_of_range(name: str, value: float) -> None:
    assert_refused(save_graph({name: value}), "bigger than max|smaller than min")


def test_missing_lora() -> None:
    assert_refused(save_graph({"lora_2": "gone.safetensors"}), "gone.safetensors is not in any loras folder")


def test_ambiguous_lora(loras: Path) -> None:
    write_lora(loras / "a" / "twice.safetensors")
    write_lora(loras / "b" / "twice.safetensors")
    assert_refused(save_graph({"lora_1": "twice.safetensors"}), "fits 2 files")


def pickled(path: Path) -> Path:
    path = path.with_suffix(".pt")
    path.write_bytes(pickle.dumps({"a": 1}))
    return path


def disguised_pickle(path: Path) -> Path:
    path.write_bytes(pickle.dumps({"a": 1}))
    return path


def cut_short(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-5])
    return path


def trailing_bytes(path: Path) -> Path:
    path.write_bytes(path.read_bytes() + b"more")
    return path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickled, "is a .pt file"),
        (disguised_pickle, "is a Python pickle under another name"),
        (cut_short, "is cut short"),
        (trailing_bytes, "trailing bytes"),
    ],
)
def test_unsafe_file(loras: Path, spoil: Callable[[Path], Path], message: str) -> None:
    path = spoil(write_lora(loras / "bad.safetensors"))
    assert_refused(save_graph({"lora_1": path.name}), message)


@pytest.mark.parametrize("name", ["../x", "..\\x", "/abs", "C:\\x", "C:x", "a/../../x", "", "nul", "a\nb"])
def test_save_name(name: str) -> None:
    assert_refused(save_graph(save={"name": name}), "the name")


@pytest.mark.parametrize("text", ["one", "1,,2", "1;2", "nan", "inf", "1, 99"])
def test_merge_strengths(text: str) -> None:
    assert_refused(save_graph(merge={"strengths": text}), "strengths is")


# -- when the node runs, before any work is lost -----------------------------------------------------------------------


def train(loaded: Any, dataset: Any, **changes: Any) -> tuple[Any, ...]:
    inputs = {**TRAIN, **changes}
    vae, clip = inputs.pop("vae", loaded.vae), inputs.pop("clip", loaded.clip)
    return run_node(
        TrainLora, model=loaded.model, clip=clip, vae=vae, dataset=dataset, run_name="refused",
        prior_vae=loaded.prior_vae, **inputs,
    )  # fmt: skip


def data(folder: Path, resolution: int = 64, step: int = 16) -> Any:
    return run_node(LoraDataset, folder=str(folder), trigger="", resolution=resolution, repeats=1, bucket_step=step)[0]


def test_latent_size(models, pictures: Path) -> None:
    with pytest.raises(ValueError, match="bucket 60 x 60 is not a multiple of 8, which this VAE"):
        train(models("sd15"), data(pictures, 60, 4))


def test_vae_of_other_channels(models, pictures: Path) -> None:
    with pytest.raises(ValueError, match="this VAE makes 16 latent channels but the model works on 4"):
        train(models("sd15"), data(pictures), vae=models("flux1").vae)


@pytest.mark.parametrize("family", [name for name in tiny.FAMILIES if name != "cascade_b"])
def test_vae_of_another_family(models, pictures: Path, family: str) -> None:
    """Stage B's own check of its VAEs is in test_prior.py."""
    trio = models(family)
    works_on = trio.model.model.latent_format.latent_channels
    makes, other = (4, "sd15") if works_on != 4 else (16, "flux1")
    with pytest.raises(
        ValueError, match=f"VAE makes {makes} latent channels but the model works on {works_on}; connect"
    ):
        train(trio, data(pictures, step=32), vae=models(other).vae)


WORDLESS = ("cascade_b", "kandinsky22_decoder")  # these read no tokens


@pytest.mark.parametrize("family", [name for name in tiny.FAMILIES if name not in WORDLESS])
def test_clip_of_another_family(models, pictures: Path, family: str) -> None:
    """By the widths of both, before a picture is encoded."""
    trio = models(family)
    own, other = text_width(trio.clip), models("krea2" if family.startswith("sd15") else "sd15").clip
    assert own != text_width(other)
    message = rf"this CLIP gives text of width {text_width(other)}, but .* needs {own}; connect the text encoders"
    with pytest.raises(ValueError, match=message):
        train(trio, data(pictures, step=32), clip=other, vae=Unused())


def text_width(clip: Any) -> int:
    return encode(clip, "")[0][0].shape[-1]


class Unused:
    """A VAE that must not be asked for a latent."""

    def spacial_compression_encode(self) -> int:
        return 8


@pytest.mark.parametrize(
    ("family", "other"),
    [("sd35_large", "wan21"), ("flux1", "chroma"), ("flux1_schnell", "qwen_image"), ("kandinsky5", "qwen_image"),
     ("cascade_c", "chroma")],
)  # fmt: skip
def test_clip_without_pooled_output(models, pictures: Path, family: str, other: str) -> None:
    """Its text is as wide as the model's own."""
    trio, clip = models(family), models(other).clip
    pooled = encode(trio.clip, "")[0][1]["pooled_output"].shape[-1]
    with pytest.raises(
        ValueError, match=f"this CLIP gives no pooled output, but .* needs one of {pooled} values; connect"
    ):
        train(trio, data(pictures), clip=clip, vae=Unused())


@pytest.mark.parametrize(("family", "size"), [("sdxl", 64), ("sdxl_v", 64), ("cascade_b", 64), ("sd35_medium", 128)])
def test_pooled_output_missing_or_of_another_width(models, family: str, size: int) -> None:
    trio = models(family)
    (text, options), *_ = encode(trio.clip, "a cat")
    check_conditioning(trio.model, [[text, options]])
    with pytest.raises(ValueError, match=f"gives no pooled output, but .* needs one of {size} values"):
        check_conditioning(trio.model, [[text, {}]])
    with pytest.raises(ValueError, match=f"gives a pooled output of width 7, but .* needs {size}; connect"):
        check_conditioning(trio.model, [[text, {"pooled_output": torch.zeros(1, 7)}]])


def test_anima_needs_the_tokens_of_t5_too(models, pictures: Path) -> None:
    """Chroma's text is as wide; Anima's network would leave its adapter out."""
    with pytest.raises(ValueError, match="this CLIP gives no t5xxl_ids, which Anima needs; connect"):
        train(models("anima"), data(pictures), clip=models("chroma").clip)


@pytest.mark.parametrize("name", ["clip", "vae"])
def test_checkpoint_without_clip_or_vae(models, pictures: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is empty: the file that it was loaded from does not contain it"):
        train(models("sd15"), data(pictures), **{name: None})


# -- allowed, and said -------------------------------------------------------------------------------------------------


def test_distilled_model_is_trained_and_warned_of(models, pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "lora_loom"):
        train(models("flux1_schnell"), data(pictures))
    (line,) = [text for text in caplog.messages if "distilled" in text]
    assert line == (
        "warning: flux1_schnell.safetensors seems to be distilled for few steps ('schnell'), which training "
        "destroys: train on FLUX.1 dev and use the LoRA with the fast model"
    )


def test_distilled_checkpoint_is_told_by_its_file(models, pictures: Path, tmp_path: Path) -> None:
    """UNETLoader's MODEL knows the file, and so do its clones; a MODEL of another loader need not."""
    written = tiny.write_model(tiny.FAMILIES["flux2"], tmp_path)
    model = comfy.sd.load_diffusion_model(str(written.rename(tmp_path / "flux-2-klein-4b.safetensors"))).clone()
    (line,) = warnings(model, data(pictures, 1024, 32))
    assert "flux-2-klein-4b.safetensors seems to be distilled" in line and "train on FLUX.2 klein base" in line
    assert warnings(models("sdxl").model, data(pictures, 1024, 32)) == []


@pytest.mark.parametrize(
    ("family", "resolution", "wanted"),
    [
        ("sdxl", 512, "the data set has 512 px, but SDXL is made for 1024 px: fine detail will be missing"),
        ("sd15", 1024, "the data set has 1024 px, but SD 1.5 is made for 512 px: the model may repeat"),
        ("sdxl", 768, ""), ("sd15", 768, ""), ("sd15", 512, ""),
    ],
)  # fmt: skip
def test_resolution_far_from_the_models(models, pictures: Path, family: str, resolution: int, wanted: str) -> None:
    said = warnings(models(family).model, data(pictures, resolution, 32))
    assert len(said) == bool(wanted) and all(wanted in line for line in said)


def test_targets_select_nothing(models, pictures: Path) -> None:
    with pytest.raises(ValueError, match="select none of the model's .* layers; it has: .*attn1.to_q"):
        train(models("sd15"), data(pictures), exclude="*")


def test_preservation_without_a_trigger(models, pictures: Path) -> None:
    with pytest.raises(ValueError, match="preservation is 1 but LoRA Dataset has no trigger word"):
        train(models("sd15"), data(pictures), preservation=1.0, preserve="person")


def test_truncated_picture_is_named(pictures: Path) -> None:
    """Its header opens, so it is found only when it is decoded; the rest is read."""
    path = pictures / "0.png"
    path.write_bytes(path.read_bytes()[:2000])
    assert_left_out(pictures, "0.png")


def test_a_file_that_is_no_picture_is_named(pictures: Path) -> None:
    (pictures / "3.png").write_bytes(b"this is no picture")
    assert_left_out(pictures, "3.png")


def assert_left_out(folder: Path, name: str) -> None:
    assert refusals(train_graph(folder)) == ""
    found, report = run_node(LoraDataset, folder=str(folder), trigger="", resolution=64, repeats=1, bucket_step=16)
    assert [Path(example.source).name for example in found.examples].count(name) == 0 and len(found.examples) == 3
    assert name in report


@pytest.mark.parametrize(
    ("file_of", "used_on", "names"),
    [
        ("flux1", "sd15", ("FLUX.1", "SD 1.5")),
        ("sd15", "flux1", ("SD 1.5", "FLUX.1 dev")),
        ("wan_demo", "sd15", ("Wan 2.1", "SD 1.5")),
    ],
)
@pytest.mark.parametrize("style", ["comfyui", "kohya", "diffusers"])
def test_lora_of_another_family(
    models, loras: Path, make_lora, file_of: str, used_on: str, names: tuple[str, str], style: str
) -> None:
    make_lora(file_of, loras / "other.safetensors", style)
    with pytest.raises(ValueError) as refused:
        run_node(
            LoadLoraStack, model=models(used_on).model, lora_1="other.safetensors", strength_1=1.0, text_strength_1=1.0
        )
    assert all(name in str(refused.value) for name in names), refused.value


def assert_refused(graph: Graph, message: str) -> None:
    """Refused, by one node, in one sentence of ours for each input it concerns."""
    answer = refusals(graph)
    assert re.search(message, answer), answer or "nothing was refused"
    sentences = {line.split(" - ", 1)[-1] for line in answer.splitlines()}
    assert len(sentences) == 1, answer


def write_lora(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    name = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{name}.lora_up.weight": torch.ones(128, 2), f"{name}.lora_down.weight": torch.ones(2, 128)}, path)
    return path
