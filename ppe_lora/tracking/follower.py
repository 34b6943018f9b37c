"""The pipeline's side of tracking: start a process per tracker that follows the run folder, and never wait for it."""

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from ppe_lora.artifacts import read_json, write_text
from ppe_lora.boundary import is_first_process
from ppe_lora.console import warn
from ppe_lora.errors import RunError
from ppe_lora.locks import holding
from ppe_lora.private import opener
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.track import Track

PACKAGE_ROOT = Path(__file__).parents[2]
TITLES = {"wandb": "W&B", "weave": "Weave"}


class Place(NamedTuple):
    """What a tracker has in the run folder, under `tracking/`."""

    run_dir: Path
    tracker: str

    @property
    def folder(self) -> Path:
        """What both trackers share."""
        return self.run_dir / "tracking"

    @property
    def run_id(self) -> Path:
        """The run's name in every tracker."""
        return self.folder / "run_id"

    @property
    def log(self) -> Path:
        """What the process and the tracker's library print."""
        return self.folder / f"{self.tracker}.log"

    @property
    def ledger(self) -> Path:
        """What has been sent or written, as JSON."""
        return self.folder / f"{self.tracker}.json"

    @property
    def problem(self) -> Path:
        """Why the last try did not send everything; absent when it did."""
        return self.folder / f"{self.tracker}.problem"

    @property
    def lock(self) -> Path:
        """Held by the process that sends."""
        return self.folder / f"{self.tracker}.lock"

    def read_ledger(self) -> dict[str, Any]:
        """The ledger; empty for a run that was never tracked."""
        return dict(read_json(self.ledger)) if self.ledger.is_file() else {}


def answered_dir(folder: Path) -> Path:
    """Where a server leaves what it answered, for the process that traces it."""
    return folder / "answered"


class Followers:
    """The processes that follow a run while its stages work, one per tracker of the recipe; as a context manager.

    They read the run folder and write below `tracking/` only. Their standard input is the life line: when it closes,
    because the stages are done or this process died, they send the rest and end, within `follow.FINISH_S` seconds.
    """

    def __init__(self, recipe: Recipe, data_dir: Path, run_dir: Path) -> None:
        self.track, self.data_dir, self.run_dir = recipe.track, data_dir, run_dir
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start them, once, in the first process of a launch; the run folder is there."""
        if self._running or not is_first_process() or os.environ.get("WANDB_MODE") == "disabled":
            return
        for tracker in trackers(self.track):
            try:
                self._running[tracker] = launch(Place(self.run_dir, tracker), self.data_dir, self.track)
            except OSError as error:  # no memory for a process, say: no reason to lose a training
                self._warn(tracker, str(error))

    def wait_for_earlier_ones(self, say: Callable[[str], None]) -> None:
        """Wait for processes that still send an earlier run of this folder: it is about to be deleted.

        Args:
            say: Called with who is waited for.
        """
        for place in (Place(self.run_dir, tracker) for tracker in TITLES):
            if place.lock.is_file():
                with holding(self.run_dir, wait=say, lock=place.lock):
                    pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let them finish by themselves; say what is known to have gone wrong so far."""
        for tracker, process in self._running.items():
            if process.stdin is not None:
                process.stdin.close()
            with contextlib.suppress(FileNotFoundError):
                self._warn(tracker, Place(self.run_dir, tracker).problem.read_text(encoding="utf-8").strip())

    def _warn(self, tracker: str, problem: str) -> None:
        warn(
            f"{TITLES[tracker]}: {problem}. Everything is in {self.run_dir}; "
            f"`ppe-lora track sync {self.run_dir}` sends it later"
        )


def trackers(track: Track) -> list[str]:
    """The trackers that a recipe turns on."""
    return [name for name in TITLES if getattr(track, name) is not None]


def is_online(track: Track, has_key: Callable[[], bool]) -> bool:
    """Whether to send now, or to write files for later. Offline, nobody is asked for a key.

    Raises:
        RunError: The mode is online, but there is no key.
    """
    told = {"auto": os.environ.get("WANDB_MODE")}.get(track.mode, track.mode)
    if told not in ("online", None):
        return False
    if told == "online" and not has_key():
        raise RunError("no W&B key: set WANDB_API_KEY, or run `wandb login`")
    return told == "online" or has_key()


def missing_for_tracking(track: Track) -> list[str]:
    """What the trackers of a recipe lack on this machine, one sentence for each; no server is asked."""
    wanted = trackers(track)
    told = [
        f"track.{name}: expected the package {name}; got none; install it, or leave track.{name} out"
        for name in wanted
        if find_spec(name) is None
    ]
    if wanted:
        try:
            is_online(track, _may_have_key)
        except RunError as error:
            told.append(f"track.mode: {error}; until then nothing is sent")
    return told


def _may_have_key() -> bool:
    """Whether there is a key, or a file where wandb would look for one."""
    files = (Path(os.environ.get("NETRC", "~/.netrc")), Path("~/_netrc"))
    return bool(os.environ.get("WANDB_API_KEY")) or any(file.expanduser().is_file() for file in files)


def launch(place: Place, data_dir: Path, track: Track) -> subprocess.Popen[bytes]:
    """Start the process that follows a run for one tracker."""
    place.folder.mkdir(parents=True, exist_ok=True)
    place.problem.unlink(missing_ok=True)
    if not place.run_id.is_file():
        # An agent of a W&B sweep names the runs itself.
        write_text(place.run_id, os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12])
    command = [sys.executable, "-P", "-m", "ppe_lora.tracking.follow", place.tracker]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    if track.mode != "auto":
        environment.pop("WANDB_MODE", None)  # wandb finds no key where this says offline
    with open(place.log, "ab", opener=opener) as log:
        # A session of its own: Ctrl-C is for the training, which then closes the life line. No inherited output: a
        # reader of the training's output would otherwise wait for the tracker, too.
        return subprocess.Popen(
            [*command, str(place.run_dir), str(data_dir), track.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
