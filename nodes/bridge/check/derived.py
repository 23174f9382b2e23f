"""Are pictures, stacks, figures and LoRAs made of LoRAs right on this device, beside the same on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import comfy.model_management
import torch
from torch import Tensor

from ....lora_core.adapter import Adapter
from ....lora_core.analysis.device_check import share
from ....lora_core.low_rank import LowRank
from ....lora_core.merging.pick import Pick
from ....lora_core.merging.settings import MergeSettings
from ....lora_core.merging.truncation import Limits
from ....lora_core.stack.weighted import exact_sum
from ....lora_core.training.config import LoraConfig
from ..analysis.interference import interference
from ..host.progress import Progress
from ..merging.extraction import extract_lora
from ..merging.merge import merge
from ..model.attention import differentiable_attention
from ..model.sampling import Sampling, latents, sampling_inside
from ..model.trained_layers import chosen_layers
from ..stack.apply_chain import Apply
from ..stack.apply_stack import apply_entries
from ..stack.entries import Connected, Entry, all_entries
from .case import RANK, Case, apart
from .networks import Network
from .rig import Outcome, Rig, whole_fp32

EXACT, NEAR = 1e-5, 1e-3
_STRENGTHS = (0.7, -0.4)
_PICTURE = Sampling(64, 64, steps=2, cfg=1.0)


def stack(rig: Rig, network: Network) -> Outcome:
    """A stack of two in the weights is the exact sum, and beside them makes the same pictures."""
    case, pictures = rig.here(network), []
    with torch.inference_mode(), whole_fp32():
        entries = all_entries(case.patcher, None, (), connected(case))
        for apply in ("weights", "beside"):
            pictures.append(_picture(_stacked(case, entries, apply), network))
        wanted = _on_the_cpu(rig.reference(network))
        found = {"weights": _error_of_weights(case, entries)}
    found |= {"picture": apart(pictures[0], wanted), "beside": apart(pictures[1], wanted)}
    text = (
        f"difference of weights from the exact sum {share(found['weights'])}, of pictures from the CPU "
        f"{share(found['picture'])}, with apply beside {share(found['beside'])}"
    )
    right = found["weights"] < EXACT and max(found["picture"], found["beside"]) < NEAR
    return Outcome(right, text, found)


def previews(rig: Rig, network: Network) -> Outcome:
    """A picture in the middle of training is the CPU's, and training goes on as if it had not been made."""
    pictures = []
    with whole_fp32():
        for case in (rig.here(network), rig.reference(network)):
            with case.training() as training:
                before = training.gradient()[1]
                with sampling_inside(training.patcher):
                    pictures.append(_picture(training.patcher, network))
                after = training.gradient()[1]
                pictures[-1] = pictures[-1], apart(after, before)
    (here, moved), (wanted, _) = pictures
    found = {"picture": apart(here, wanted), "gradient after": moved}
    text = f"difference of the picture from the CPU {share(found['picture'])}, of the gradient after it {share(moved)}"
    return Outcome(found["picture"] < NEAR and moved < EXACT, text, found)


def figures(rig: Rig, network: Network) -> Outcome:
    """LoRA Interference."""
    with torch.inference_mode(), whole_fp32():
        told = [
            interference(case.patcher, None, None, connected(case)).figures
            for case in (rig.here(network), rig.reference(network))
        ]
    here, wanted = (torch.tensor(list(_numbers(json.loads(text))), dtype=torch.float64) for text in told)
    if here.shape != wanted.shape:
        return Outcome(False, f"{len(here)} figures on this device but {len(wanted)} on the CPU")
    found = {"figures": apart(here, wanted)}
    return Outcome(
        found["figures"] < NEAR, f"difference of {len(here)} figures from the CPU: {share(found['figures'])}", found
    )


def extract(rig: Rig, network: Network) -> Outcome:
    """The difference of two models is found again."""
    case, truth = rig.here(network), adapter(rig.here(network), 0).layers
    with torch.inference_mode(), whole_fp32():
        tuned = Case.of(network, rig.device)
        for name, layer in truth.items():
            layer.add_to_(tuned.patcher.model.get_submodule(name).weight)
        made = extract_lora(tuned.patcher, case.patcher, None, None, RANK, 1.0, Pick(), Progress(1).tick).adapter
    found = {"difference": _layers_apart(made.layers, truth)}
    return Outcome(found["difference"] < NEAR, f"difference from the known one: {share(found['difference'])}", found)


