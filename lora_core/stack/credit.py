"""Names who made the LoRAs of a picture: in a line for a caption, as a list, and as XMP for programs that know IPTC.

The XMP says what made the picture, IPTC's Digital Source Type (cv.iptc.org/newscodes/digitalsourcetype), and whom to
credit (photoshop:Credit). ComfyUI's savers write what they are given as a JSON text, between quotation marks: the
packet has no character that JSON would spell otherwise, so that readers find it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
FORMS = ("line", "list", "markdown")
_MARK = "LoRA Loom"
_PACKET = (
    "<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?>"
    f"<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='{_MARK}'>"
    "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description rdf:about='' "
    "xmlns:Iptc4xmpExt='http://iptc.org/std/Iptc4xmpExt/2008-02-29/' "
    "xmlns:photoshop='http://ns.adobe.com/photoshop/1.0/'>"
    "<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>"
    "<photoshop:Credit>{credit}</photoshop:Credit>"
    "</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
)


def credits(entries: Sequence[Mapping[str, Any]], form: str = "line") -> str:
    """Return the LoRAs of a picture by entries of `attribution.entry`, each once, as one of FORMS; "" for none."""
    told = list(dict.fromkeys(_named(each, form == "markdown") for each in entries))
    if not told:
        return ""
    if form == "line":
        return f"LoRAs: {'; '.join(told)}"
    return "\n".join(f"- {each}" for each in told)


def xmp(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return a packet in ASCII without double quotes, backslashes and line breaks."""
    credit = "".join(_spelled(letter) for letter in escape(credits(entries)) if letter.isprintable())
    return _PACKET.format(source=SOURCE, credit=credit)


def is_ours(packet: object) -> bool:
    """Return whether a packet was written here."""
    return isinstance(packet, str) and f"x:xmptk='{_MARK}'" in packet[:400]


def _spelled(letter: str) -> str:
    return letter if letter.isascii() and letter not in "\"'\\" else f"&#{ord(letter)};"


def _named(entry: Mapping[str, Any], marked: bool) -> str:
    """Title, author, strength and licence of one LoRA, with the program whose side file says so."""
    name = entry.get("title") or entry["name"].rpartition("/")[2].removesuffix(".safetensors")
    source = entry.get("source") or {}
    area = f" on {100 * entry['area']:.0f} % of the picture" if "area" in entry else ""
    about = [f"strength {entry['strength']:g}{area}"]
    for key in ("license", "permissions"):
        if text := entry.get(key):
            about.append(f"{text}, as {source[key]} says" if key in source else text)
    author = entry.get("author")
    by = f" by {author}" + (f" (as {source['author']} says)" if "author" in source else "") if author else ""
    return f"{f'**{name}**' if marked else name}{by} ({'; '.join(about)})"
