"""What is trained on, resumed, exported and served is what was written and measured: files are looked at."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ppe_lora import pipeline
from ppe_lora.artifacts import read_json, write_json
from ppe_lora.corpus.build import build_dataset
from ppe_lora.errors import DataError, FileError, Interrupted, ModelError, RunError
from ppe_lora.recipe import load_recipe
from ppe_lora.serving.settings import Settings
from ppe_lora.serving.sources import name_models, open_models, parse_source
from ppe_lora.student import callbacks
from ppe_lora.student.tokenizer import load_tokenizer
from tests.runs import as_measured, make_data, make_recipe
from tests.serving import SECTIONS
from tests.tiny import CHAT_TEMPLATE, tiny_llama


@pytest.fixture
def run(served_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run with its data, in its working directory."""
    shutil.copytree(served_run.parents[1], tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return Path("checkpoints/run")


def serve(place: Path) -> None:
    """Load what stands behind a name, as `ppe-lora serve` does."""
    settings = Settings()
    open_models(name_models([parse_source(str(place))], settings), settings, lambda name, rows: None)


def change_weights(path: Path) -> None:
    """The same names, shapes and size, other numbers."""
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, path, metadata={"format": "pt"})


def negative_width(path: Path) -> None:
    write_json(path, read_json(path) | {"width": -5.0})


def other_head(path: Path) -> None:
    with np.load(path) as arrays:
        found = dict(arrays)
    np.savez(path, **found | {"offset": found["offset"] + 50})


def append(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "change", "where", "remedy"),
    [
        ("best/adapter_model.safetensors", change_weights, ".", "put them back, or train again with --fresh"),
        ("best/adapter_config.json", append, ".", "put them back, or train again with --fresh"),
        ("config.yaml", append, ".", "put them back, or train again with --fresh"),
        ("epochs/001/eval_metrics.json", append, "epochs/001", "put them back, or train again with --fresh"),
        ("epochs/002/eval_predictions.jsonl", append, "epochs/002", "put them back, or train again with --fresh"),
        ("calibration.json", negative_width, "test", "`ppe-lora evaluate RECIPE`"),
        ("test/eval_predictions.jsonl", append, "test", "`ppe-lora evaluate RECIPE`"),
        ("test/eval_metrics.json", append, "test", "`ppe-lora evaluate RECIPE`"),
    ],
)
def test_a_changed_run_is_neither_served_nor_reported_nor_exported(
    run: Path, name: str, change: Callable[[Path], None], where: str, remedy: str
) -> None:
    """Adapter, calibration and predictions changed by hand were served with `"calibrated": true`."""
    shutil.rmtree(run / "merged")
    change(run / name)
    folder = run if where == "." else run / where
    found = f"../{name}" if name == "calibration.json" else str((run / name).relative_to(folder))
    message = f"{folder}: expected the files that manifest.json notes; got others: {found} differs; {remedy}"
    for deed in (
        lambda: serve(run),
        lambda: pipeline.report("run"),
        lambda: pipeline.export(load_recipe(Path("run.yaml"))),
        lambda: pipeline.compare("run", "base"),
    ):
        with pytest.raises(FileError, match=f"^{re.escape(message)}$"):
            deed()


def test_a_calibration_that_nobody_measured_is_not_served(run: Path) -> None:
    """Of an evaluation that was interrupted, or copied from another run."""
    shutil.rmtree(run / "merged")
    shutil.rmtree(run / "test")
    message = "calibration.json( and head.npz)? of a finished evaluation; got one that has not ended"
    with pytest.raises(RunError, match=message):
        serve(run)


def test_an_export_does_not_take_a_calibration_that_was_not_proven(run: Path) -> None:
    """Put beside the weights later, it was served with `"calibrated": true`."""
    shutil.copy(run / "calibration.json", run / "merged" / "another.json")
    with pytest.raises(ModelError, match=r"got others: another\.json is not in it; export the run again"):
        serve(run)


def test_an_export_with_an_earlier_correction_is_not_served(run: Path) -> None:
    """After another evaluation the run served what its figures do not speak of."""
    write_json(run / "calibration.json", read_json(run / "calibration.json") | {"width": 2.5})
    as_measured(run)
    message = (
        "checkpoints/run/merged: expected an export with the calibration.json that checkpoints/run was measured with; "
        "got an earlier one; `ppe-lora export RECIPE`"
    )
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        serve(run)
    serve(run / "merged")