def merged(rig: Rig, network: Network) -> Outcome:
    """The sum of two is exact, and the same at a lower rank as on the CPU."""
    cases = rig.here(network), rig.reference(network)
    with torch.inference_mode(), whole_fp32():
        cut = [_merge(case, Limits(RANK)) for case in cases]
        whole = _merge(cases[0], Limits())
        wanted = exact_sum(all_entries(cases[1].patcher, None, (), connected(cases[1])))
    found = {"sum": _layers_apart(whole, wanted), "cut": _layers_apart(*cut)}
    text = f"difference from the exact sum {share(found['sum'])}, cut to rank {RANK} from the CPU {share(found['cut'])}"
    return Outcome(found["sum"] < EXACT and found["cut"] < NEAR, text, found)


def adapter(case: Case, seed: int) -> Adapter:
    """Return a LoRA on the attention and the feed-forward of a network, alpha half the rank."""
    generator = torch.Generator().manual_seed(20 + seed)
    lora = LoraConfig(RANK, RANK / 2, "attention+mlp")
    layers, _ = chosen_layers(case.patcher.model.diffusion_model, None, lora, None)
    made = {}
    for name, module in layers.items():
        shape = cast(torch.Tensor, module.weight).shape
        out, columns = shape[0], shape[1:].numel()
        down = torch.randn(RANK, columns, generator=generator) / columns**0.5
        up = torch.randn(out, RANK, generator=generator) * 0.05
        made[name] = LowRank(down, up, RANK / 2, tuple(shape[2:]))
    return Adapter(made)


def connected(case: Case) -> list[Connected]:
    return [Connected(adapter(case, seed), strength, strength) for seed, strength in enumerate(_STRENGTHS)]


def _merge(case: Case, limits: Limits) -> Mapping[str, LowRank]:
    return merge(case.patcher, None, None, connected(case), MergeSettings(), limits, Progress(1).tick).adapter.layers


def _stacked(case: Case, entries: list[Entry], apply: Apply) -> Any:
    return apply_entries(case.patcher, None, entries, apply)[0]


def _picture(patcher: Any, network: Network) -> Tensor:
    return latents(patcher, network.caption(3), network.caption(1), _PICTURE).cpu()


def _on_the_cpu(case: Case) -> Tensor:
    """With an attention that the CPU has, whichever was chosen for the device."""
    with differentiable_attention():
        entries = all_entries(case.patcher, None, (), connected(case))
        return _picture(_stacked(case, entries, "weights"), case.network)


def _error_of_weights(case: Case, entries: list[Entry]) -> float:
    """Measure the error of what the stack changed, of the worst layer, beside the exact sum in fp64."""
    patched, sums = _stacked(case, entries, "weights"), exact_sum(entries)
    comfy.model_management.unload_model_and_clones(case.patcher)
    base = {name: _weight(case.patcher, name) for name in sums}
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    changed = {name: _weight(patched, name) - base[name] for name in sums}
    comfy.model_management.unload_model_and_clones(patched)
    wanted = {name: layer.to(torch.float64).delta_weight() for name, layer in sums.items()}
    return _all_apart(changed, wanted)


def _weight(patcher: Any, name: str) -> Tensor:
    return patcher.model.get_submodule(name).weight.detach().cpu().to(torch.float64, copy=True)


def _layers_apart(found: Mapping[str, LowRank], wanted: Mapping[str, LowRank]) -> float:
    if found.keys() != wanted.keys():
        return float("inf")
    return _all_apart(*({name: layer.delta_weight() for name, layer in each.items()} for each in (found, wanted)))


def _all_apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The worst layer's."""
    return max(apart(found[name], wanted[name]) for name in wanted)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, (int, float)):
        yield float(value)


ONCE = {"stack": stack, "previews": previews, "interference": figures, "extract": extract, "merge": merged}
