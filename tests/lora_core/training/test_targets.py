"""Presets on module trees that bear the real names of each family (ComfyUI 0.30's own, width 4)."""

from __future__ import annotations

import re

import pytest
from lora_loom.lora_core.training.config import LoraConfig
from lora_loom.lora_core.training.targets import layer_kind, select
from torch import nn

ATTN_UNET = "attn{1,2}.{to_q,to_k,to_v,to_out.0}"
SPATIAL = f"transformer_blocks.0.{ATTN_UNET}"
QKVO_WAN = "{self_attn,cross_attn}.{q,k,v,o}"

# family: (attention layers, mlp layers, other linear layers, convolutions); braces multiply out, `|` separates.
TREES = {
    "SD 1.5": (
        f"input_blocks.{{1,2,4}}.1.{SPATIAL}|middle_block.1.{SPATIAL}|output_blocks.{{3,4,5}}.1.{SPATIAL}",
        "{input_blocks.{1,2,4}.1,middle_block.1,output_blocks.{3,4,5}.1}.transformer_blocks.0.ff.net.{0.proj,2}",
        "time_embed.{0,2}|{input_blocks.1,output_blocks.3}.0.emb_layers.1|middle_block.{0,2}.emb_layers.1",
        "input_blocks.0.0|{input_blocks.1,output_blocks.3}.0.{in_layers.2,out_layers.3}|input_blocks.3.0.op|out.2"
        "|{input_blocks.1.1,middle_block.1,output_blocks.3.1}.{proj_in,proj_out}|output_blocks.3.0.skip_connection|output_blocks.2.1.conv",
    ),
    "SDXL": (
        f"input_blocks.4.1.transformer_blocks.{{0,1}}.{ATTN_UNET}|middle_block.1.transformer_blocks.{{0,9}}.{ATTN_UNET}",
        "{input_blocks.4,middle_block}.1.transformer_blocks.{0,1}.ff.net.{0.proj,2}",
        "label_emb.0.{0,2}|time_embed.{0,2}|input_blocks.4.0.emb_layers.1|{input_blocks.4,middle_block}.1.{proj_in,proj_out}",
        "input_blocks.{0.0,3.0.op}|input_blocks.4.0.{in_layers.2,out_layers.3,skip_connection}|out.2",
    ),
    "SD 3.5": (  # medium: the first x_block has a second attention; the last context_block only qkv
        "joint_blocks.{0,1}.x_block.attn.{qkv,proj}|joint_blocks.0.{x_block.attn2,context_block.attn}.{qkv,proj}"
        "|joint_blocks.1.context_block.attn.qkv",
        "joint_blocks.{0,1}.x_block.mlp.{fc1,fc2}|joint_blocks.0.context_block.mlp.{fc1,fc2}",
        "{t,y}_embedder.mlp.{0,2}|context_embedder|joint_blocks.{0,1}.{x,context}_block.adaLN_modulation.1"
        "|final_layer.{linear,adaLN_modulation.1}",
        "x_embedder.proj",
    ),
    "FLUX.1": (
        "double_blocks.0.{img,txt}_attn.{qkv,proj}|single_blocks.0.{linear1,linear2}",
        "double_blocks.0.{img,txt}_mlp.{0,2}",
        "{time,vector,guidance}_in.{in_layer,out_layer}|{img,txt}_in|double_blocks.0.{img,txt}_mod.lin"
        "|single_blocks.0.modulation.lin|final_layer.{linear,adaLN_modulation.1}",
        "",
    ),
    "FLUX.2": (
        "double_blocks.0.{img,txt}_attn.{qkv,proj}|single_blocks.0.{linear1,linear2}",
        "double_blocks.0.{img,txt}_mlp.{0,2}",
        "{img,txt}_in|time_in.{in_layer,out_layer}|double_stream_modulation_{img,txt}.lin|single_stream_modulation.lin|final_layer.linear",
        "",
    ),
    "Chroma": (
        "double_blocks.0.{img,txt}_attn.{qkv,proj}|single_blocks.0.{linear1,linear2}",
        "double_blocks.0.{img,txt}_mlp.{0,2}",
        "distilled_guidance_layer.{in_proj,out_proj}|distilled_guidance_layer.layers.{0,1}.{in_layer,out_layer}|{img,txt}_in",
        "",
    ),
    "Wan 2.1": (
        f"blocks.0.{QKVO_WAN}",
        "blocks.0.ffn.{0,2}",
        "text_embedding.{0,2}|time_embedding.{0,2}|time_projection.1|head.head",
        "patch_embedding",
    ),
    "Z-Image": (
        "{noise_refiner,context_refiner,layers}.0.attention.{qkv,out}",
        "{noise_refiner,context_refiner,layers}.0.feed_forward.{w1,w2,w3}",
        "x_embedder|t_embedder.mlp.{0,2}|cap_embedder.1|{noise_refiner,layers}.0.adaLN_modulation.0|final_layer.linear",
        "",
    ),
    "Qwen-Image": (
        "transformer_blocks.0.attn.{to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_out.0,to_add_out}",
        "transformer_blocks.0.{img,txt}_mlp.net.{0.proj,2}",
        "time_text_embed.timestep_embedder.linear_{1,2}|{img,txt}_in|transformer_blocks.0.{img,txt}_mod.1|norm_out.linear|proj_out",
        "",
    ),
    "HiDream I1": (  # the gates of its experts are no layers
        "{double,single}_stream_blocks.0.block.attn1.{to_q,to_k,to_v,to_out}"
        "|double_stream_blocks.0.block.attn1.{to_q_t,to_k_t,to_v_t,to_out_t}",
        "{double,single}_stream_blocks.0.block.ff_i.{shared_experts,experts.0,experts.3}.{w1,w2,w3}"
        "|double_stream_blocks.0.block.ff_t.{w1,w2,w3}",
        "t_embedder.timestep_embedder.linear_{1,2}|p_embedder.pooled_embedder.linear_{1,2}|x_embedder.proj"
        "|{double,single}_stream_blocks.0.block.adaLN_modulation.1|caption_projection.{0,48}.linear"
        "|final_layer.{linear,adaLN_modulation.1}",
        "",
    ),
    "Kandinsky 5": (
        "text_transformer_blocks.0.self_attention.{to_query,to_key,to_value,out_layer}"
        "|visual_transformer_blocks.0.{self,cross}_attention.{to_query,to_key,to_value,out_layer}",
        "{text,visual}_transformer_blocks.0.feed_forward.{in_layer,out_layer}",
        "time_embeddings.{in_layer,out_layer}|{text,pooled_text,visual}_embeddings.in_layer|out_layer.{modulation.out_layer,out_layer}"
        "|text_transformer_blocks.0.text_modulation.out_layer|visual_transformer_blocks.0.visual_modulation.out_layer",
        "",
    ),
    "Krea 2": (
        "{blocks.0,txtfusion.layerwise_blocks.{0,1},txtfusion.refiner_blocks.{0,1}}.attn.{wq,wk,wv,wo}",
        "{blocks.0,txtfusion.layerwise_blocks.{0,1},txtfusion.refiner_blocks.{0,1}}.mlp.{gate,up,down}",
        "{blocks.0,txtfusion.layerwise_blocks.{0,1},txtfusion.refiner_blocks.{0,1}}.attn.gate"
        "|first|tmlp.{0,2}|txtfusion.projector|txtmlp.{1,3}|last.linear|tproj.1",
        "",
    ),
    "Anima": (
        "blocks.0.{self,cross}_attn.{q_proj,k_proj,v_proj,output_proj}|llm_adapter.blocks.0.{self,cross}_attn.{q,k,v,o}_proj",
        "blocks.0.mlp.layer{1,2}|llm_adapter.blocks.0.mlp.{0,2}",
        "t_embedder.1.linear_{1,2}|x_embedder.proj.1|blocks.0.adaln_modulation_{self_attn,cross_attn,mlp}.{1,2}"
        "|final_layer.{linear,adaln_modulation.{1,2}}|llm_adapter.out_proj",
        "",
    ),
    "Cascade C": (
        "{down,up}_blocks.0.{2,5}.attention.attn.{to_q,to_k,to_v,out_proj}",
        "",
        "clip_{txt,txt_pooled,img}_mapper|{down,up}_blocks.0.0.channelwise.{0,4}|{down,up}_blocks.0.1.{mapper,mapper_sca,mapper_crp}"
        "|{down,up}_blocks.0.2.kv_mapper.1",
        "embedding.1|down_downscalers.1.0.blocks.0|clf.1",
    ),
    "Kandinsky 2.2 decoder": (
        "{down_blocks.1,mid_block,up_blocks.0}.attentions.0.{to_q,to_k,to_v,to_out.0,add_k_proj,add_v_proj}",
        "",
        "add_embedding.image_proj|encoder_hid_proj.image_embeds|time_embedding.linear_{1,2}"
        "|{down_blocks.0,mid_block}.resnets.0.time_emb_proj",
        "conv_in|conv_out|down_blocks.0.resnets.0.{conv1,conv2,conv_shortcut}|down_blocks.0.downsamplers.0.conv1",
    ),
    "Kandinsky 2.2 prior": (
        "transformer_blocks.{0,1}.attn1.{to_q,to_k,to_v,to_out.0}",
        "transformer_blocks.{0,1}.ff.net.{0.proj,2}",
        "proj_in|embedding_proj|encoder_hidden_states_proj|proj_to_clip_embeddings|time_embedding.linear_{1,2}",
        "",
    ),
    "Wuerstchen v2 prior": (
        "blocks.{2,5}.attention.{to_q,to_k,to_v,to_out.0}",
        "",
        "blocks.{2,5}.kv_mapper.1|blocks.{0,3}.channelwise.{0,4}|blocks.{1,4}.mapper|cond_mapper.{0,2}",
        "projection|out.1",
    ),
}
# Of the tiny models in design/tiny-models.md, table (a)+(b)+(d); SD 1.5 and SDXL: of the blocks named above.
COUNTS = {"SD 1.5": 56, "SDXL": 32, "SD 3.5": 9, "FLUX.1": 6, "FLUX.2": 6, "Chroma": 6, "Wan 2.1": 8, "Z-Image": 6,
          "Qwen-Image": 8, "HiDream I1": 12, "Kandinsky 5": 12, "Krea 2": 20, "Anima": 16, "Cascade C": 16,
          "Kandinsky 2.2 decoder": 18, "Kandinsky 2.2 prior": 8, "Wuerstchen v2 prior": 8}  # fmt: skip


