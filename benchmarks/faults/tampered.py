"""Run and export folders that somebody has changed: none is served, and each says what was changed and what to do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from case import Case
from disk import prepare
from safetensors.torch import load_file, save_file

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.errors import PpeError


def cases(quick: bool, scratch: Path) -> list[Case]:
    """One case for each folder and change; all of them also with `quick`."""
    before, after = scratch / "before", scratch / "after"
    prepare(scratch / "work", before, after)
    finished, work = after / "report", scratch / "tampered"
    found = []
    for name, change in RUN.items():
        shutil.copytree(finished, work)
        shutil.rmtree(work / "checkpoints" / "run" / "merged")
        found.append(_served(f"run: {name}", work, work / "checkpoints" / "run", change))
        shutil.rmtree(work)
    for name, change in EXPORT.items():
        shutil.copytree(finished, work)
        found.append(_served(f"export: {name}", work, work / "checkpoints" / "run" / "merged", change))
        shutil.rmtree(work)
    return found


def _served(name: str, work: Path, folder: Path, change: Callable[[Path], object]) -> Case:
    from ppe_lora.serving.settings import Settings
    from ppe_lora.serving.sources import name_models, open_models, parse_source

    change(folder)
    os.chdir(work)
    try:
        models = name_models([parse_source(str(folder))], Settings())
        open_models(models, Settings(), lambda name, rows: None)
        observed, passed = "served", False
    except PpeError as error:
        observed, passed = str(error).removeprefix(str(work)), True
    except Exception as error:
        observed, passed = f"traceback: {error!r}", False
    finally:
        os.chdir(work.parent)
    return Case(name, "words", observed[:200], passed)


def _weights(name: str) -> Callable[[Path], None]:
    """Other numbers in the first tensor, of the same size, at the same time."""

    def change(folder: Path) -> None:
        path = folder / name
        times = path.stat()
        tensors = load_file(path)
        first = next(iter(tensors))
        save_file(tensors | {first: tensors[first] + 1}, path, metadata={"format": "pt"})
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return change


def _json(name: str, **values: object) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / name, read_json(folder / name) | values)


def _cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-7])


def _head(folder: Path) -> None:
    np.savez(folder / "head.npz", layers=[1], weight=np.ones((1, 2, 64)), offset=np.zeros(2))


def _recipe(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("rank: 4", "rank: 5"))


def _calibration(folder: Path) -> None:
    eye = np.eye(2).tolist()
    content = {"kind": "none", "keys": ["a", "b"], "weight": eye, "offset": [50.0, 50.0], "width": 1.0}
    content |= {"coverage": 0.8, "rows": 30, "cv_mse_norm": {"none": 0.1}}
    (folder / "calibration.json").write_text(json.dumps(content))


RUN: dict[str, Callable[[Path], object]] = {
    "adapter, same size and time": _weights("best/adapter_model.safetensors"),
    "adapter of another epoch": lambda folder: shutil.copy(
        folder / "epochs" / "001" / "adapter" / "adapter_model.safetensors", folder / "best"
    ),
    "adapter cut": _cut("best/adapter_model.safetensors"),
    "adapter missing": lambda folder: (folder / "best" / "adapter_model.safetensors").unlink(),
    "scale of the adapter": _json("best/adapter_config.json", lora_alpha=999),
    "calibration with a negative width": _json("calibration.json", width=-5.0),
    "calibration made up": _calibration,
    "head made up": _head,
    "calibration and head deleted": lambda folder: (folder / "calibration.json").unlink(),
    "recipe": _recipe,
    "predictions of the test rows": _cut("test/eval_predictions.jsonl"),
    "metrics of an epoch": _json("epochs/001/eval_metrics.json", mse_norm=0.0),
    "evaluation missing": lambda folder: shutil.rmtree(folder / "test"),
    "training's manifest missing": lambda folder: (folder / "manifest.json").unlink(),
}
EXPORT: dict[str, Callable[[Path], object]] = {
    "weights, same size and time": _weights("model.safetensors"),
    "weights cut": _cut("model.safetensors"),
    "another file of weights": lambda folder: shutil.copy(folder / "model.safetensors", folder / "more.safetensors"),
    "calibration with a negative width": _json("calibration.json", width=-5.0),
    "head made up": _head,
    "contract: other order of keys": lambda folder: (folder / "ppe_lora.json").write_text(
        (folder / "ppe_lora.json").read_text().replace('"a"', '"c"').replace('"b"', '"a"').replace('"c"', '"b"')
    ),
    "end token": _json("generation_config.json", eos_token_id=5),
    "tokenizer cut": _cut("tokenizer.json"),
    "chat template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}"),
    "configuration": _json("config.json", rms_norm_eps=0.5),
    "certificate missing": lambda folder: (folder / "parity.json").unlink(),
    "an index that names other weights": lambda folder: write_json(
        folder / "model.safetensors.index.json", {"weight_map": {"lm_head.weight": "more.safetensors"}}
    ),
}
