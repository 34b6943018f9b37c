"""What lies beside exported weights so that a server starts and a client asks it right, without our package."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ppe_lora.artifacts import write_json, write_text
from ppe_lora.tasks.scores import ScoresTask

CLIENTS = Path(__file__).parent / "clients"
_HEAD = '#!/bin/sh\nset -eu\ncd "$(dirname "$0")"\n'


def write_script(path: Path, text: str, **fields: object) -> None:
    """Write an executable shell script that works from its own folder; `text` is a Jinja template of `fields`."""
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(_HEAD + text)
    write_text(path, template.render(fields))
    path.chmod(0o755)


def write_client(
    folder: Path, client: str, task: ScoresTask, model: str, max_tokens: int, guide: Mapping[str, Any]
) -> None:
    """Copy a client, and write the `client.json` that it reads.

    Args:
        folder: Where to write.
        client: Its file name among `CLIENTS`.
        task: Gives the instructions.
        model: The name that the model is served by, or its folder.
        max_tokens: Tokens after which an answer is cut.
        guide: What a request carries so that the engine writes only valid answers.
    """
    shutil.copyfile(CLIENTS / client, folder / client)
    write_json(
        folder / "client.json",
        {
            "model": model,
            "instructions": {language: task.instruction_text(language) for language in task.instruction},
            "max_tokens": max_tokens,
            "guide": guide,
        },
    )