def spread(pattern: str) -> list[str]:
    """`a.{b,c.{d,e}}|f` -> a.b, a.c.d, a.c.e, f."""
    names = [name for name in pattern.split("|") if name]
    while any("{" in name for name in names):
        inner = re.compile(r"\{([^{}]*)\}")
        names = [
            name[: m.start()] + choice + name[m.end() :] if m else name
            for name in names
            for m in [inner.search(name)]
            for choice in (m[1].split(",") if m else [""])
        ]
    return list(dict.fromkeys(names))


def tree(layers: dict[str, nn.Module]) -> nn.Module:
    root = nn.Module()
    for path, layer in layers.items():
        parent, *parts = root, *path.split(".")
        for part in parts[:-1]:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(parts[-1], layer)
    return root


def model(family: str) -> tuple[nn.Module, dict[str, set[str]]]:
    """The tree, decorated with things that must never be chosen, and its names by group."""
    attention, mlp, linear, conv = map(spread, TREES[family])
    layers: dict[str, nn.Module] = {name: nn.Linear(4, 4) for name in attention + mlp + linear}
    layers |= {name: nn.Conv2d(4, 4, 3) for name in conv}
    blocks = sorted({name.rsplit(".", 1)[0] for name in attention if not name.endswith("to_out.0")})
    never = {f"{block}.{norm}": nn.LayerNorm(4) for block in blocks for norm in ("q_norm", "norm.key_norm")}
    never |= {f"{blocks[0]}.q_embed": nn.Embedding(4, 4), "token_embedding": nn.Embedding(4, 4)}
    never |= {"norm": nn.GroupNorm(2, 4), "mixed": nn.Bilinear(4, 4, 4)}
    never |= {"depthwise": nn.Conv2d(4, 4, 3, groups=4), "grown": nn.ConvTranspose2d(4, 4, 2)}
    groups = {"attention": set(attention), "mlp": set(mlp), "linear": set(linear), "conv": set(conv)}
    return tree(layers | never), groups


