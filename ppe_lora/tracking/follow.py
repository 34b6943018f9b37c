"""The process that follows a run folder for one tracker: `python -m ppe_lora.tracking.follow TRACKER RUN DATA TRACK`.

With `served` as the tracker it follows the folder in which a server leaves what it answered; DATA is not read then.

Nobody waits for it. A tracker that refuses, hangs or fails is tried again while the run goes on, and once more at its
end; what could not be sent stays on disk.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ppe_lora.artifacts import write_text
from ppe_lora.locks import holding
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.track import Track
from ppe_lora.redaction import mask
from ppe_lora.tracking.follower import Place
from ppe_lora.tracking.run_folder import RunFolder

POLL_S = 2.0
RETRY_S = 60.0
FINISH_S = 1800.0
"""Longest time for sending the rest after the run's end: an adapter of hundreds of megabytes over a slow line. Then the
process ends itself and its children."""


class Tracker(Protocol):
    """Where a run is shown."""

    def update(self) -> None:
        """Send what is new in the run folder."""
        ...

    def finish(self) -> None:
        """Close; return when everything that was handed over has arrived, or raise."""
        ...


def follow(place: Place, make: Callable[[], Tracker], ended: threading.Event) -> int:
    """Keep a tracker up to date until the run's process ends; 0 when everything has arrived."""
    while True:
        last = ended.is_set()
        tracker = None
        try:
            tracker = make()
            while not (last := ended.is_set()):
                tracker.update()
                place.problem.unlink(missing_ok=True)
                ended.wait(POLL_S)
            tracker.update()
            tracker.finish()
            place.problem.unlink(missing_ok=True)
            return 0
        except Exception as error:  # whatever a tracker's library raises must not end the following
            print(mask(traceback.format_exc()), file=sys.stderr)
            write_text(place.problem, _in_words(error) + "\n")
        if tracker is not None:
            with contextlib.suppress(Exception):
                tracker.finish()  # what it did take, it may still send
        if last:
            return 1
        ended.wait(RETRY_S)


def main(arguments: list[str]) -> int:
    """Follow until standard input closes, then send the rest."""
    tracker, run, data, track = arguments
    place, settings = Place(Path(run), tracker), Track.model_validate_json(track)
    os.nice(10)
    os.umask(0o077)  # what trackers' libraries write holds requests, too
    ended = threading.Event()
    threading.Thread(target=_watch_life_line, args=(place, ended), daemon=True).start()

    def wait(holder: str) -> None:
        write_text(place.problem, "another process is still sending this run\n")

    with holding(place.run_dir, wait=wait, lock=place.lock):

        def make() -> Tracker:
            if tracker == "served":
                from ppe_lora.tracking.served_traces import ServedTraces

                return ServedTraces(place, settings)
            folder = RunFolder(load_recipe(place.run_dir / "config.yaml"), Path(data), place.run_dir)
            if tracker == "wandb":
                from ppe_lora.tracking.wandb_run import WandbRun

                return WandbRun(folder, place, settings)
            from ppe_lora.tracking.weave_traces import WeaveTraces

            return WeaveTraces(folder, place, settings)

        return follow(place, make, ended)


def _watch_life_line(place: Place, ended: threading.Event) -> None:
    sys.stdin.buffer.read()
    ended.set()
    time.sleep(FINISH_S)
    with contextlib.suppress(OSError):
        write_text(place.problem, f"the rest was not sent within {FINISH_S / 60:.0f} minutes\n")
    os.killpg(0, signal.SIGKILL)  # the session is this process's own: only it and the tracker's helpers are in it


def _in_words(error: Exception) -> str:
    text = mask(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) < 300 else text[:297] + "..."


if __name__ == "__main__":
    # Trackers leave threads and exit hooks behind that wait for their servers.
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
