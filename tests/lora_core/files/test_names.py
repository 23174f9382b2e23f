"""Names for files: what fills a placeholder is made safe, what was typed is refused while there is time."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.lora_core.files.names import check_template, filled_in, safe_name


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        ("ink", "ink_16"), ("Ink: Style v2", "Ink_ Style v2_16"), ('the "best" <one>', "the _best_ _one__16"),
        ("What? A LoRA|v*", "What_ A LoRA_v__16"), ("styles/ink\\wash", "styles_ink_wash_16"),
        ("../../out", "_.._out_16"), ("/etc/x", "_etc_x_16"), ("C:\\x", "C__x_16"),
        ("two\nlines\tand\r\nmore", "two lines and more_16"),
        ("ink. . ", "ink_16"), (" .hidden", "hidden_16"), ("\u202eink\x00\udc80", "ink_16"),
        ("50% %rank%", "50% %rank%_16"), ("\u6c34\u58a8", "\u6c34\u58a8_16"), ("", "_16"), ("...", "_16"),
    ],
)  # fmt: skip
def test_titles_become_names(title: str, wanted: str):
    assert filled_in("%title%_%rank%", {"title": title, "rank": 16}) == wanted == safe_name(wanted)


@pytest.mark.parametrize("title", ["con", "NUL", "aux.v2", "lpt\u00b9", "", " ", "..", "\n"])
def test_a_title_alone_is_a_name(title: str):
    made = filled_in("%title%", {"title": title})
    assert safe_name(made) == made and safe_name(f"{made}.safetensors")


@pytest.mark.parametrize("title", ["x" * 250, "\u58a8" * 120, "\U0001f3a8" * 80, "a " * 200])
def test_long_titles_are_cut_and_the_rest_of_the_name_stays(title: str):
    made = filled_in("styles/%title%_%rank%_%trigger%", {"title": title, "rank": 16, "trigger": "sks"})
    folder, name = made.split("/")
    assert folder == "styles" and name.endswith("_16_sks") and 100 < len(name.encode()) <= 150
    assert title.startswith(name.removesuffix("_16_sks"))
    both = filled_in("%title% %title% %trigger%", {"title": title, "trigger": title})
    assert len(both.encode()) <= 150 and safe_name(both) == both


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=300),
    st.text(max_size=300),
    st.sampled_from(["%title%", "a/%title%_%trigger%", "%title%/%trigger%"]),
)
def test_every_title_gives_a_name(title: str, trigger: str, template: str):
    made = filled_in(template, {"title": title, "trigger": trigger})
    assert safe_name(made) == made and made.count("/") == template.count("/")
    assert safe_name(f"{made}_0002.safetensors")
    assert ".." not in PurePosixPath(made).parts


def test_what_was_typed_stays():
    assert filled_in("Styles\\ink v1/%rank%", {"rank": 4}) == "Styles/ink v1/4"
    assert filled_in("con", {"title": "x"}) == "con", "and is refused where it is checked"


@pytest.mark.parametrize("template", ["../%title%", "/%title%", "C:/%title%", "%title%/../x", "a?", "con", "x" * 190])
def test_what_was_typed_wrong_is_refused_before_anything_runs(template: str):
    with pytest.raises(ValueError, match="use a plain name"):
        check_template(template)
    check_template("styles/%title%_%rank%")