def names(net: nn.Module, **choices) -> set[str]:
    return set(select(net, LoraConfig(**choices)))


@pytest.mark.parametrize("family", TREES)
def test_presets_take_exactly_their_layers(family):
    net, groups = model(family)
    attention, mlp = groups["attention"], groups["attention"] | groups["mlp"]
    assert len(attention) == COUNTS[family]
    assert names(net) == attention == names(net, preset="attention")
    assert names(net, preset="attention+mlp") == mlp
    assert names(net, preset="all-linear") == mlp | groups["linear"]
    assert names(net, preset="linear+conv") == mlp | groups["linear"] | groups["conv"]


def test_the_prefix_leads_every_name_and_the_order_is_the_models():
    net, _ = model("Wan 2.1")
    chosen = select(net, LoraConfig(preset="all-linear"), "diffusion_model.")
    inside = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    assert list(chosen) == ["diffusion_model." + path for path in inside]
    assert all(net.get_submodule(name.removeprefix("diffusion_model.")) is module for name, module in chosen.items())


@pytest.mark.parametrize("family", ["SD 1.5", "FLUX.1", "Wan 2.1"])
def test_the_prefix_does_not_change_the_choice(family):
    net, _ = model(family)
    for preset in ("attention", "attention+mlp"):
        prefixed = select(net, LoraConfig(preset=preset), "diffusion_model.")
        assert {name.removeprefix("diffusion_model.") for name in prefixed} == names(net, preset=preset)


