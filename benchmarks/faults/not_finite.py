"""NaN and infinity, and cut files of tensors, at every place of a run: words, and the good epoch before survives.

Weights, optimizer and gradient are spoiled in a running training; a base model, `best/`, the head, the calibration, the
merged weights and the heads that teach on the disk.
"""

import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case import TRACEBACK, Case, last_line, ppe_forked, words_only
from safetensors.torch import load_file, save_file

from ppe_lora.artifacts import read_json

STEPS = 7
"""An epoch's."""
TRAIN = (
    "train: {epochs: 3, rows_per_step: 8, rows_per_micro_step: 8, learning_rate: 1e-3, checkpoint_minutes: 1e-6, "
    "objective: {raft: 1, head: 1}}"
)
EVALUATE = "evaluate: {gate: 0.0, latency_rows: 0, read_out: calibrated}"
STAGES = ("train run.yaml", "evaluate run.yaml", "export run.yaml", "report run")
BAD = {"NaN": float("nan"), "inf": float("inf")}
Spoil = Callable[[Path], None]


def cases(quick: bool, scratch: Path) -> list[Case]:
    """One case for each place and kind of a number that is none, or of damage."""
    model = prepare(scratch)
    kinds = dict(list(BAD.items())[:1]) if quick else BAD
    found = []
    for kind, bad in kinds.items():
        found += [_base(scratch, model, kind, bad, held) for held in ("none", "nf4", "int8")]
        for what, spoil, last in (("adapter", _adapter, 0), ("optimizer", _optimizer, 1), ("gradient", _gradient, 1)):
            # An optimizer and a gradient spoil the adapter one step later: the epoch's last step is hit in each case.
            for step in (STEPS + 2, 2 * STEPS - last):
                found.append(_training(scratch, f"{kind} in the {what}", partial(spoil, bad), step))
        found.append(_first_epoch(scratch, kind, partial(_adapter, bad)))
        for name, command in (
            ("best/adapter_model.safetensors", "evaluate run.yaml"),
            ("best/adapter_model.safetensors", "export run.yaml"),
            ("merged/model.safetensors", "serve run --port 0"),
            ("head.npz", "export run.yaml"),
            ("calibration.json", "report run"),
        ):
            found.append(_stored(scratch, f"{kind} in {name}", name, command, partial(_put, bad)))
    for damage, cut in (("empty", _empty), ("cut", _cut)):
        for name, command in (
            ("best/adapter_model.safetensors", "evaluate run.yaml evaluate.batch_rows=3"),
            ("merged/model.safetensors", "serve run --port 0"),
            ("head.npz", "export run.yaml"),
        ):
            found.append(_stored(scratch, f"{damage} {name}", name, command, cut))
        found.append(_base_file(scratch, model, damage, cut))
    found += [_rate(scratch, rate) for rate in ("1000.0", "1e30")]
    return found


