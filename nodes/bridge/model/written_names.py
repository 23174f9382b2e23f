"""Names of layers in files of a style: which are of it, and which one a layer is written under."""

from __future__ import annotations

from ....lora_core.files.written import FileLayer


def speaks(style: str, name: str) -> bool:
    if style == "kohya":
        return name.startswith(("lora_unet_", "lora_te")) and not name.startswith("lora_te_model")
    return name.startswith(("unet.", "transformer.", "text_encoder.", "text_encoder_2.", "text_encoder_3."))


def preferred(style: str, layer: str, names: list[FileLayer], numbered: bool) -> list[FileLayer]:
    """Return one way to write a layer: diffusers' names over ComfyUI's own, slices only where there is no whole. kohya
    calls text encoders te1, te2 and so on when they are `numbered`, and the only one te."""
    whole = [name for name in names if name.rows is None]
    if not whole:
        unique = {name.rows: name for name in names if name.rows is not None}
        return [unique[rows] for rows in sorted(unique)]
    own = "lora_unet_" + layer.removeprefix("diffusion_model.").replace(".", "_")
    return [max(whole, key=lambda file: (*_rank_of(style, file.name, own, numbered), file.name))]


def _rank_of(style: str, name: str, own: str, numbered: bool) -> tuple[bool, ...]:
    if style == "kohya":
        return (name != own, name.startswith("lora_te_") != numbered)
    return (name.endswith(".to_out.0"),)