# --- include and exclude ---


def test_include_adds_and_exclude_wins():
    net, groups = model("Wan 2.1")
    assert names(net, include=("ffn.0",)) == groups["attention"] | {"blocks.0.ffn.0"}
    assert names(net, include=("*.ffn.*",)) == groups["attention"] | groups["mlp"]
    assert names(net, exclude=("cross_attn",)) == {f"blocks.0.self_attn.{p}" for p in "qkvo"}
    assert names(net, exclude=("*.[kv]",)) == {f"blocks.0.{a}.{p}" for a in ("self_attn", "cross_attn") for p in "qo"}
    assert names(net, include=("ffn.0", "head.head"), exclude=("self_attn", "ffn.0")) == {
        "head.head", *(f"blocks.0.cross_attn.{p}" for p in "qkvo")
    }  # fmt: skip


def test_include_reaches_a_convolution_but_never_what_no_pair_can_correct():
    net, groups = model("Wan 2.1")
    assert names(net, include=("patch_embedding",)) == groups["attention"] | {"patch_embedding"}
    assert names(net, include=("norm", "depthwise", "token_embedding", "mixed", "grown")) == groups["attention"]


def test_patterns_also_match_under_the_prefix():
    net, _ = model("FLUX.1")
    chosen = select(net, LoraConfig(exclude=("diffusion_model.double_blocks.*",)), "diffusion_model.")
    assert set(chosen) == {f"diffusion_model.single_blocks.0.linear{i}" for i in (1, 2)}


# --- nothing chosen ---


def test_an_empty_choice_lists_what_exists():
    net, _ = model("FLUX.1")
    with pytest.raises(ValueError, match="select none of the model's 23 layers") as caught:
        select(net, LoraConfig(exclude=("attn", "single_blocks")))
    text = str(caught.value)
    assert "'attention'" in text and "['attn', 'single_blocks']" in text
    assert "double_blocks.*.img_attn.qkv x 1" in text and "and 11 more" in text


def test_the_list_folds_block_numbers():
    net = tree({f"blocks.{i}.mixer": nn.Linear(2, 2) for i in range(30)})
    with pytest.raises(ValueError, match=r"none of the model's 30 layers; it has: blocks\.\*\.mixer x 30$"):
        select(net, LoraConfig())


def test_a_model_without_layers_says_so():
    with pytest.raises(ValueError, match="no layers"):
        select(tree({"norm": nn.LayerNorm(3)}), LoraConfig(preset="linear+conv"))


# --- kinds ---


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Linear(3, 4), "linear"),
        (nn.Conv1d(3, 4, 3), "conv"), (nn.Conv2d(3, 4, 1), "conv"), (nn.Conv3d(3, 4, 2), "conv"),
        (nn.Conv2d(4, 4, 3, groups=2), None), (nn.ConvTranspose2d(3, 4, 2), None), (nn.Embedding(3, 4), None),
        (nn.LayerNorm((3, 4)), None), (nn.RMSNorm(4), None), (nn.GroupNorm(1, 4), None), (nn.BatchNorm2d(4), None),
        (nn.Bilinear(2, 3, 4), None), (nn.SiLU(), None), (nn.MultiheadAttention(4, 2), None),
    ],
)  # fmt: skip
def test_layer_kind(layer, kind):
    assert layer_kind(layer) == kind


@pytest.mark.usefixtures("comfyui")
def test_comfyuis_own_layers_have_the_same_kinds():
    import comfy.ops

    for ops in (comfy.ops.disable_weight_init, comfy.ops.manual_cast):
        assert layer_kind(ops.Linear(3, 4)) == "linear" and layer_kind(ops.Conv2d(3, 4, 3)) == "conv"
        assert layer_kind(ops.Conv3d(3, 4, 3)) == "conv" and layer_kind(ops.Conv2d(4, 4, 3, groups=4)) is None
        assert not any(map(layer_kind, (ops.Embedding(3, 4), ops.LayerNorm(4), ops.GroupNorm(1, 4))))


def test_a_weight_set_to_none_is_no_layer():
    layer = nn.Linear(3, 4)
    layer.weight = None
    assert layer_kind(layer) is None
