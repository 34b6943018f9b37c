"""A run's evaluations in Weave: written to its write-ahead log first, always, and sent from there.

An evaluation is written whole or not at all: to a staging folder, then renamed to `tracking/weave/<label>-<hash>.jsonl`
where it waits to be sent. What was sent is in the ledger, by that name: the hash is of predictions and settings.
"""

from weave.wandb_interface.context import get_wandb_auth_context

from ppe_lora.artifacts import hash_file, hash_json, write_json
from ppe_lora.recipe.track import Track
from ppe_lora.tracking.follower import Place, is_online
from ppe_lora.tracking.run_folder import RunFolder
from ppe_lora.tracking.weave_evaluation import write_evaluation
from ppe_lora.tracking.weave_send import progress_of, send


class WeaveTraces:
    """Writes each finished evaluation of a run to the write-ahead log once, and sends the log where there is a key."""

    def __init__(self, folder: RunFolder, place: Place, track: Track) -> None:
        """Look for a key.

        Raises:
            RunError: The mode is online, but there is no key.
        """
        assert track.weave is not None, "the tracker is started for recipes that turn it on"
        self.folder, self.place, self.settings = folder, place, track.weave
        self.online = is_online(track, lambda: get_wandb_auth_context() is not None)
        self.waiting = place.folder / "weave"

    def update(self) -> None:
        """Write the evaluations that are new, and send what waits."""
        for evaluation in self.folder.evaluations():
            content = hash_json([hash_file(evaluation.predictions), self.settings.model_dump()])
            path = self.waiting / f"{evaluation.label}-{content}.jsonl"
            if not path.exists() and path.stem not in self._sent():
                write_evaluation(self.folder, evaluation, self.settings, path)
        if not self.online:
            return
        for path in sorted(self.waiting.glob("*.jsonl")):
            if path.stem not in self._sent():
                send(path, self.settings.project)
                write_json(self.place.ledger, {"sent": [*self._sent(), path.stem]})
            path.unlink()
            progress_of(path).unlink(missing_ok=True)

    def finish(self) -> None:
        """Nothing is under way: `update` returns when the server has answered."""

    def _sent(self) -> list[str]:
        return list(self.place.read_ledger().get("sent", []))
