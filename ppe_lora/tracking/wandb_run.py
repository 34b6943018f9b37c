"""A run folder as a W&B run: one run however often the training is resumed, each step once.

Online, the server knows which steps it has, and only later ones are sent. Offline, the `.wandb` file is derived from
the run folder: it is written anew from the first step each time, so it is always one whole run.
"""

import os
import shutil
import uuid

import wandb

from ppe_lora.artifacts import hash_json, write_json
from ppe_lora.errors import RunError
from ppe_lora.recipe.track import Track
from ppe_lora.tracking.follower import Place
from ppe_lora.tracking.run_folder import Files, RunFolder

INIT_S = 60
FINISH_S = 240
"""Longest wait for the server to have everything; below the follower's own limit, so that the reason is told."""
_EPOCH_METRICS = ("eval/*", "valid/*", "train/epoch_loss")


class WandbRun:
    """Sends a run folder to W&B, or writes its `.wandb` file."""

    def __init__(self, folder: RunFolder, place: Place, track: Track) -> None:
        """Take the run's id from an earlier start, or give it one.

        Raises:
            RunError: The mode is online, but there is no key.
        """
        assert track.wandb is not None, "the tracker is started for recipes that turn it on"
        self.folder, self.place, self.settings = folder, place, track.wandb
        self.online = _is_online(track)
        ledger = place.read_ledger()
        self.run_id = str(ledger.get("run_id") or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12])
        self._sent = (ledger.get("sent"), ledger.get("online") or not self.online)
        write_json(place.ledger, ledger | {"run_id": self.run_id})
        self._run: wandb.Run | None = None
        self._step = 0
        self._logged: dict[str, str] = {}

    def update(self) -> None:
        """Log the steps, figures and files that are new; opens the run when there are any."""
        if self._run is None:
            if self._sent == (self._stamp(), True):
                return
            self._run = self._open()
            self._step = self._run.starting_step - 1 if self.online else 0
        for step, values in self.folder.history().items():
            if step > self._step:
                self._run.log(values, step=step)
                self._step = step
        self._run.summary.update(self.folder.summary())
        for files in self.folder.made_files():
            if self._logged.get(files.name) != files.stamp:
                self._run.log_artifact(_artifact(files))
                self._logged[files.name] = files.stamp

    def finish(self) -> None:
        """Close the run and wait until the server has everything."""
        if self._run is None:
            return
        stamp = self._stamp()
        self._run.finish()
        write_json(self.place.ledger, {"run_id": self.run_id, "sent": stamp, "online": self.online})
        if self.online:
            shutil.rmtree(self.place.folder / "wandb", ignore_errors=True)  # the server has it

    def _open(self) -> wandb.Run:
        written = self.place.folder / "wandb"
        shutil.rmtree(written, ignore_errors=True)
        written.mkdir(parents=True)
        run = wandb.init(
            project=self.settings.project,
            entity=self.settings.entity,
            id=self.run_id,
            name=self.folder.recipe.name,
            config=self.folder.config,
            dir=self.place.folder,
            mode="online" if self.online else "offline",
            resume="allow" if self.online else None,
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                init_timeout=INIT_S,
                finish_timeout=FINISH_S,
                finish_timeout_raises=True,
                x_stats_pid=os.getppid(),
            ),
        )
        run.define_metric("epoch", hidden=True)
        for name in _EPOCH_METRICS:
            run.define_metric(name, step_metric="epoch")
        data = _artifact(self.folder.data_files())
        # wandb cannot use artifacts offline; there, the data set is logged beside what was made from it.
        if self.online:
            run.use_artifact(data)
        else:
            run.log_artifact(data)
        return run

    def _stamp(self) -> str:
        """Changes whenever the run folder has something new for the tracker."""
        folder = self.folder
        made = {files.name: files.stamp for files in folder.made_files()}
        return hash_json([folder.config, folder.data_files().stamp, folder.history(), folder.summary(), made])


def _is_online(track: Track) -> bool:
    has_key = wandb.login(prompt=False, verify=False)
    if track.mode == "online" and not has_key:
        raise RunError("no W&B key: set WANDB_API_KEY, or run `wandb login`")
    told = os.environ.get("WANDB_MODE")
    return track.mode == "online" or (track.mode == "auto" and (told == "online" or (told is None and has_key)))


def _artifact(files: Files) -> wandb.Artifact:
    artifact = wandb.Artifact(files.name, type=files.kind, metadata=files.metadata)
    for name, path in files.files.items():
        if files.by_reference:
            artifact.add_reference(path.resolve().as_uri(), name=name)
        else:
            # Used in place: no copy in a cache outside the run folder.
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    return artifact
