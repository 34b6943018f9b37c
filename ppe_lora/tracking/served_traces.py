"""What a server answered, in Weave: segments that the server writes become write-ahead logs, and those are sent.

The server adds whole files to `answered/`, each a JSON object a line. A log in `weave/` has its segment's name; it is
there before the segment goes and is removed when the server of Weave has all of it, so nothing is lost or sent twice.
"""

import datetime
from typing import Any

from weave.trace.weave_client import WeaveClient
from weave.wandb_interface.context import get_wandb_auth_context

from ppe_lora.artifacts import read_jsonl
from ppe_lora.recipe.track import Track
from ppe_lora.tracking.follower import Place, answered_dir, is_online
from ppe_lora.tracking.weave_log import write_ahead
from ppe_lora.tracking.weave_send import progress_of, send

OP = "ppe_lora.serve_request"


class ServedTraces:
    """Writes each segment to a write-ahead log once, and sends the logs where there is a key."""

    def __init__(self, place: Place, track: Track) -> None:
        """Look for a key.

        Raises:
            RunError: The mode is online, but there is no key.
        """
        assert track.weave is not None, "started for a project"
        self.project = track.weave.project
        self.online = is_online(track, lambda: get_wandb_auth_context() is not None)
        self.answered, self.waiting = answered_dir(place.run_dir), place.run_dir / "weave"
        self.waiting.mkdir(exist_ok=True)

    def update(self) -> None:
        """Take over the segments that are new, and send what waits."""
        for segment in sorted(self.answered.glob("*.jsonl")):
            log = self.waiting / segment.name
            if not log.exists():
                with write_ahead(self.project, log) as client:
                    for answered in read_jsonl(segment):
                        _trace(client, answered)
            segment.unlink()
        if not self.online:
            return
        for log in sorted(self.waiting.glob("*.jsonl")):
            send(log, self.project)
            log.unlink()
            progress_of(log).unlink(missing_ok=True)

    def finish(self) -> None:
        """Nothing is under way: `update` returns when the server has answered."""


def _trace(client: WeaveClient, answered: dict[str, Any]) -> None:
    ended_at = datetime.datetime.fromtimestamp(answered["time"], tz=datetime.UTC)
    inputs = {"request_text": answered["request"], "context": answered["context"], "language": answered["language"]}
    call = client.create_call(
        OP, {"input": inputs}, None, {"model_id": answered["model_id"]}, use_stack=False,
        started_at=ended_at - datetime.timedelta(milliseconds=answered["latency_ms"]),
    )  # fmt: skip
    output = {"model": {"output_parsed": answered["parameters"], "uncertainty": answered["uncertainty"]}}
    client.finish_call(call, output=output | {"latency_ms": answered["latency_ms"]}, ended_at=ended_at)
