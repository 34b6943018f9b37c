"""A full and a read-only disk in every stage: words, nothing half, and the same result once there is room.

The work lies on a small tmpfs that has room for a share of what the stage writes. Where this user may not mount one,
the size of each file is limited instead (RLIMIT_FSIZE), and nothing is made read-only; each case says which.
"""

import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from case import Case, last_line, ppe_forked, words_only
from safetensors.torch import load_file

from ppe_lora.artifacts import files_below, hash_file, hash_json

ROOT = Path(__file__).parents[2]
STAGES: dict[str, tuple[str, ...]] = {
    "data build": ("data", "build", "run.yaml"),
    "data stats": ("data", "stats", "run.yaml"),
    "data convert": ("data", "convert", "data/d", "converted", "--recipe", "run.yaml"),
    "train": ("train", "run.yaml", "--resume"),
    "evaluate": ("evaluate", "run.yaml"),
    "export": ("export", "run.yaml"),
    "report": ("report", "run"),
    "compare": ("compare", "other", "run"),
}
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95)
"""Of what a stage adds to the disk, left free."""
SECTIONS = """
train: {epochs: 2, rows_per_step: 8, rows_per_micro_step: 8, learning_rate: 5e-3, checkpoint_minutes: 0.001}
evaluate: {gate: 0.5, latency_rows: 1}
export: {verify_rows: 4}
"""
_LEFT = ("*.tmp", ".writing", "ppe-*")
"""Names of what may not stay behind."""
_SAME = (".npz", "stats.json", "calibration.json", "report.jsonl", "ft_request_param_test.jsonl")
"""Files that two runs write alike to the last bit; others hold times."""


def cases(quick: bool, scratch: Path) -> list[Case]:
    """One case for each stage and share of the disk, and one for a read-only disk."""
    before, after = scratch / "before", scratch / "after"
    prepare(scratch / "work", before, after)
    found = []
    for stage, command in STAGES.items():
        added = _size(after / stage) - _size(before / stage)
        for share in SHARES[::4] if quick else SHARES:
            with _disk(scratch / "disk", before / stage) as disk:
                name = f"{stage}, {disk.how} for {share:.0%} of {added // 1024} KB"
                found.append(_full(name, command, disk, int(share * added), after / stage))
        with _disk(scratch / "disk", before / stage) as disk:
            if disk.is_mounted:
                found.append(_read_only(f"{stage}, read-only", command, disk))
    return found


def prepare(work: Path, before: Path, after: Path) -> None:
    """Run every stage undisturbed, keeping the working folder before and after each."""
    sys.path.insert(0, str(ROOT))
    from tests.runs import TASK_YAML, make_rows, make_speaker

    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    work.mkdir()
    model = work.parent / "model"
    speaking = multiprocessing.get_context("fork").Process(target=make_speaker, args=(model,))
    speaking.start()  # apart: a process that has trained cannot be forked into one that trains
    speaking.join()
    lines = [f'{row.id},"{row.request}",{row.target["a"]},{row.target["b"]}\n' for row in make_rows(90, 3)]
    (work / "rows.csv").write_text("".join(["id,text,a,b\n", *lines]))
    source = "kind: import, source_dir: ., files: {f: {path: rows.csv}}, request: f.text, target: {a: f.a, b: f.b}"
    data = f"data: {{name: d, source: {{{source}}}, split: {{valid: 0.3, test: 0.2, group: 1.0}}}}"
    recipe = "\n".join([TASK_YAML, data, f"student: {{model: '{model}', lora: {{rank: 4}}}}", SECTIONS])
    (work / "run.yaml").write_text(recipe)
    (work / "other.yaml").write_text(recipe)
    for stage, command in STAGES.items():
        if stage == "compare":
            _done(("run", "other.yaml", "train.learning_rate=4e-3"), work)
        shutil.copytree(work, before / stage)
        _done(command, work)
        shutil.copytree(work, after / stage)


class _Disk:
    """The disk that the work lies on."""

    def __init__(self, place: Path, content: Path) -> None:
        self.place, self.work, self.limit = place, place / "work", resource.RLIM_INFINITY
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(place)]
        self.is_mounted = subprocess.run(mount, capture_output=True).returncode == 0
        self.how = "a disk with room" if self.is_mounted else "files limited, as root cannot mount,"
        shutil.copytree(content, self.work)
        (place / "tmp").mkdir()

    def resize(self, free: int | None) -> None:
        """Leave this many bytes free; None is plenty."""
        if self.is_mounted:
            used = shutil.disk_usage(self.place).used
            self._remount("size=1g" if free is None else f"size={4 * -(-(used + free) // 4096) + 4}k")
        else:
            self.limit = resource.RLIM_INFINITY if free is None else max(free, 1)

    def freeze(self) -> None:
        """Make it read-only."""
        self._remount("ro")

    def run(self, command: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
        """Run a command there."""
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        limit = self.limit
        return ppe_forked(
            *command, cwd=self.work, env={"TMPDIR": str(self.place / "tmp")},
            before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard)),
        )  # fmt: skip

    def close(self) -> None:
        """Take it away."""
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.place)], check=True)
        shutil.rmtree(self.place)

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.place)], check=True, capture_output=True)


@contextmanager
def _disk(place: Path, content: Path) -> Iterator[_Disk]:
    disk = _Disk(place, content)
    try:
        yield disk
    finally:
        disk.close()


def _full(name: str, command: tuple[str, ...], disk: _Disk, free: int, after: Path) -> Case:
    disk.resize(free)
    first = disk.run(command)
    left = sorted(path.name for pattern in _LEFT for path in disk.place.rglob(pattern))
    disk.resize(None)
    second = disk.run(command) if first.returncode else first
    differs = sorted({path for path, _ in result(disk.work) ^ result(after)})
    problems = [] if words_only(first) or first.returncode == 0 else ["no words"]
    problems += [f"left {left}"] if left else []
    problems += [f"then {last_line(second)}"] if second.returncode else []
    problems += [f"differs in {differs}"] if differs else []
    expected = "words, nothing left over, then the result of an undisturbed run"
    return Case(name, expected, "; ".join([last_line(first), *problems]), not problems)


def _read_only(name: str, command: tuple[str, ...], disk: _Disk) -> Case:
    disk.freeze()
    done = disk.run(command)
    return Case(name, "words", last_line(done), words_only(done))


def _done(command: tuple[str, ...], work: Path) -> None:
    done = ppe_forked(*command, cwd=work)
    if done.returncode:
        raise RuntimeError(f"{command} failed undisturbed: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def _size(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in folder.rglob("*") if path.is_file())


def result(folder: Path) -> set[tuple[str, str]]:
    """Every file, and the hash of those that two runs write alike."""
    names = [name for name in files_below(folder) if "/state/" not in name and not name.endswith((".lock", ".holder"))]
    return {(name, _content(folder / name)) for name in names}


def _content(file: Path) -> str:
    if file.suffix == ".safetensors":
        tensors = sorted(load_file(file).items())  # a file's order is not always the same
        return hash_json([(name, tensor.tolist()) for name, tensor in tensors])
    return hash_file(file) if file.name.endswith(_SAME) else ""
