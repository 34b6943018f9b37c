"""`ppe-lora doctor`: what the machine can do, and whether a recipe fits."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import torch

from ppe_lora import __version__
from ppe_lora.console import console
from ppe_lora.corpus.rows import read_rows, split_path
from ppe_lora.errors import EngineError
from ppe_lora.evaluation import baselines
from ppe_lora.export.onnx import write_onnx
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.schema import Data, Lora, Objective, Recipe, Student, Train
from ppe_lora.student import estimate as estimates
from ppe_lora.student.encode import EncodedRow, encode_rows
from ppe_lora.student.estimate import CARDS, Card, estimate, expected_data, fit, fit_here, fitting_rows, need_bytes
from ppe_lora.student.machine import Size, describe_machine, model_size, quantization_problem
from ppe_lora.student.row_tokens import RowTokens, answer_tokens, branch_tokens, counted_tokens
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.tasks.scores import ScoresTask
from tests.command import ppe_lora
from tests.runs import TASK, make_data, make_recipe, make_rows
from tests.tiny import tiny_llama, tiny_mistral3


def _recipe(model: str, train: Train | None = None, **student: Any) -> Recipe:
    return Recipe(name="r", data=Data(name="d"), student=Student(model=model, **student), train=train or Train())


def test_the_machine_is_described() -> None:
    facts = {fact.name: fact for fact in describe_machine()}
    assert facts["torch"].value == torch.__version__
    assert facts["bitsandbytes nf4"].value.endswith("works on cpu") or torch.cuda.is_available()
    assert {"python", "CPU", "memory", "mistral-common", "smollm2-135m", "disk"} <= facts.keys()
    assert all(fact.value for fact in facts.values())


def test_bug_reports_can_name_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert ppe_lora("--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantization_is_tried_out(kind: Any) -> None:
    assert quantization_problem(kind, torch.device("cpu")) is None
    assert quantization_problem(kind, torch.device("meta")) is not None


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.3", 7.25e9),
        ("mistralai/Ministral-8B-Instruct-2410", 8.02e9),
        ("mistralai/Ministral-3-3B-Instruct-2512-BF16", 3.4e9),
        ("mistralai/Ministral-3-8B-Instruct-2512-BF16", 8.5e9),
        ("mistralai/Mistral-Small-24B-Instruct-2501", 23.6e9),
        ("smollm2-135m", 0.135e9),
        ("someone/else", None),
    ],
)
def test_sizes_are_known_by_name(model: str, parameters: float | None) -> None:
    size = model_size(Student(model=model))
    assert (size and size.parameters) == parameters


def test_a_local_folder_is_counted(tmp_path: Path) -> None:
    """The vision tower is not part of it; a tied output head counts once."""
    size = model_size(Student(model=str(tiny_mistral3(tmp_path / "m"))))
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 128 + 2 * 32
    assert size == Size(2 * 131_072 * 32 + 2 * layer + 32, 2 * 131_072 * 32)
    folder = tiny_llama(tmp_path / "l")
    size = model_size(Student(model=str(folder)))
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64
    assert size == Size(259 * 64 + 2 * layer + 64, 259 * 64)


def test_the_need_is_the_sum_in_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral-7B in NF4 at rank 16, 8 rows of 112 tokens behind 60 shared ones, by hand: 4.2 + 0.7 + 6.7 + 1.5 GB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(estimates, "bfloat16_supported", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=24e9))
    eight = Train(rows_per_micro_step=8)
    recipe = _recipe("mistralai/Mistral-7B-Instruct-v0.3", eight, quantization="nf4", lora=Lora(rank=16))
    assert fit_here(recipe) == (
        "yes",
        "mistralai/Mistral-7B-Instruct-v0.3 (nf4) needs about 13.1 of 24.0 GB of GPU memory: "
        "weights 4.2, adapter 0.7, activations 6.7, the rest 1.5",
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=12e9))
    assert fit_here(recipe)[0] == "no"
    small = _recipe("mistralai/Mistral-7B-Instruct-v0.3", Train(gradient_checkpointing=True), quantization="nf4")
    assert fit_here(small)[0] == "yes"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=14e9))
    assert fit_here(recipe)[0] == "tight"


def test_without_a_gpu_memory_is_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 7B was said to fit any CPU with the memory, and a 135M model to need a fifth of what it takes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100e9))
    assert fit_here(_recipe("mistralai/Mistral-7B-Instruct-v0.3", quantization="nf4")) == (
        "no",
        "mistralai/Mistral-7B-Instruct-v0.3 (nf4) needs a GPU: on this CPU a training takes weeks",
    )
    fits, why = fit_here(_recipe("smollm2-135m"))
    assert fits == "yes"
    needed = float(why.split(" needs about ")[1].split()[0])
    assert 4.0 < needed < 6.0


@pytest.mark.parametrize("path", sorted(Path("recipes").rglob("*.yaml")), ids=str)
def test_a_recipe_that_names_a_card_fits_it(path: Path) -> None:
    """What the header says of memory is what `ppe-lora estimate` says of a GPU with bfloat16."""
    said = re.search(r"GPU, (\d+) GB \((\d+) GB:", path.read_text(encoding="utf-8"))
    if said is None:
        assert path.parent.name != "recipes" or load_recipe(path).student.model == "smollm2-135m"
        return
    recipe = load_recipe(path)
    size, rows = model_size(recipe.student), recipe.train.rows_per_micro_step
    assert size is not None
    assert rows != "auto"
    need = need_bytes(recipe, size, rows=rows, on_gpu=True, bfloat16=True).total
    assert int(said[2]) == round(need / 1e9)
    assert fit(need, float(said[1]) * 1e9) == "yes"


def test_an_unknown_size_is_said_to_be_unknown() -> None:
    expected = (None, "someone/else: unknown size, so no estimate; load it once to see")
    assert fit_here(_recipe("someone/else")) == expected


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("empty", "folder has no weights; expected config.json and *.safetensors in it"),
        ("missing", "no such folder"),
        ("./missing", "no such folder"),
        ("someone/else", "unknown size; download it and name its folder"),
    ],
)
def test_an_estimate_without_a_size_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str, why: str
) -> None:
    """An empty or misspelt folder was to be downloaded."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("r.yaml").write_text("data: {name: d}\nstudent: {model: smollm2-135m}\n")
    assert ppe_lora("estimate", "r.yaml", f"student.model={model}") == 2
    assert capsys.readouterr().err == f"error: {model}: {why}\n"


