"""Greedy decoding by plain transformers: the proof that exported weights need none of this project's code.

A script of its own, run as `python -P plain_reload.py MODEL_DIR prompts.json out.json`. It imports torch and
transformers only, and the way it decodes is the shortest correct one, on purpose.

prompts.json: {"prompt_ids": [[1, 2], [3]], "end_ids": [2], "pad_id": 0, "max_new_tokens": 64, "batch": 32,
"dtype": "auto", "device": null}. A null device is the GPU where there is one. out.json: {"new_ids": [[...], ...]}, each
cut after its first end id.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


def main(model_dir: Path, prompts_file: Path, out_file: Path) -> None:
    """Load the model, decode every prompt, write the new ids."""
    asked: dict[str, Any] = json.loads(prompts_file.read_text(encoding="utf-8"))
    device = asked["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=asked["dtype"], local_files_only=True, trust_remote_code=False
    )
    model.to(device).eval()
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=asked["max_new_tokens"],
        eos_token_id=asked["end_ids"],
        pad_token_id=asked["pad_id"],
    )
    prompts: list[list[int]] = asked["prompt_ids"]
    new_ids: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(prompts), asked["batch"]):
        batch = by_length[start : start + asked["batch"]]
        width = max(len(prompts[index]) for index in batch)
        missing = [width - len(prompts[index]) for index in batch]
        ids = [[asked["pad_id"]] * gap + prompts[index] for gap, index in zip(missing, batch, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in missing]
        with torch.no_grad():
            output = model.generate(
                input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
            )
        for index, row in zip(batch, output[:, width:].tolist(), strict=True):
            ends = [position for position, token in enumerate(row) if token in asked["end_ids"]]
            new_ids[index] = row[: ends[0] + 1] if ends else row
    out_file.write_text(json.dumps({"new_ids": new_ids}), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
    if any(name.partition(".")[0] == "ppe_lora" for name in sys.modules):
        sys.exit("plain_reload.py imported ppe_lora: what it decoded proves nothing")
