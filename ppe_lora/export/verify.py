"""Decode with a merged model as a stranger would: in a process that has none of our code."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.errors import ModelError
from ppe_lora.export.apart import run_apart


def reload_and_decode(
    model_dir: Path,
    prompts: Sequence[Sequence[int]],
    *,
    end_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    batch_rows: int,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    device: str | None = None,
) -> list[list[int]]:
    """Greedy ids of a model folder, loaded and decoded by plain transformers in a process of its own.

    Free the GPU of the caller's model first where both do not fit.

    Args:
        model_dir: An exported model folder.
        prompts: Prompt ids, unpadded.
        end_ids: Ids that end an answer.
        pad_id: Fills prompts from the left; it is masked.
        max_new_tokens: Tokens after which an answer that has not ended is cut.
        batch_rows: Rows decoded together, sorted by length.
        dtype: Type to load the weights in; `auto` is the stored one.
        device: Where to decode; by default the GPU where there is one.

    Returns:
        The new ids of each prompt, in the order given, cut after the first end id.

    Raises:
        ModelError: The folder cannot be reloaded or decoded; the message holds the last lines of the process.
    """
    if not prompts:
        raise ValueError("expected at least one prompt; got none")
    asked = {
        "prompt_ids": [list(prompt) for prompt in prompts],
        "end_ids": list(end_ids),
        "pad_id": pad_id,
        "max_new_tokens": max_new_tokens,
        "batch": batch_rows,
        "dtype": dtype,
        "device": device,
    }
    with tempfile.TemporaryDirectory(prefix="ppe-reload-") as folder:
        prompts_file, out_file = Path(folder) / "prompts.json", Path(folder) / "out.json"
        write_json(prompts_file, asked)
        ended = run_apart("plain_reload.py", model_dir, prompts_file, out_file)
        if ended.status:
            raise ModelError(
                f"{model_dir}: plain transformers could not reload and decode it (exit {ended.status}); "
                f"the last lines it printed:\n{ended.last_lines}"
            )
        new_ids: list[list[int]] = read_json(out_file)["new_ids"]
    return new_ids