def prepare(scratch: Path) -> Path:
    """A model that answers in the format, a data set, and a finished run of it in `whole`."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.runs import make_data, make_recipe, make_speaker

    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    model, whole = scratch / "model", scratch / "whole"
    speaking = multiprocessing.get_context("fork").Process(target=make_speaker, args=(model,))
    speaking.start()  # apart: a process that has trained cannot be forked into one that trains
    speaking.join()
    make_data(whole / "data" / "d", train=STEPS * 8, valid=24)
    make_recipe(whole, model, TRAIN, EVALUATE, "export: {verify_rows: 4}")
    for command in STAGES:
        done = ppe_forked(*command.split(), cwd=whole)
        assert done.returncode == 0, done.stdout + done.stderr
    return model


def _base(scratch: Path, model: Path, kind: str, bad: float, held: str) -> Case:
    work, base = _work(scratch, "bad base"), scratch / "bad base" / "base"
    shutil.copytree(model, base)
    weights = load_file(base / "model.safetensors")
    tensor = "model.layers.1.mlp.up_proj.weight"
    weights[tensor][0, 0] = bad
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    done = ppe_forked("train", "run.yaml", f"student.model={base}", f"student.quantization={held}", "name=n", cwd=work)
    passed = words_only(done) and tensor in done.stderr
    return Case(f"one {kind} in a base held in {held}", f"words that name {tensor}", last_line(done), passed)


def _base_file(scratch: Path, model: Path, damage: str, cut: Spoil) -> Case:
    work, base = _work(scratch, "cut base"), scratch / "cut base" / "base"
    shutil.copytree(model, base)
    cut(base / "model.safetensors")
    done = ppe_forked("train", "run.yaml", f"student.model={base}", "name=n", cwd=work)
    passed = words_only(done) and "model.safetensors: expected a whole safetensors file" in done.stderr
    return Case(f"{damage} base weights", "words that name the file", last_line(done), passed)


def _training(scratch: Path, name: str, spoil: Callable[[Any, Any], None], step: int) -> Case:
    """A fault in the second epoch: the first one is selected, evaluated, exported and reported."""
    work = _work(scratch, "training", unfinished=True)
    train, *others = (command.split() for command in STAGES)
    done = ppe_forked(*train, cwd=work, before=partial(_after_step, step, spoil))
    manifest = work / "checkpoints" / "run" / "manifest.json"
    selected = read_json(manifest)["selected_epoch"] if manifest.is_file() else None
    passed = done.returncode == 0 and selected == 1 and "Training has diverged and ends here. Epoch 1" in done.stdout
    passed = passed and all(ppe_forked(*command, cwd=work).returncode == 0 for command in others)
    observed = f"{last_line(done)}, epoch {selected} selected"
    return Case(f"{name} after step {step}", "epoch 1 selected, measured and exported, with words", observed, passed)


def _first_epoch(scratch: Path, kind: str, spoil: Callable[[Any, Any], None]) -> Case:
    work = _work(scratch, "first epoch", unfinished=True)
    done = ppe_forked("train", "run.yaml", cwd=work, before=partial(_after_step, STEPS, spoil))
    passed = words_only(done) and "Training has diverged: lower train.learning_rate" in done.stderr
    passed = passed and not (work / "checkpoints" / "run" / "best").exists()
    return Case(f"{kind} in the adapter after the first epoch", "words, and nothing selected", last_line(done), passed)


def _rate(scratch: Path, rate: str) -> Case:
    work = _work(scratch, f"rate {rate}", unfinished=True)
    done = ppe_forked("train", "run.yaml", f"train.learning_rate={rate}", "evaluate.gate=0.5", cwd=work)
    advised = "ower train.learning_rate" in done.stderr and "raise train.learning_rate" not in done.stderr
    return Case(f"learning rate {rate}", "words: lower it", last_line(done), words_only(done) and advised)


def _stored(scratch: Path, name: str, file: str, command: str, spoil: Spoil) -> Case:
    """A file of a finished run: words, or what was damaged is made again from what is whole."""
    work = _work(scratch, "stored")
    path = work / "checkpoints" / "run" / file
    if not path.is_file():  # the correction has no use for the head: one that appears is no better than a spoiled one
        np.savez(path, layers=np.array([1]), weight=np.ones((1, 2, 64)), offset=np.zeros(2))
    spoil(path)
    broken = path.read_bytes()
    done = ppe_forked(*command.split(), cwd=work)
    mended = done.returncode == 0 and TRACEBACK not in done.stdout + done.stderr and path.read_bytes() != broken
    observed = f"{last_line(done)}{', made again' if mended else ''}"
    return Case(f"{name}: {command}", "words, or made again", observed, words_only(done) or mended)


def _work(scratch: Path, name: str, unfinished: bool = False) -> Path:
    """A fresh copy of the working folder."""
    work = scratch / name
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(scratch / "whole", work)
    if unfinished:
        shutil.rmtree(work / "checkpoints" / "run")
    return work


def _after_step(step: int, spoil: Callable[[Any, Any], None]) -> None:
    """Let something be spoiled after that optimizer step."""
    from ppe_lora.student.callbacks import Checkpoints
    from ppe_lora.student.trainer import PpeTrainer

    original, trained = Checkpoints.on_step_end, PpeTrainer.training_step

    def on_step_end(self: Any, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> Any:
        if state.global_step == step:
            spoil(model, kwargs["optimizer"])
        return original(self, args, state, control)

    def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = trained(self, model, *args, **kwargs)
        if getattr(model, "spoiled_gradient", None) is not None:
            next(weight for weight in model.parameters() if weight.grad is not None).grad.fill_(model.spoiled_gradient)
        return loss

    Checkpoints.on_step_end, PpeTrainer.training_step = on_step_end, training_step  # type: ignore[method-assign]


def _adapter(bad: float, model: Any, optimizer: Any) -> None:
    next(weight for weight in model.parameters() if weight.requires_grad).data[0, 0] = bad


def _optimizer(bad: float, model: Any, optimizer: Any) -> None:
    for state in optimizer.state.values():
        state["exp_avg"].fill_(bad)


def _gradient(bad: float, model: Any, optimizer: Any) -> None:
    model.spoiled_gradient = bad


def _put(bad: float, path: Path) -> None:
    if path.suffix == ".safetensors":
        weights = load_file(path)
        weights[min(weights)].view(-1)[0] = bad
        save_file(weights, path, metadata={"format": "pt"})
    elif path.suffix == ".npz":
        arrays = dict(np.load(path))
        np.savez(path, **(arrays | {"weight": np.where(np.arange(1) == 0, bad, arrays["weight"])}))
    else:
        number = "NaN" if torch.tensor(bad).isnan() else "Infinity"
        path.write_text(path.read_text().replace('"width": ', f'"width": {number}, "was": ', 1))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