def test_a_broken_recipe_does_not_end_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One typo in recipes/ hid what fits; outside the repository there was an empty table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "width", 200)
    assert ppe_lora("doctor") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no recipes/ here"
    Path("recipes").mkdir()
    Path("recipes/a.yaml").write_text("data: {name: d}\nstudent: {model: m}\nseeed: [1]\n")
    Path("recipes/b.yaml").write_text("data: {name: d}\nstudent: {model: someone/else}\n")
    assert ppe_lora("doctor") == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row and row[0].startswith("recipes/")] == [
        ["recipes/a.yaml", "-", "recipes/a.yaml:3: seeed: unknown key; did you mean 'seed'?"],
        ["recipes/b.yaml", "-", "someone/else: unknown size, so no estimate; load it once to see"],
    ]


def test_missing_extras_say_how_to_install_them_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`pip install ppe_lora[...]` asks an index that has no such package, and ignores the pinned versions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "width", 200)
    monkeypatch.setattr(baselines, "embedding_answers", lambda *_: None)
    make_data(Path("data/d"), train=40)
    assert ppe_lora("baselines", str(make_recipe(tmp_path, Path("m")))) == 0
    assert " .venv/bin/pip install -c constraints.txt -e '.[embeddings]' " in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    Path("tokenizer.json").touch()
    with pytest.raises(EngineError) as error:
        write_onnx(None, tmp_path, None, tmp_path)  # type: ignore[arg-type]
    assert str(error.value) == (
        "onnx: expected the package onnxscript; got none; .venv/bin/pip install -c constraints.txt -e '.[onnx]'"
    )


def test_speed_by_hand() -> None:
    """A card of 1 TFLOP/s and a model of 1.1e9 linear parameters: 4 x 1.1e9 x tokens at 40 %."""
    card = Card("slow", 24e9, 1e12, 1e12)
    recipe = _recipe("x", Train(epochs=2, rows_per_micro_step=8))
    told = estimate(recipe, Size(1.2e9, 0.1e9), card, train_rows=100, valid_rows=10)
    row = (60 / 8 + 64 + 48) * 4 * 1.1e9 / 0.4e12
    assert told.rows_per_s == pytest.approx(1 / row)
    assert told.training_s == pytest.approx(2 * 100 * row)
    assert told.evaluation_s == pytest.approx(2 * 10 * (64 + 96 + 60) * 2 * 1.1e9 / 0.4e12)
    numbers = Train(epochs=2, rows_per_micro_step=8, objective=Objective(raft=1.0))
    slower = estimate(_recipe("x", numbers), Size(1.2e9, 0.1e9), card, train_rows=100, valid_rows=10)
    assert told.rows_per_s / slower.rows_per_s == pytest.approx((119.5 + 60) / 119.5)
    packed = _recipe("x", Train(epochs=2, rows_per_micro_step=8), quantization="nf4")
    nf4 = estimate(packed, Size(1.2e9, 0.1e9), card, train_rows=100, valid_rows=10)
    assert nf4.rows_per_s < told.rows_per_s
    assert nf4.need.weights < told.need.weights


