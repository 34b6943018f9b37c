"""GPTQ by llm-compressor: a script of its own, for an environment of its own (its torch and transformers are older).

Run as `python -P compress.py MODEL_DIR rows.json OUT_DIR` with `configs/compress-requirements.txt` installed.
rows.json: {"rows": [[1, 2], [3]]}: token ids, prompt and answer, of training rows; they are what the weights are fitted
to answer alike. What comes out is the compressed-tensors format: 4 bits a weight, which vLLM and transformers load.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM

GROUP_SIZES = (128, 64, 32)


def main(model_dir: Path, rows_file: Path, out: Path) -> None:
    """Load the model, quantize its linear layers but the output head, save it."""
    rows: list[list[int]] = json.loads(rows_file.read_text(encoding="utf-8"))["rows"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype="auto", local_files_only=True, trust_remote_code=False
    )
    model.to(device)
    # Weights share a scale in groups along the input, which must divide it.
    inputs = {module.in_features for module in model.model.modules() if isinstance(module, torch.nn.Linear)}
    size = next((size for size in GROUP_SIZES if all(width % size == 0 for width in inputs)), None)
    if size is None:
        sys.exit(f"expected layers whose inputs are multiples of {GROUP_SIZES[-1]}; got {sorted(inputs)}")
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=size)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    data = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows])
    oneshot(
        model=model,
        dataset=data,
        recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]),
        num_calibration_samples=len(rows),
        max_seq_length=max(map(len, rows)),
        batch_size=1,  # nothing is padded or cut
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(out, save_compressed=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
