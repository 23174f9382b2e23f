"""Nodes that live in the browser only: their packs have no class for them on the server, and change the graph with
JavaScript when it is sent."""

from __future__ import annotations

CURE = "open it in ComfyUI, export it with Workflow > Export (API), and run that file"
_TYPES = {
    "SetNode": "KJNodes", "GetNode": "KJNodes",
    "Reroute (rgthree)": "rgthree-comfy", "Label (rgthree)": "rgthree-comfy", "Bookmark (rgthree)": "rgthree-comfy",
    "Fast Muter (rgthree)": "rgthree-comfy", "Fast Bypasser (rgthree)": "rgthree-comfy",
    "Fast Groups Muter (rgthree)": "rgthree-comfy", "Fast Groups Bypasser (rgthree)": "rgthree-comfy",
    "Fast Actions Button (rgthree)": "rgthree-comfy", "Random Unmuter (rgthree)": "rgthree-comfy",
    "Mute / Bypass Relay (rgthree)": "rgthree-comfy", "Mute / Bypass Repeater (rgthree)": "rgthree-comfy",
    "Node Collector (rgthree)": "rgthree-comfy", "Node Combiner (rgthree)": "rgthree-comfy",
    "ReroutePrimitive|pysssss": "ComfyUI-Custom-Scripts",
}  # fmt: skip
_EVERYWHERE = (
    "Anything Everywhere",
    "Anything Everywhere3",
    "Anything Everywhere?",
    "Prompts Everywhere",
    "Seed Everywhere",
)
_GROUPS = ("workflow/", "workflow>")  # what group nodes were called, before there were subgraphs


def why_browser_only(kind: str) -> str | None:
    """Why a node that the server has no class for cannot run here; None for one that a pack would bring."""
    if kind.startswith(_GROUPS):
        return f"{kind!r} is a group node of old; open the file in ComfyUI, which makes a subgraph of it, and save"
    pack = _TYPES.get(kind)
    return f"{kind} of {pack} works in the browser only; {CURE}" if pack else None


def why_everywhere(kind: str) -> str | None:
    """Why a node that the server does have is not enough here: it connects others when the browser sends a workflow."""
    return (
        f"{kind} of cg-use-everywhere connects other nodes in the browser only; {CURE}" if kind in _EVERYWHERE else None
    )
