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
