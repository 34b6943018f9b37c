"""Raw replies on disk: durable before they count, whole after any kill, merged from any number of files."""

import asyncio
import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppe_lora.corpus.teachers.llm.exchange import Reply, Unavailable
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, Shard, read_replies
from ppe_lora.errors import DataError, RunError


def reply(number: int, text: str = "やわらかい曲\u2028\n") -> Reply:
    return Reply(f"{number:016x}", text, "stop", 20, 10)


def written(folder: Path, count: int, shard: Shard | None = None) -> Path:
    with RawLog(folder, shard) as log:
        log.write([reply(number) for number in range(count)], "fake")
    return log.path


def test_a_reply_counts_only_after_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that is handed on before it is on disk is asked again after a power cut; one fsync each is slow."""
    synced: list[set[str]] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        fsync(file)
        synced.append(set(read_replies(tmp_path)))

    async def append(log: RawLog, number: int) -> None:
        await log.append(reply(number), "fake")
        assert reply(number).key in synced[-1]
        assert reply(number).key in log.replies

    async def main(log: RawLog) -> None:
        await asyncio.gather(*(append(log, number) for number in range(500)))

    with RawLog(tmp_path) as log:
        monkeypatch.setattr(os, "fsync", watched)
        asyncio.run(main(log))
    assert len(synced) < 50
    assert read_replies(tmp_path) == {reply(number).key: reply(number) for number in range(500)}


@given(cut=st.integers(min_value=0, max_value=2000))
def test_a_log_cut_at_any_byte_keeps_its_whole_lines(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A kill in the middle of a write must cost that line only, and not glue the next one to it."""
    folder = tmp_path_factory.mktemp("log")
    path = written(folder, 9)
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    whole = content.count(b"\n")
    assert len(read_replies(folder)) == whole
    with RawLog(folder) as log:
        assert len(log.replies) == whole
        log.write([reply(100)], "fake")
    assert list(read_replies(folder)) == [*(reply(number).key for number in range(whole)), reply(100).key]


def test_a_cut_line_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that vanish from a file without a word look like corruption."""
    path = written(tmp_path, 2)
    os.truncate(path, path.stat().st_size - 7)
    RawLog(tmp_path).close()
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"{path}: the last line was cut off by a kill (")
    assert said.endswith("bytes); removed, its question is asked again")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{'key':", "line: Invalid JSON"),
        ('{"key": "1"}', "text: Field required"),
        ("", "line: Invalid JSON"),
    ],
)
def test_a_corrupt_line_in_the_middle_is_named_and_skipped_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, problem: str
) -> None:
    """A damaged disk must not silently cost answers that were paid for."""
    path = written(tmp_path, 3)
    lines = path.read_text().split("\n")
    lines[1] = line
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        RawLog(tmp_path)
    assert str(error.value).startswith(f"{path}:2: expected a raw reply; got a corrupt line ({problem}")
    assert str(error.value).endswith(
        "restore it, or ask for corrupt lines to be skipped: their questions are asked again"
    )
    with RawLog(tmp_path, skip_corrupt=True) as log:
        assert list(log.replies) == [reply(0).key, reply(2).key]
    assert f"{path}:2:" in capsys.readouterr().out.replace("\n", "")


def test_files_of_shards_merge_and_each_counts_its_own_cost(tmp_path: Path) -> None:
    """Four machines write four files; none may wait for another, and the bill is the sum."""
    for number in range(1, 5):
        with RawLog(tmp_path, Shard(number, 4)) as log:
            log.write([reply(number), reply(100, f"from shard {number}")], "fake")
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == [f"answers-{n}of4.jsonl" for n in range(1, 5)]
    found = read_replies(tmp_path)
    assert len(found) == 5
    assert found[reply(100).key].text == "from shard 1"
    with RawLog(tmp_path) as log:
        assert log.spent.requests == 8
        assert log.spent.tokens == 240
    with RawLog(tmp_path, Shard(2, 4)) as log:
        assert log.spent.requests == 2
        assert len(log.replies) == 5


@given(st.text(alphabet="0123456789abcdef", min_size=16, max_size=16), st.integers(min_value=1, max_value=9))
def test_each_question_belongs_to_one_shard(key: str, of: int) -> None:
    """Shards that overlap pay twice; shards that leave gaps lose rows."""
    assert sum(Shard(number, of).takes(key) for number in range(1, of + 1)) == 1


def test_two_processes_cannot_append_to_one_file(tmp_path: Path) -> None:
    """Two runs on one log would ask, and pay for, everything twice."""
    with RawLog(tmp_path):
        with pytest.raises(RunError, match="give each process a shard of its own"):
            RawLog(tmp_path)
        RawLog(tmp_path, Shard(1, 2)).close()
    RawLog(tmp_path).close()


def test_a_write_that_fails_half_way_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line on a full disk would become a corrupt line in the middle once there is room again."""
    write, calls = os.write, []

    def half(file: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return write(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RawLog(tmp_path) as log:
        log.write([reply(0)], "fake")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(RunError, match=f"^{log.path}: expected to append 3 replies; got No space left on"):
                log.write([reply(1), reply(2), reply(3)], "fake")
        assert list(log.replies) == [reply(0).key]
        log.write([reply(4)], "fake")
    assert list(read_replies(tmp_path)) == [reply(0).key, reply(4).key]


def test_a_line_says_who_answered_and_when(tmp_path: Path) -> None:
    """A bill is disputed with times and names."""
    line = json.loads(written(tmp_path, 1).read_text())
    assert line.pop("at").endswith("+00:00")
    assert line == {**reply(0)._asdict(), "endpoint": "fake"}


def test_a_reply_that_is_no_unicode_is_a_failed_attempt(tmp_path: Path) -> None:
    """Half a surrogate pair cannot be written as UTF-8; it must not stop the other replies of its batch."""
    with RawLog(tmp_path) as log, pytest.raises(Unavailable, match="expected text"):
        log.write([reply(0, "\ud83d")], "fake")
    assert read_replies(tmp_path) == {}


def test_a_reply_whose_waiter_was_cancelled_is_still_written(tmp_path: Path) -> None:
    """The end of the grace after a signal must not drop replies that are on their way to the disk."""

    async def main(log: RawLog) -> None:
        waiters = [asyncio.create_task(log.append(reply(number), "fake")) for number in range(50)]
        await asyncio.sleep(0)
        for waiter in waiters:
            waiter.cancel()
        await log.flush()

    with RawLog(tmp_path) as log:
        asyncio.run(main(log))
    assert len(read_replies(tmp_path)) == 50
