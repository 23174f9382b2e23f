"""LoRA Contract: what a LoRA is, what may be done with it, and where it is from."""

from __future__ import annotations

from comfy_api.latest import io

from ..lora_core.files.permissions import USES, Permissions
from ..lora_core.trust.contract import KINDS, ORIGINS, STRONGEST, Contract, on_one_line
from .types import CATEGORY, ContractType

OPEN = "not said"
_ANSWER = {OPEN: None, "yes": True, "no": False}
_CREDIT = {OPEN: None, "required": False, "not needed": True}
_ALLOWED = {OPEN: None, "allowed": True, "not allowed": False}
_COMMERCE = {
    OPEN: None, "none": (), "sell pictures": USES[:1], "sell pictures, run on Civitai": USES[:2],
    "sell pictures, run on any service": USES[:3], "everything, also sell the LoRA": USES,
}  # fmt: skip


class LoraContract(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoom_Contract",
            display_name="LoRA Contract",
            category=f"{CATEGORY}/train",
            description="Says what a LoRA is, what may be done with it and where its pictures are from. Train LoRA and Save LoRA write it into the file. Everything is optional; what is left empty and known is filled in.",
            search_aliases=["licence", "license", "permissions", "model card", "civitai", "copyright", "provenance"],
            inputs=[
                io.String.Input("concept", default="", optional=True, tooltip="The one thing that the LoRA teaches, in a few words, such as 'ink wash of harbours'."),
                io.Combo.Input("kind", options=[OPEN, *KINDS], default=OPEN, optional=True, tooltip="Which kind of thing that is."),
                io.String.Input("trigger", default="", optional=True, tooltip="The trigger word. Empty: the data set's."),
                io.String.Input("changes", default="", multiline=True, optional=True, tooltip="What the LoRA changes in a picture, in your words."),
                io.String.Input("leaves_alone", default="", multiline=True, optional=True, tooltip="What it is not meant to change. LoRA Report measures it."),
                io.Float.Input("strength", default=0.0, min=-STRONGEST, max=STRONGEST, step=0.05, optional=True, tooltip="The highest strength that you recommend. Load LoRA Stack says when a row is above it. 0: not said."),
                io.String.Input("license", default="", optional=True, tooltip="An SPDX id such as CC-BY-4.0, or LicenseRef- and a name for a licence without one."),
                io.Combo.Input("credit", options=list(_CREDIT), default=OPEN, optional=True, tooltip="Whether who uses the LoRA must name you. As on Civitai."),
                io.Combo.Input("commercial_use", options=list(_COMMERCE), default=OPEN, optional=True, tooltip="What may be done for money. As on Civitai."),
                io.Combo.Input("merges", options=list(_ALLOWED), default=OPEN, optional=True, tooltip="Whether merges and other files may be made of it. As on Civitai."),
                io.Combo.Input("other_license", options=list(_ALLOWED), default=OPEN, optional=True, tooltip="Whether merges may have other permissions than these. As on Civitai."),
                io.String.Input("author", default="", optional=True, tooltip="Who made the LoRA."),
                io.String.Input("contact", default="", optional=True, tooltip="Where people reach you, such as a page or an address. It is public."),
                io.Boolean.Input("own_work", default=False, optional=True, tooltip="Pictures are your own work."),
                io.Boolean.Input("licensed", default=False, optional=True, tooltip="Pictures are licensed for this."),
                io.Boolean.Input("public_domain", default=False, optional=True, tooltip="Pictures are in the public domain."),
                io.Boolean.Input("with_consent", default=False, optional=True, tooltip="Those who made the pictures, or who are in them, have agreed."),
                io.Combo.Input("real_person", options=list(_ANSWER), default=OPEN, optional=True, tooltip="Whether it shows a real person."),
                io.Combo.Input("living_artist", options=list(_ANSWER), default=OPEN, optional=True, tooltip="Whether it imitates the style of a living artist."),
                io.String.Input("air", default="", optional=True, advanced=True, tooltip="Civitai's name of the LoRA, such as urn:air:sdxl:lora:civitai:123456@789012."),
                io.String.Input("base", default="", optional=True, advanced=True, tooltip="The file of the base model. Empty: the one it was trained on."),
                io.String.Input("base_sha256", default="", optional=True, advanced=True, tooltip="Its sha256, 64 hex digits. Empty: that of the file it was trained on."),
            ],
            outputs=[ContractType.Output("contract", tooltip="For Train LoRA or Save LoRA.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, strength=0.0, air="", base_sha256="", concept="", trigger="", author="", contact=""):
        texts = {"concept": concept, "trigger": trigger, "author": author, "contact": contact, "air": air}
        try:
            Contract(
                **{name: (text or "").strip() for name, text in texts.items()}, strength=strength or None,
                base_sha256=_digest(base_sha256),
            )  # fmt: skip
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, concept="", kind=OPEN, trigger="", changes="", leaves_alone="", strength=0.0, license="", credit=OPEN,
        commercial_use=OPEN, merges=OPEN, other_license=OPEN, author="", contact="", own_work=False, licensed=False,
        public_domain=False, with_consent=False, real_person=OPEN, living_artist=OPEN, air="", base="", base_sha256="",
    ) -> io.NodeOutput:  # fmt: skip
        texts = {
            "concept": concept, "trigger": trigger, "changes": changes, "leaves_alone": leaves_alone, "base": base,
            "licence": license, "author": author, "contact": contact, "air": air,
        }  # fmt: skip
        asked = zip(ORIGINS, (own_work, licensed, public_domain, with_consent), strict=True)
        contract = Contract(
            **{name: on_one_line(text) for name, text in texts.items()}, kind="" if kind == OPEN else kind,
            base_sha256=_digest(base_sha256), strength=strength or None,
            permissions=Permissions(
                _CREDIT[credit], _COMMERCE[commercial_use], _ALLOWED[merges], _ALLOWED[other_license]
            ),
            origins=tuple(origin for origin, said in asked if said),
            real_person=_ANSWER[real_person], living_artist=_ANSWER[living_artist],
        )  # fmt: skip
        return io.NodeOutput(contract)


def _digest(text: str | None) -> str:
    return (text or "").strip().lower().removeprefix("0x")