def test_a_7b_fits_the_cards_it_should() -> None:
    """NF4 with 2 rows on 12 GB; bfloat16 with 16 rows on 80 GB but not on 24 GB."""
    size = Size(7.25e9, 0.27e9)
    small = need_bytes(_recipe("x", quantization="nf4"), size, rows=2, on_gpu=True, bfloat16=True)
    large = need_bytes(_recipe("x"), size, rows=16, on_gpu=True, bfloat16=True)
    memory = {card.name: card.memory for card in CARDS}
    assert small.total < memory["RTX 3060 12 GB"]
    assert memory["RTX 4090"] < large.total < memory["A100 80 GB"]


def test_auto_takes_the_rows_that_fit() -> None:
    """A 7B in NF4 needs 6.4 GB and 0.8 GB for each of 8 rows, 0.2 of the memory stays free; a CPU takes 8 rows."""
    size = Size(7.25e9, 0.27e9)
    recipe = _recipe("x", Train(rows_per_step=16), quantization="nf4")

    def rows(free: float, processes: int = 1, of: Recipe = recipe, on_gpu: bool = True) -> int:
        return fitting_rows(of, size, free, on_gpu=on_gpu, bfloat16=on_gpu, processes=processes)

    need = {count: need_bytes(recipe, size, rows=count, on_gpu=True, bfloat16=True).total for count in (1, 8, 16)}
    assert rows(need[8] / 0.8 * 1.001) == 8
    assert rows(need[8] / 0.8 * 0.999) == 4
    assert rows(need[1] / 2) == 1
    assert (rows(80e9), rows(80e9, processes=4)) == (16, 4)
    assert rows(80e9, of=_recipe("x", Train(rows_per_step=12), quantization="nf4")) == 4
    assert rows(80e9, of=_recipe("x", Train(rows_per_step=16, rows_per_micro_step=8))) == 8
    assert rows(80e9, on_gpu=False) == 8
    assert rows(80e9, on_gpu=False, of=_recipe("x", Train(rows_per_step=3))) == 1


