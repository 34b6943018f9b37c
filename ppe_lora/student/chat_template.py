"""Chat templates that write the same prompt on every day.

Llama's templates put today's date into the system message. A model would be served prompts that it never saw, and an
export would be measured on others than those it answers. The date is therefore fixed, in training and in whatever is
exported.
"""

import datetime
import json
import re
from pathlib import Path
from typing import Any

from ppe_lora.artifacts import read_json, write_json, write_text
from ppe_lora.errors import ModelError

DAY = datetime.date(2024, 7, 26)
"""What Llama's own templates write where there is no clock."""
_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_CHANGING = re.compile(r"strftime_now(?!\s+is\b)|\|\s*random\b")


def pin_dates(template: Any, where: Path) -> Any:
    """A chat template, or several by name, with `DAY` in place of today's date.

    Args:
        template: As transformers has it; None for none.
        where: The model folder, for the message.

    Raises:
        ModelError: It writes something else that changes from one prompt to the next.
    """
    if isinstance(template, dict):
        return {name: pin_dates(one, where) for name, one in template.items()}
    if not isinstance(template, str):
        return template
    pinned = _DATE.sub(lambda call: json.dumps(DAY.strftime(call[2])), template)
    if found := _CHANGING.search(pinned):
        line = pinned.count("\n", 0, found.start()) + 1
        raise ModelError(
            f"{where}: expected a chat template that writes the same prompt every time; got {found[0]} in its line "
            f"{line}, and a model would be served prompts that it was not trained on; put a fixed text there"
        )
    return pinned


def pin_files(folder: Path) -> None:
    """Pin the chat templates among the tokenizer files of a folder, for engines that read them.

    Raises:
        ModelError: As `pin_dates`.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        template = path.read_text(encoding="utf-8")
        if (pinned := pin_dates(template, folder)) != template:
            write_text(path, pinned)
    for path in (folder / "tokenizer_config.json", folder / "chat_template.json"):
        config = read_json(path) if path.is_file() else {}
        written = config.get("chat_template")
        if isinstance(written, list):  # [{"name": ..., "template": ...}]
            pinned = [one | {"template": pin_dates(one["template"], folder)} for one in written]
        else:
            pinned = pin_dates(written, folder)
        if pinned != written:
            write_json(path, config | {"chat_template": pinned})
