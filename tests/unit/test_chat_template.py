"""A chat template writes the same prompt on every day."""

import re
from pathlib import Path

import pytest

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.errors import ModelError
from ppe_lora.student.chat_template import pin_dates, pin_files

LLAMA = (
    "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- endif %}\n{%- endif %}\n{{ date_string }}'
)


def test_todays_date_is_pinned() -> None:
    """A model trained on one day was served prompts that it had never seen on the next."""
    pinned = LLAMA.replace('strftime_now("%d %b %Y")', '"26 Jul 2024"')
    assert pin_dates(LLAMA, Path("m")) == pinned
    assert pin_dates({"default": LLAMA, "tools": "x"}, Path("m")) == {"default": pinned, "tools": "x"}
    assert pin_dates(None, Path("m")) is None


@pytest.mark.parametrize(
    ("template", "found", "line"),
    [
        ("a\n{{ strftime_now(format) }}", "strftime_now", 2),
        ("{% set now = strftime_now %}{{ now('%Y') }}", "strftime_now", 1),
        ("{{ ['Hi', 'Hello'] | random }}", "| random", 1),
    ],
)
def test_what_else_changes_is_refused(template: str, found: str, line: int) -> None:
    message = (
        f"m: expected a chat template that writes the same prompt every time; got {found} in its line {line}, and a "
        "model would be served prompts that it was not trained on; put a fixed text there"
    )
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        pin_dates(template, Path("m"))


def test_exported_templates_are_pinned(tmp_path: Path) -> None:
    """An engine that reads the exported template would write the date of the day it serves on."""
    (tmp_path / "chat_template.jinja").write_text(LLAMA)
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": [{"name": "default", "template": LLAMA}], "a": 1})
    write_json(tmp_path / "chat_template.json", {"chat_template": LLAMA})
    pin_files(tmp_path)
    pinned = pin_dates(LLAMA, tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == pinned
    assert read_json(tmp_path / "tokenizer_config.json") == {
        "chat_template": [{"name": "default", "template": pinned}],
        "a": 1,
    }
    assert read_json(tmp_path / "chat_template.json") == {"chat_template": pinned}