def test_a_changed_export_is_made_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`export` said "complete and unchanged" of a folder that `serve` then refused."""
    negative_width(run / "merged" / "calibration.json")
    with pytest.raises(ModelError, match=r"calibration\.json differs; export the run again"):
        serve(run)
    pipeline.export(load_recipe(Path("run.yaml")))
    assert "checkpoints/run/adapter: complete and unchanged" in capsys.readouterr().out
    serve(run)


def test_a_changed_evaluation_is_made_again(run: Path) -> None:
    before = (run / "test" / "eval_predictions.jsonl").read_text(encoding="utf-8")
    append(run / "test" / "eval_predictions.jsonl")
    pipeline.evaluate(load_recipe(Path("run.yaml")))
    assert (run / "test" / "eval_predictions.jsonl").read_text(encoding="utf-8").count("\n") == before.count("\n")
    pipeline.report("run")


def test_a_base_model_replaced_in_place_is_named(served_run: Path, speaker: Path, tmp_path: Path, monkeypatch) -> None:
    """Same file names, same sizes, other weights: it was merged and served in silence."""
    shutil.copytree(served_run.parents[1], tmp_path / "work")
    shutil.copytree(speaker, tmp_path / "base")
    monkeypatch.chdir(tmp_path / "work")
    make_data(Path("data/d"))
    recipe = load_recipe(make_recipe(Path(), tmp_path / "base", *SECTIONS, name="own"))
    monkeypatch.setattr(callbacks.Checkpoints, "on_epoch_end", _stop_after_an_epoch)
    with pytest.raises(Interrupted):
        pipeline.train(recipe)
    change_weights(tmp_path / "base" / "model.safetensors")
    message = (
        f"{tmp_path / 'base'}: expected the base model that checkpoints/own was trained on; got other files: "
        "model.safetensors differs; put them back, or train again with --fresh"
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        pipeline.train(recipe, resume=True)
    shutil.copy(speaker / "model.safetensors", tmp_path / "base")
    pipeline.train(recipe, resume=True)
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    changed = re.escape(message.replace("model.safetensors differs", "chat_template.jinja differs"))
    for stage in (pipeline.evaluate, pipeline.export, lambda recipe: serve(Path("checkpoints/own"))):
        with pytest.raises(ModelError, match=f"^{changed}$"):
            stage(recipe)


def _stop_after_an_epoch(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


def test_a_row_file_that_was_changed_is_not_trained_on(run: Path) -> None:
    """It was "unchanged": `--resume` went on over other rows, and the train mean's error jumped within one run."""
    recipe = load_recipe(Path("built.yaml")) if Path("built.yaml").is_file() else _generated()
    data = Path("data/built")
    build_dataset(recipe, data)
    train = data / "ft_request_param_train.jsonl"
    whole = train.read_text(encoding="utf-8")
    train.write_text("".join(whole.splitlines(keepends=True)[1:]), encoding="utf-8")
    found = f"{data}: expected the rows that were built; got others: {train.name} differs; put them back"
    for deed in (lambda: build_dataset(recipe, data), lambda: pipeline.train(recipe), lambda: pipeline.run(recipe)):
        with pytest.raises(DataError, match=f"^{re.escape(found)}"):
            deed()
    other = recipe.model_copy(update={"seed": 9})
    with pytest.raises(DataError, match="expected rows as they were built, to replace them; got others"):
        build_dataset(other, data)
    train.unlink()
    with pytest.raises(DataError, match=f"{train.name} is missing"):
        pipeline.train(recipe)
    assert build_dataset(recipe, data).made
    assert train.read_text(encoding="utf-8") == whole


def _generated():
    Path("built.yaml").write_text(
        "data: {name: built, source: {kind: generate, rows: 80}, split: {valid: 0.2, test: 0.2}}\n"
        "student: {model: smollm2-135m}\n"
    )
    return load_recipe(Path("built.yaml"))


def test_a_template_with_a_date_gives_the_same_prompt_every_day(tmp_path: Path) -> None:
    """In training, in serving and in what is exported."""
    folder = tiny_llama(tmp_path / "base")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}\n" + CHAT_TEMPLATE)
    tokenizer = load_tokenizer(folder)
    prompt = tokenizer.prompt_ids([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    assert tokenizer.decode(prompt).startswith("2024-07-26\n")
    tokenizer.save(tmp_path / "exported")
    assert "strftime_now" not in (tmp_path / "exported" / "chat_template.jinja").read_text()