@pytest.mark.parametrize(
    ("found", "named", "flops"),
    [
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA H200", "NVIDIA H200", 788e12),
        ("Some Other GPU", "Some Other GPU (speed of an A100)", 312e12),
    ],
)
def test_a_gpu_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch, found: str, named: str, flops: float) -> None:
    """A card taken for another one makes every time in the table wrong."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name=found, total_memory=50e9))
    card = estimates.this_machine()
    assert (card.name, card.flops, card.memory) == (named, flops, 50e9)


@pytest.mark.parametrize(
    ("task", "branches", "answer"),
    [
        (ScoresTask(), 10, 16 + 18 + 12 + 2),
        (ScoresTask(high=1000), 100, 16 + 18 + 18 + 2),
        (ScoresTask(decimals=1), 200, 16 + 18 + 24 + 2),
        (ScoresTask(keys=tuple(f"k{number}" for number in range(60))), 10, 60 + 180 + 115 + 2),
        (ScoresTask(keys=("a",), low=1, high=5), 0, 1 + 3 + 1 + 2),
    ],
    ids=["usual", "to a thousand", "a decimal", "sixty keys", "one to five"],
)
def test_tokens_are_counted_from_the_task(task: ScoresTask, branches: int, answer: int) -> None:
    """Ten branches a score and 48 tokens an answer were assumed of every task: 46 GB were needed of 16 believed."""
    assert (branch_tokens(task), answer_tokens(task)) == (branches, answer)


def test_memory_grows_with_the_task() -> None:
    """A step of 16 rows of 6 scores: 10 branches each of whole numbers to 100, 100 to 1000."""
    numbers = Train(rows_per_micro_step=16, objective=Objective(raft=1.0))
    recipe, size = _recipe("x", numbers), Size(7.25e9, 0.27e9)
    wide = recipe.model_copy(update={"task": ScoresTask(high=1000)})
    token = 6.7 * 2**20  # of a 7B in bfloat16
    need, wider = (need_bytes(one, size, rows=16, on_gpu=True, bfloat16=True) for one in (recipe, wide))
    assert need.activations == pytest.approx((60 + 16 * (64 + 48 + 60)) * token)
    assert wider.activations == pytest.approx((60 + 16 * (64 + 54 + 600)) * token)
    free = need.total / 0.8 * 1.001
    auto = {"train": Train(rows_per_step=16, objective=Objective(raft=1.0))}
    assert fitting_rows(recipe.model_copy(update=auto), size, free, on_gpu=True, bfloat16=True) == 16
    assert fitting_rows(wide.model_copy(update=auto), size, free, on_gpu=True, bfloat16=True) == 2


def test_tokens_are_counted_in_the_rows_there_are() -> None:
    """Three rows of an instruction of 5 tokens, requests of 1, 2 and 9, answers of 4."""
    rows = [EncodedRow(str(own), [1] * (5 + own), [2] * 4, shared=5) for own in (1, 2, 9)]
    found = counted_tokens(_recipe("x"), rows)
    assert found == RowTokens(5, 4, 4, 60, pytest.approx(np.std([5, 6, 13])), 13)
    assert found.mean(2) == 5 / 2 + 8
    assert found.high(1) == 5 + 13  # the longest row
    assert found.high(100) == pytest.approx(5 / 100 + 8 + 3 * found.spread / 10)


def test_rows_of_a_recipe_are_counted_where_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`estimate` asked for --rows though the data set was there, and beside it the file to import."""
    monkeypatch.chdir(tmp_path)
    asked = expected_data(_recipe("x"), Path("data/d"))
    assert (asked.train_rows, asked.valid_rows) == (800, 100)
    model = tiny_llama(tmp_path / "model")
    lines = [json.dumps({"id": row.id, "text": row.request, **row.target}) for row in make_rows(30, seed=1)]
    Path("mine.jsonl").write_text("\n".join(lines) + "\n")
    source = "kind: import, source_dir: ., files: {f: {path: mine.jsonl}}, request: f.text, target: {a: f.a, b: f.b}"
    recipe = make_recipe(tmp_path, model, "track: {}")
    text = recipe.read_text().replace("data: {name: d}", f"data: {{name: d, source: {{{source}}}}}")
    recipe.write_text(text)
    found = expected_data(load_recipe(recipe), Path("data/d"))
    assert (found.train_rows, found.valid_rows) == (24, 3)
    assert found.known_from.startswith("data/d is not built: ")

    make_data(Path("data/d"), train=40, valid=7)
    found = expected_data(load_recipe(recipe), Path("data/d"))
    assert (found.train_rows, found.valid_rows) == (40, 7)
    assert found.known_from == "rows counted in data/d, tokens in 40 of them"
    rows = encode_rows(read_rows(split_path(Path("data/d"), "train"), TASK), TASK, load_tokenizer(model), 512).encoded
    assert found.tokens == counted_tokens(load_recipe(recipe), rows)
    assert ppe_lora("estimate", str(recipe)) == 0
    printed = capsys.readouterr().out
    assert "run: 40 rows" in printed
    assert "rows counted in data/d, tokens in 40 of them: " in printed
    shutil.rmtree(model)
    told = expected_data(load_recipe(recipe), Path("data/d")).known_from
    assert told.startswith("rows counted in data/d; tokens assumed: student.model: expected an existing folder")


def test_the_speed_of_a_cpu_is_that_of_the_products_it_will_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """4.1 hours were told of a training that took 43 minutes: bfloat16 products were measured as float32 ones, and
    slowed by what ran beside."""
    speeds = {"highest": 1e10, "medium": 9e10}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(estimates, "_cpu_flops", speeds.__getitem__)
    card = estimates.this_machine("medium")
    assert (card.flops, card.exact_flops) == (9e10, 1e10)
    recipe, size = _recipe("x", Train(rows_per_micro_step=8)), Size(1.2e9, 0.1e9)
    fast, slow = (
        estimate(recipe, size, estimates.this_machine(name), train_rows=9, valid_rows=9)
        for name in ("medium", "highest")
    )
    assert slow.training_s / fast.training_s == pytest.approx(9)
    assert slow.evaluation_s == fast.evaluation_s  # evaluations are always in whole float32
