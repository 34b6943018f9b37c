"""A run folder as a W&B run: one run however often the training is resumed, each step once.

Online, the server knows which steps it has, and only later ones are sent. Offline, the `.wandb` file is derived from
the run folder: it is written anew from the first step each time, so it is always one whole run.
"""

import os
import shutil

import wandb

from ppe_lora.artifacts import hash_json, write_json
from ppe_lora.recipe.track import Track
from ppe_lora.tracking.follower import Place, is_online
from ppe_lora.tracking.run_folder import Files, RunFolder

INIT_S = 60
FINISH_S = 1500
"""Longest wait for the server to have everything; below the follower's own limit, so that the reason is told."""
_EPOCH_METRICS = ("eval/*", "valid/*", "train/epoch_loss")


class WandbRun:
    """Sends a run folder to W&B, or writes its `.wandb` file."""

    def __init__(self, folder: RunFolder, place: Place, track: Track) -> None:
        """Look for a key, and at what earlier starts have sent.

        Raises:
            RunError: The mode is online, but there is no key.
        """
        assert track.wandb is not None, "the tracker is started for recipes that turn it on"
        self.folder, self.place, self.settings = folder, place, track.wandb
        self.online = is_online(track, lambda: wandb.login(prompt=False, verify=False))
        ledger = place.read_ledger()
        self._sent = (ledger.get("sent"), ledger.get("online") or not self.online)
        self._run: wandb.Run | None = None
        self._step = 0
        self._logged: dict[str, str] = {}
        self._shown: str | None = None

    def update(self) -> None:
        """Log the steps, figures and files that are new; opens the run when there are any."""
        stamp = self._stamp()
        if self._run is None:
            if self._sent == (stamp, True):
                return
            self._run = self._open()
            self._step = self._run.starting_step - 1 if self.online else 0
        for step, values in self.folder.history().items():
            if step > self._step:
                self._run.log(values, step=step)
                self._step = step
        self._run.summary.update(self.folder.summary())
        self._log_files(self._run)
        self._shown = stamp

    def finish(self) -> None:
        """Close the run and wait until the server has everything."""
        if self._run is None:
            return
        self._run.finish()
        if self._shown is not None:
            write_json(self.place.ledger, {"sent": self._shown, "online": self.online})
            if self.online:
                shutil.rmtree(self.place.folder / "wandb", ignore_errors=True)  # the server has it

    def _open(self) -> wandb.Run:
        written = self.place.folder / "wandb"
        shutil.rmtree(written, ignore_errors=True)
        written.mkdir(parents=True)
        run = wandb.init(
            project=self.settings.project,
            entity=self.settings.entity,
            id=self.folder.run_id,
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
        return run

    def _log_files(self, run: wandb.Run) -> None:
        for files in (self.folder.data_files(), *self.folder.made_files()):
            if self._logged.get(files.name) == files.stamp:
                continue
            # What the run was made from is an input of it. wandb cannot say so offline, where it is logged beside the
            # rest.
            if files.kind == "dataset" and self.online:
                run.use_artifact(_artifact(files))
            else:
                run.log_artifact(_artifact(files))
            self._logged[files.name] = files.stamp

    def _stamp(self) -> str:
        """Changes whenever the run folder has something new for the tracker."""
        folder = self.folder
        made = {files.name: files.stamp for files in (folder.data_files(), *folder.made_files())}
        where = self.settings.model_dump()
        return hash_json([where, folder.config, folder.history(), folder.summary(), made])


def _artifact(files: Files) -> wandb.Artifact:
    artifact = wandb.Artifact(files.name, type=files.kind, metadata=files.metadata)
    for name, path in files.files.items():
        if files.by_reference:
            artifact.add_reference(path.resolve().as_uri(), name=name)
        else:
            # Used in place: no copy in a cache outside the run folder.
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    return artifact
