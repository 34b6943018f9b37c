"""Shared fixtures: no network, quiet libraries, and one small model that speaks the format."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that answers in the format of `tests.runs.TASK`."""
    from tests.runs import make_speaker

    return make_speaker(tmp_path_factory.mktemp("speaker"))


@pytest.fixture(scope="session")
def served_run(tmp_path_factory: pytest.TempPathFactory, speaker: Path) -> Path:
    """A run folder with merged weights and a calibration, of the task of `tests.runs.TASK`."""
    from tests.serving import make_run

    return make_run(tmp_path_factory.mktemp("served"), speaker)
