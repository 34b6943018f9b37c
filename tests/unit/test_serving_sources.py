"""What a model is called and where it comes from, said before anything is loaded."""

from pathlib import Path

import pytest

from ppe_lora.errors import ModelError, RunError, ServeError
from ppe_lora.export.contract import Contract, read_contract, write_contract
from ppe_lora.serving.settings import Settings
from ppe_lora.serving.sources import Source, name_models, parse_source
from ppe_lora.tasks.scores import ScoresTask
from tests.evaluations import predictions, write_run

TASK = ScoresTask(keys=("a", "b"), low=-5, high=5, decimals=1, instruction={"en": "Score {keys}."})
CONTRACT = Contract(name="mine", task=TASK, slots="request", read_out="posterior_mean", max_tokens=256)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("checkpoints/demo", Source(None, "checkpoints/demo", None, None)),
        ("base=smollm2-135m", Source("base", "smollm2-135m", None, None)),
        ("checkpoints/demo@http://h:1/v1", Source(None, "checkpoints/demo", "http://h:1/v1", None)),
        ("fast=d@https://h/a=b:c/v1#m", Source("fast", "d", "https://h/a=b:c/v1", "m")),
    ],
)
def test_sources(text, expected):
    """An address may itself contain `=` and `:`."""
    assert parse_source(text) == expected


@pytest.mark.parametrize("text", ["", "=x", "name=", "@http://h/v1", "name=@http://h/v1"])
def test_sources_without_a_folder_or_name(text):
    with pytest.raises(ServeError, match=r"expected \[NAME=\]FOLDER or \[NAME=\]FOLDER@URL"):
        parse_source(text)


def test_a_contract_comes_back_as_it_was_written(tmp_path):
    """A task of other keys, range and decimals than the default must not turn into the default."""
    write_contract(tmp_path, CONTRACT)
    assert read_contract(tmp_path) == CONTRACT
    (tmp_path / "ppe_lora.json").write_bytes(b'{"format":1,"name":"\xff"}')
    with pytest.raises(ModelError, match=r"ppe_lora\.json: expected the contract of an exported model; got: "):
        read_contract(tmp_path)


def test_a_base_model_is_asked_the_task_of_the_first_one(tmp_path):
    write_contract(tmp_path / "run" / "merged", CONTRACT)
    named = name_models([parse_source(str(tmp_path / "run")), parse_source("smollm2-135m")], Settings())
    assert list(named) == ["mine", "smollm2-135m"]
    assert (named["mine"].contract, named["mine"].asked) == (CONTRACT, CONTRACT)
    assert (named["smollm2-135m"].contract, named["smollm2-135m"].asked) == (None, CONTRACT)


def test_a_run_is_found_by_its_name_and_a_name_that_means_nothing_is_said(tmp_path, monkeypatch):
    """`compare` took the names of runs, and others only their folders; `serve nosuch` spoke of others that were not
    there."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("checkpoints/good"), predictions([1, 2]))
    named = name_models([parse_source("good"), parse_source("b=base")], Settings())
    assert [(name, one.source.place) for name, one in named.items()] == [("good", "checkpoints/good"), ("b", "base")]
    with pytest.raises(RunError) as error:
        name_models([parse_source("nosuch")], Settings())
    assert str(error.value) == "nosuch: expected a run or an export; got neither; finished runs: good"
    with pytest.raises(RunError) as error:
        name_models([parse_source("base"), parse_source("good")], Settings())
    assert str(error.value) == (
        "base: expected a run or an export as the first model, whose task the others are asked; got neither; finished "
        "runs: good"
    )


def test_names_are_checked_before_models_are_loaded(tmp_path):
    """A typo in --shadow should not cost the minutes that a 7B takes to load."""
    write_contract(tmp_path, CONTRACT)
    source = Source(None, str(tmp_path), None, None)
    with pytest.raises(ServeError, match="--shadow: expected one of mine; got 'x'"):
        name_models([source], Settings(shadow="x"))
    with pytest.raises(ServeError, match="--default: expected one of mine; got 'y'"):
        name_models([source], Settings(default="y"))
    with pytest.raises(ServeError, match="two; use NAME="):
        name_models([source, source], Settings())


@pytest.mark.parametrize(
    ("host", "safe"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("box.local", False)],
)
def test_what_only_this_machine_can_reach(host, safe):
    assert Settings(host=host).is_loopback is safe
