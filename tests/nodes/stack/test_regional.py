"""A mask per row: each part of the picture is as if its rows alone were on, at every step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.sample
import comfy.samplers
import pytest
import tiny
import tiny.packed
import tiny.stored
import torch
from comfy.context_windows import (
    IndexListContextHandler,
    get_matching_context_schedule,
    get_matching_fuse_method,
)
from comfy.controlnet import ControlBase
from comfy_extras.nodes_hooks import CreateHookLora
from harness.calls import encode, relative_error, run_node
from harness.kinds import written
from lora_loom.lora_core.stack.rows import parse
from lora_loom.nodes.bridge.merging.sources import sources
from lora_loom.nodes.bridge.model.names import names_of
from lora_loom.nodes.bridge.stack import bypass_injection
from lora_loom.nodes.bridge.stack.apply_stack import Applied, apply_stack
from lora_loom.nodes.bridge.stack.carried import check_everywhere
from lora_loom.nodes.bridge.stack.patched_weights import Patched
from lora_loom.nodes.load_stack import LoadLoraStack
from torch import Tensor

Points = list[tuple[Tensor, Tensor, Tensor]]  # x, sigma and what is made of it, after cfg
HALF = torch.zeros(64, 64)
HALF[:, :32] = 1.0


@torch.inference_mode()
def drawn(model: Any, pair: Sequence[Any], latent: Tensor, at: Points | None = None, steps: int = 3) -> Points:
    """Every step of Euler's method at cfg 3; of another run's points `at`, what this model makes of them."""
    seen: Points = []

    def sample(network: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
        for x_t, sigma, _ in at or ():
            made = network(x_t.to(x.device), sigma.to(x.device), **extra_args)
            seen.append((x_t, sigma, made.cpu()))
        for now, then in zip(sigmas[:-1], sigmas[1:], strict=True) if at is None else ():
            sigma = now * x.new_ones([len(x)])
            made = network(x, sigma, **extra_args)
            seen.append((x.cpu(), sigma.cpu(), made.cpu()))
            x = x + (x - made) / now * (then - now)
        return x

    sampler = comfy.samplers.KSAMPLER(sample)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    noise = comfy.sample.prepare_noise(latent, 3)
    comfy.sample.sample_custom(model, noise, 3.0, sampler, sigmas, *pair, latent)
    return seen


def texts(clip: Any, **extra: Any) -> tuple[list, list]:
    return encode(clip, "a red heart", **extra), encode(clip, "", **extra)


def on(model: Any, rows: str, *masks: Tensor) -> Applied:
    return apply_stack(model, None, None, parse(rows), "beside", {f"mask{n}": each for n, each in enumerate(masks, 1)})


def two(loras: Path, model: Any, family: str, kind: str = "LoKr") -> tuple[str, str]:
    """Names of a plain LoRA and one of another kind, on the same layers."""
    return Path(written(loras, "LoRA", model, family)).stem, Path(written(loras, kind, model, family)).stem


def places(latent: Tensor) -> Tensor:
    return torch.arange(latent.shape[-1]) < latent.shape[-1] // 2


@pytest.mark.parametrize("family", ["sd15", "flux1", "wan21"])
def test_each_part_is_as_if_its_rows_were_alone(models, loras: Path, make_lora, family: str) -> None:
    """UNets, tokens of two by two places and videos, with cfg: to the last bit, where masks do not meet."""
    model, pair = models(family).model, texts(models(family).clip)
    for seed, name in enumerate(("one", "other")):
        make_lora(family, loras / f"{name}.safetensors", seed=seed, size=2.0)
    latent = torch.zeros(tiny.latent_shape(model, 2))
    both = on(model, "<lora:one:0.7:mask=1>\n<lora:other:0.8:mask=-1>", HALF)
    assert "layers applied beside the weight (on for part of the picture)" in both.report
    points = drawn(both.model, pair, latent)
    alone = [drawn(on(model, f"<lora:{row}>").model, pair, latent, points) for row in ("one:0.7", "other:0.8")]
    left = places(latent)
    for (x, _, mixed), (_, _, first), (_, _, second) in zip(points, *alone, strict=True):
        assert torch.equal(mixed[..., left], first[..., left]) and torch.equal(mixed[..., ~left], second[..., ~left])
        assert relative_error(first, second) > 1e-3 and x.isfinite().all()


def test_what_no_mask_covers_is_without_the_rows_that_have_one(models, loras: Path) -> None:
    """Rows without a mask are on everywhere, and masks that meet are mixed by their shares."""
    model, clip = models("sd15").model, models("sd15").clip
    (one, other), pair, latent = two(loras, model, "sd15"), texts(clip), torch.zeros(tiny.latent_shape(model))
    middle, grey = torch.roll(HALF, 16, 1), HALF * 0.25
    rows = f"<lora:{one}:0.5>\n<lora:{one}:3:mask=1>\n<lora:{other}:3:mask=2>"
    stack = on(model, rows, middle, grey)
    assert "3 forwards in each step instead of 1 (2 for masks, 1 for the rest)" in stack.report
    assert "in mask 1 (50 % of the picture)" in stack.report
    assert "mask 1 and mask 2 share" not in stack.report
    points = drawn(stack.model, pair, latent)
    whole = [f"<lora:{one}:0.5>", f"<lora:{one}:0.5>\n<lora:{one}:3>", f"<lora:{one}:0.5>\n<lora:{other}:3>"]
    rest, first, second = (drawn(on(model, each).model, pair, latent, points) for each in whole)
    share = torch.tensor([[0.0, 0, 1, 1, 1, 1, 0, 0], [0.25] * 4 + [0.0] * 4])
    share = share / share.sum(0).clamp(min=1)
    for (_, _, mixed), (_, _, r), (_, _, a), (_, _, b) in zip(points, rest, first, second, strict=True):
        wanted = share[0] * a + share[1] * b + (1 - share.sum(0)) * r
        assert relative_error(mixed, wanted) < 1e-6 < 1e-3 < relative_error(mixed, r)


@pytest.mark.parametrize("name", [each for each in comfy.samplers.KSAMPLER_NAMES if not each.endswith("_gpu")])
def test_every_sampler_takes_masks(models, loras: Path, name: str) -> None:
    """Two regions of the same LoRA, which are two forwards, are that LoRA without a mask, to the last bit."""
    model, clip = models("sd15").model, models("sd15").clip
    (one, other), pair, latent = two(loras, model, "sd15"), texts(clip), torch.zeros(tiny.latent_shape(model))
    noise, made = comfy.sample.prepare_noise(latent, 3), []
    for rows in (f"<lora:{one}:2:mask=1>\n<lora:{one}:2:mask=-1>", f"<lora:{one}:2>", f"<lora:{other}:2:mask=1>"):
        with torch.inference_mode():
            applied = on(model, rows, HALF).model
            made.append(comfy.sample.sample(applied, noise, 3, 3.0, name, "simple", *pair, latent, seed=5))
    assert torch.equal(made[0], made[1]) and made[0].isfinite().all() and not torch.equal(made[0], made[2])


def test_parts_of_sampling_and_pictures_of_a_batch(models, loras: Path, monkeypatch) -> None:
    """A region whose rows are off costs no forward of its own."""
    model, clip = models("sd15").model, models("sd15").clip
    (one, _), pair, latent = two(loras, model, "sd15"), texts(clip), torch.zeros(tiny.latent_shape(model, 2))
    stack = on(model, f"<lora:{one}:0.7:end=0.5:mask=1>", torch.stack([HALF, 1 - HALF]))
    forwards: list[float] = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: forwards.append(float(args[1][0])))
    points = drawn(stack.model, pair, latent, steps=4)
    handle.remove()
    counts = [forwards.count(step) for step in dict.fromkeys(forwards)]
    assert counts == [2 * counts[-1], 2 * counts[-1], counts[-1], counts[-1]]
    row, base = (drawn(on(model, rows).model, pair, latent, points) for rows in (f"<lora:{one}:0.7>", ""))
    left = places(latent)
    (_, _, early), (_, _, late) = points[0], points[-1]
    assert torch.equal(early[0][..., left], row[0][2][0][..., left])
    assert torch.equal(early[0][..., ~left], base[0][2][0][..., ~left])
    assert torch.equal(early[1][..., ~left], row[0][2][1][..., ~left]) and torch.equal(late, base[-1][2])


def test_layers_of_few_bits_and_of_third_parties(models, loras: Path, tmp_path: Path) -> None:
    clip, row = models("flux1").clip, tiny.FAMILIES["flux1"]
    with torch.inference_mode():
        stored = tiny.stored.load_stored("flux1", tmp_path, "fp8_e4m3fn")
        packed = tiny.packed.load_packed(row, tiny.built(row, "meta").diffusion_model)
    for model in (stored, packed):
        (one, other), pair = two(loras, model, "flux1"), texts(clip)
        latent = torch.zeros(tiny.latent_shape(model))
        both = on(model, f"<lora:{one}:0.7:mask=1>\n<lora:{other}:0.8:mask=-1>", HALF).model
        points = drawn(both, pair, latent, steps=1)
        alone = (
            drawn(on(model, f"<lora:{row}>").model, pair, latent, points) for row in (f"{one}:0.7", f"{other}:0.8")
        )
        (first, second), mixed, left = (made[0][2] for made in alone), points[0][2], places(latent)
        assert relative_error(mixed, torch.where(left, first, second)) < 0.02 * relative_error(first, second)


# -- with what others do -----------------------------------------------------------------------------------------------


def test_comfyuis_hooks_draw_the_same(models, loras: Path) -> None:
    """Cond Pair Set Props with a mask and Create Hook LoRA on each half of the prompts."""
    model, clip = models("sd15").model, models("sd15").clip
    (one, other), latent = two(loras, model, "sd15"), torch.zeros(tiny.latent_shape(model))
    pair, hooked = texts(clip), ([], [])
    for name, strength, mask in ((one, 2.0, HALF), (other, 3.0, 1 - HALF)):
        (hooks,) = CreateHookLora().create_hook(f"{name}.safetensors", strength, 0.0)
        new = comfy.hooks.set_conds_props([*pair], 1.0, "default", mask=mask[None], hooks=hooks)
        hooked = [[*before, *added] for before, added in zip(hooked, new, strict=True)]
    points = drawn(on(model, f"<lora:{one}:2:mask=1>\n<lora:{other}:3:mask=2>", HALF, 1 - HALF).model, pair, latent)
    theirs, base = drawn(model, hooked, latent, points), drawn(model, pair, latent, points)
    for (_, _, ours), (_, _, core), (_, _, plain) in zip(points, theirs, base, strict=True):
        assert relative_error(ours, core) < 1e-5 < 1e-3 < relative_error(plain, core)


class Control(ControlBase):
    """Adds a constant to the middle of a UNet, as a list that is used up."""

    def get_control(self, x_noisy: Tensor, *_: Any) -> dict[str, list[Tensor]]:
        return {"middle": [torch.full((len(x_noisy), 1, 1, 1), 3.0)]}

    def copy(self) -> Control:
        return self

    def get_models(self) -> list:
        return []


def test_controlnets_masks_of_prompts_and_caches_hold_in_every_part(models, loras: Path) -> None:
    model, clip = models("sd15").model, models("sd15").clip
    (one, other), latent = two(loras, model, "sd15"), torch.zeros(tiny.latent_shape(model))
    control = Control()
    controlled = texts(clip, control=control, control_apply_to_uncond=False)
    controlled = comfy.hooks.set_conds_props(controlled, 1.0, "default", mask=HALF.T[None])
    seen: set = set()
    model = model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, args: (
            seen.update(args["c"]["transformer_options"]["uuids"])
            or apply(args["input"], args["timestep"], **args["c"])
        )
    )
    both = on(model, f"<lora:{one}:0.7:mask=1>\n<lora:{other}:0.8:mask=-1>", HALF).model
    points = drawn(both, controlled, latent, steps=2)
    assert len(seen) == 4  # two prompts of two parts, in each step the same
    alone = [
        drawn(on(model, f"<lora:{row}>").model, controlled, latent, points) for row in (f"{one}:0.7", f"{other}:0.8")
    ]
    without = drawn(both, texts(clip), latent, points)
    for (_, _, mixed), (_, _, first), (_, _, second), (_, _, plain) in zip(points, *alone, without, strict=True):
        assert relative_error(mixed, torch.where(places(latent), first, second)) < 1e-6 < 1e-3
        assert relative_error(plain, mixed) > 1e-3


def test_windows_over_a_long_video(models, loras: Path, make_lora) -> None:
    """Each window of frames finds its own masks."""
    model, clip = models("wan21").model, models("wan21").clip
    one, pair = "one", texts(clip)
    make_lora("wan21", loras / "one.safetensors", size=2.0)
    shape = [*tiny.latent_shape(model)]
    shape[2] = 4
    latent, frames = torch.zeros(shape), torch.stack([HALF, 1 - HALF, HALF, HALF])
    windowed = IndexListContextHandler(
        get_matching_context_schedule("standard_static"), get_matching_fuse_method("flat"), 2, 0, dim=2
    )
    stack = on(model, f"<lora:{one}:2:mask=1>", frames).model
    whole = on(model, f"<lora:{one}:2>").model
    for each in (stack, whole, model := model.clone()):
        each.model_options["context_handler"] = windowed
    points = drawn(stack, pair, latent, steps=1)
    ((_, _, row),), ((_, _, base),) = (drawn(each, pair, latent, points) for each in (whole, model))
    left = places(latent) ^ (torch.arange(4) == 1)[:, None]
    assert torch.equal(points[0][2], torch.where(left[:, None], row, base)) and relative_error(row, base) > 1e-4


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_masks_that_do_not_fit_are_told_before_anything_is_loaded(models, loras: Path) -> None:
    model, clip = models("sd15").model, models("sd15").clip
    (one, _), pair, latent = two(loras, model, "sd15"), texts(clip), torch.zeros(tiny.latent_shape(model, 2))
    with pytest.raises(ValueError, match=r"mask 1 is 128 x 64, but the picture has other proportions, 8 x 8 in the"):
        drawn(on(model, f"<lora:{one}:mask=1>", torch.ones(64, 128)).model, pair, latent)
    with pytest.raises(ValueError, match=r"mask 1 has 3 pictures, but the batch has 2"):
        drawn(on(model, f"<lora:{one}:mask=1>", torch.ones(3, 64, 64)).model, pair, latent)
    stack = on(model, f"<lora:{one}:mask=1>", HALF).model
    own_way = stack.clone()
    own_way.model_options["sampler_calc_cond_batch_function"] = print
    with pytest.raises(ValueError, match=r"another node of this model answers prompts in a way of its own"):
        drawn(own_way, pair, latent)
    with pytest.raises(ValueError, match=r"only samplers of ComfyUI know to heed"), torch.inference_mode():
        stack.model.apply_model(latent, torch.ones(2), transformer_options={"wrappers": stack.wrappers})


def test_nodes_that_make_files_refuse_parts_of_pictures(models, loras: Path) -> None:
    model = models("sd15").model
    one, _ = two(loras, model, "sd15")
    stack = on(model, f"<lora:{one}:mask=1>", HALF)
    with pytest.raises(
        ValueError, match=r"has LoRAs that are on in only part of the picture, which a LoRA file cannot"
    ):
        Patched(stack.model, "tuned").check()
    with pytest.raises(ValueError, match=r"is on in mask 1 only, but a run learns whole pictures"):
        check_everywhere(stack.model)
    with pytest.raises(ValueError, match=r"LoRA is on in mask 1 only, which a file cannot contain"):
        sources(names_of(model), stack.rows, [])
    check_everywhere(on(model, f"<lora:{one}:start=0.2>").model)


def test_content_tells_masks_apart(models, loras: Path) -> None:
    model = models("sd15").model
    one, _ = two(loras, model, "sd15")
    rows = f"<lora:{one}:mask=1>", f"<lora:{one}:mask=-1>", f"<lora:{one}>"
    found = [bypass_injection.content(on(model, row, HALF).model)[0] for row in rows]
    again = bypass_injection.content(on(model, f"<lora:{one}:mask=2>", 1 - HALF, HALF).model)
    assert len({*found}) == 3 and again == found[:1]


# -- the node ----------------------------------------------------------------------------------------------------------


def test_the_node_takes_masks_and_hands_them_on(models, loras: Path) -> None:
    """Behind a second stack, a row has the mask of the node that it came from."""
    model, clip = models("sd15").model, models("sd15").clip
    (one, other), pair, latent = two(loras, model, "sd15"), texts(clip), torch.zeros(tiny.latent_shape(model))
    first = run_node(LoadLoraStack, model=model, rows=f"<lora:{one}:0.7:mask=1>", masks={"mask1": HALF[None]})
    rows = f"<lora:{other}:0.8:mask=1>"
    second = run_node(LoadLoraStack, model=model, rows=rows, lora_stack=first[2], masks={"mask1": 1 - HALF[None]})
    whole = on(model, f"<lora:{one}:0.7:mask=1>\n<lora:{other}:0.8:mask=-1>", HALF).model
    points = drawn(second[0], pair, latent)
    for (_, _, ours), (_, _, wanted) in zip(points, drawn(whole, pair, latent, points), strict=True):
        assert torch.equal(ours, wanted)
    assert "2 forwards in each step instead of 1 (one for each mask)" in second[3]
