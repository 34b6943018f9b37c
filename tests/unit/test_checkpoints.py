"""A checkpoint is whole or it is none."""

from pathlib import Path

from ppe_lora.artifacts import write_json
from ppe_lora.student.checkpoints import STAGING, commit_checkpoint, cut_history, newest_checkpoint, step_of


def stage(state_dir: Path, step: int) -> None:
    folder = state_dir / STAGING / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter.bin").write_bytes(b"weights %d" % step)
    (folder / "optimizer.pt").write_bytes(b"moments")


def test_the_newest_whole_checkpoint_is_found_and_old_ones_are_deleted(tmp_path):
    for step in (5, 9, 10):
        stage(tmp_path, step)
        commit_checkpoint(tmp_path, step, keep=2)
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    assert step_of(tmp_path / "checkpoint-10") == 10


def test_half_written_and_damaged_checkpoints_are_skipped_with_a_word(tmp_path):
    """The trainer's own resume takes the newest folder even when it is broken."""
    for step in (1, 2, 3, 4):
        stage(tmp_path, step)
        commit_checkpoint(tmp_path, step, keep=9)
    (tmp_path / "checkpoint-4" / "complete.json").unlink()
    (tmp_path / "checkpoint-3" / "optimizer.pt").write_bytes(b"moment")
    (tmp_path / "checkpoint-2" / "adapter.bin").unlink()
    stage(tmp_path, 5)
    found, skipped = newest_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-1"
    assert skipped == [
        f"{tmp_path}/.writing: a checkpoint was half written when the run stopped; skipped",
        f"{tmp_path}/checkpoint-4: it was never finished; skipped",
        f"{tmp_path}/checkpoint-3: optimizer.pt is damaged; skipped",
        f"{tmp_path}/checkpoint-2: adapter.bin is missing; skipped",
    ]


def test_no_checkpoint_yet_is_no_error(tmp_path):
    assert newest_checkpoint(tmp_path / "state") == (None, [])


def test_history_after_the_restored_step_is_cut(tmp_path):
    """A step logged twice would bend every curve; a line torn by a kill must not stop the resume."""
    (tmp_path / "train_log.csv").write_text("step,epoch,loss\n1,0.5,3\n2,1.0,2\n3,1.5,1\n4,2.")
    for epoch, step in ((1, 2), (2, 4)):
        write_json(tmp_path / "epochs" / f"{epoch:03d}" / "eval_metrics.json", {"step": step})
    (tmp_path / "epochs" / "003").mkdir()
    cut_history(tmp_path, 2)
    assert (tmp_path / "train_log.csv").read_text().split() == ["step,epoch,loss", "1,0.5,3", "2,1.0,2"]
    assert [path.name for path in (tmp_path / "epochs").iterdir()] == ["001"]
