"""Shared fixtures: no network, quiet libraries, and one small model that speaks the format."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ppe_lora  # noqa: F401  # before torch, which reads how its threads are to wait

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Headless Chromium. Not for the session: while it is open, no test can start an event loop of its own."""
    from playwright.sync_api import sync_playwright

    from tests.pages import CHROMIUM

    if not CHROMIUM.is_file():
        pytest.skip(f"no Chromium at {CHROMIUM}; on Debian and Ubuntu: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()
