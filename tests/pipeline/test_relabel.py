"""`ppe-lora data build` with blind re-labelling: a model over loopback writes texts, and reads them back."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppe_lora import commands
from ppe_lora.artifacts import read_json
from ppe_lora.corpus.rows import SPLITS, split_path
from ppe_lora.corpus.teachers.llm.mistral import MistralEndpoint
from ppe_lora.corpus.teachers.llm.mistral_batch import MistralBatch
from ppe_lora.recipe.load import load_recipe
from ppe_lora.tasks.scores import ScoresTask
from tests.teacher_builds import PRICED, build, compatible, write_recipe
from tests.teacher_fakes import write_request
from tests.teacher_servers import KEY, MistralServer, OpenAIServer, serve

TASK = ScoresTask()
ROWS = 150
RELABEL = "data.filters.relabel={}"
ALIKE = "Play me something soft and slow for a quiet evening by the sea, and call it "


class ReadingModel:
    """Writes requests, some of them alike, and reads them back a few points off; one in ten as the opposite, one in
    twenty not at all."""

    def __init__(self) -> None:
        self.meant: dict[str, dict[str, float]] = {}

    def __call__(self, body: Mapping[str, Any]) -> str:
        said = body["messages"][-1]["content"]
        if not self.reads(body):
            seed = body.get("seed", body.get("random_seed"))
            name = "".join(chr(97 + int(digit)) for digit in str(seed)[-4:])
            text = json.dumps({"request": ALIKE + name}) if seed % 25 < 5 else write_request(body)
            if text.startswith("{"):
                scores = re.findall(r"- (\w+)(?:: |：)(\d+)", said)
                self.meant[json.loads(text)["request"]] = {key: float(value) for key, value in scores}
            return text
        language = "ja" if re.search("[ぁ-ヿ]", body["messages"][0]["content"]) else "en"
        target = self.meant[TASK.read_user_text(said, language)[0]]  # type: ignore[arg-type]
        return self.reading(said, target)

    def reading(self, said: str, target: Mapping[str, float]) -> str:
        digest = hashlib.sha256(said.encode()).digest()
        if self.kind(said) == "unread":
            return "I would rather not say."
        if self.kind(said) == "far":
            return TASK.render({key: 100 - target[key] if abs(target[key] - 50) > 20 else 100 for key in TASK.keys})
        noise = [byte % 11 - 5 for byte in digest[1:7]]
        return TASK.render({key: TASK.round(target[key] + off) for key, off in zip(TASK.keys, noise, strict=True)})

    @staticmethod
    def kind(said: str) -> str:
        number = hashlib.sha256(said.encode()).digest()[0] % 20
        return "unread" if number == 0 else "far" if number < 3 else "near"

    @staticmethod
    def reads(body: Mapping[str, Any]) -> bool:
        return "request" not in body["response_format"]["json_schema"]["schema"]["properties"]


def said_about(row: Mapping[str, Any]) -> str:
    return str(TASK.messages(row["request"], row["language"], row.get("context"))[-1]["content"])


def kept_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for name in SPLITS for line in split_path(folder, name).open(encoding="utf-8")]


def check_floor(floor: Mapping[str, Any], kept: list[dict[str, Any]], far: int) -> None:
    """The noise floor by hand: the model's readings of the kept rows that it reads, against what was asked for."""
    model = ReadingModel()
    near = [row for row in kept if ReadingModel.kind(said_about(row)) == "near"]
    off = [json.loads(model.reading(said_about(row), row["target"])) for row in near]
    squared = [
        [(o[key] / 100 - r["target"][key] / 100) ** 2 for key in TASK.keys] for o, r in zip(off, near, strict=True)
    ]
    assert floor["mse_norm"] == pytest.approx(np.mean(squared))
    assert list(floor["per_key"].values()) == pytest.approx(np.mean(squared, axis=0).tolist())
    assert (floor["model"], floor["read"], floor["unread"]) == (
        "teacher-1",
        len(near) + far,
        len(kept) - len(near),
    )
    assert max(np.mean(squared, axis=1)) <= floor["threshold"] < 0.05


def test_far_texts_are_rejected_and_nothing_is_asked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Readings that are asked again cost again; a floor over other rows than the kept ones is no floor of theirs."""
    server = OpenAIServer(answer=ReadingModel())
    data, raw = tmp_path / "data/d", tmp_path / "data/raw/d"
    with serve(server) as url:
        write_recipe(tmp_path, compatible(url), rows=ROWS)
        assert build(monkeypatch, tmp_path, RELABEL, "--dry-run") == 0
        assert (
            f"data/d: texts to read back; {ROWS} requests still to ask teacher-1, 0 answered" in capsys.readouterr().out
        )
        assert server.received == {}
        assert build(monkeypatch, tmp_path, RELABEL) == 0
        asked = len(server.bodies)
        readings = [body for body in server.bodies if ReadingModel.reads(body)]
        manifest = read_json(data / "manifest.json")
        lines = [json.loads(line) for line in (data / "rejected.jsonl").open(encoding="utf-8")]
        assert build(monkeypatch, tmp_path, RELABEL) == 0  # up to date
        (data / "manifest.json").unlink()
        capsys.readouterr()
        assert build(monkeypatch, tmp_path, RELABEL) == 0  # made again
        assert len(server.bodies) == asked
        assert read_json(data / "manifest.json")["dataset_version"] == manifest["dataset_version"]
        assert read_json(data / "manifest.json")["spent"] == manifest["spent"]  # paid once, by the build before
        assert build(monkeypatch, tmp_path, RELABEL, "--dry-run") == 0
        shown = capsys.readouterr().out
    others = [line for line in lines if line["rule"] != "re-reading"]
    assert manifest["rejected"]["near-duplicate"] >= 5
    far = [line for line in lines if line["rule"] == "re-reading"]
    kept = kept_rows(data)
    assert len(readings) == len(kept) + len(far) == ROWS - len(others)  # rows that other filters drop are not asked
    assert f"texts to read back; 0 requests still to ask teacher-1, {len(readings)} answered already" in shown
    assert len((raw / "readings.jsonl").read_text().splitlines()) == len(readings)
    assert len((raw / "answers.jsonl").read_text().splitlines()) == ROWS == asked - len(readings)
    assert {body["temperature"] for body in readings} == {0.0}
    assert {name: spent["requests"] for name, spent in manifest["spent"].items()} == {
        "writing": ROWS,
        "reading back": len(readings),
    }

    assert len(far) >= 5
    assert {ReadingModel.kind(said_about(line["row"])) for line in far} == {"far"}
    assert {ReadingModel.kind(said_about(row)) for row in kept} == {"near", "unread"}
    assert all(line["evidence"].endswith(f", asked {TASK.render(line['row']['target'])}") for line in far)

    floor = manifest["relabel"]
    check_floor(floor, kept, len(far))

    commands.describe_data(load_recipe(Path("r.yaml"), [RELABEL]))
    shown = f"mse_norm {floor['mse_norm']:.4f}: teacher-1 reads the kept texts back, {floor['unread']} unread"
    assert f'<dt>noise floor</dt><dd class="mono">{shown}</dd>' in (data / "data_report.html").read_text()


def test_the_reader_has_a_budget_of_its_own_and_goes_on_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader's budget that counts the writer's answers stops too early; one that is ignored is no budget."""
    meant = ReadingModel()
    writer, reader = OpenAIServer(answer=meant), OpenAIServer(answer=meant, models=("reader-1",))
    with serve(writer) as writer_url, serve(reader) as reader_url:
        write_recipe(tmp_path, compatible(writer_url), rows=40)
        section = (
            "data.filters.relabel={teacher: {kind: openai_compatible, model: reader-1, "
            f"endpoints: [{{url: '{reader_url}/v1'}}], budget: {{requests: %d}}}}, k: 8.0}}"
        )
        assert build(monkeypatch, tmp_path, section % 15) == 2
        assert "budget.requests: the limit of 15 has no room for another question" in capsys.readouterr().err
        assert (len(writer.bodies), len(reader.bodies)) == (40, 15)
        assert not (tmp_path / "data/d").exists()
        assert build(monkeypatch, tmp_path, section % 40) == 0
        assert len(writer.bodies) == 40
    manifest = read_json(tmp_path / "data/d/manifest.json")
    assert len(reader.bodies) == manifest["relabel"]["read"] + manifest["relabel"]["unread"]
    # Neither the budget nor an address is content; k is, but changes no question: nobody listens any more.
    assert build(monkeypatch, tmp_path, section % 1) == 0
    assert read_json(tmp_path / "data/d/manifest.json") == manifest
    assert build(monkeypatch, tmp_path, (section % 40).replace("8.0", "1.0")) == 0
    assert read_json(tmp_path / "data/d/manifest.json")["relabel"]["threshold"] < manifest["relabel"]["threshold"]


@pytest.mark.parametrize("mode", ["realtime", "batch"])
def test_mistral_reads_in_both_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """A batch of readings that is filed with the batch of texts would be taken for it, and for its bill."""
    monkeypatch.setenv("MISTRAL_API_KEY", KEY)
    server = MistralServer(answer=ReadingModel())
    with serve(server) as url:
        for endpoint, options in ((MistralEndpoint, {}), (MistralBatch, {"poll_s": 0.02})):
            at_url = functools.partialmethod(endpoint.__init__, server_url=url, **options)
            monkeypatch.setattr(endpoint, "__init__", at_url)
        write_recipe(tmp_path, f"kind: mistral, model: teacher-1, mode: {mode}, {PRICED}", rows=24)
        assert build(monkeypatch, tmp_path, RELABEL) == 0
    read = read_json(tmp_path / "data/d/manifest.json")["relabel"]
    raw = tmp_path / "data/raw/d"
    assert len((raw / "readings.jsonl").read_text().splitlines()) == read["read"] + read["unread"]
    assert len(server.bodies) == 24 + read["read"] + read["unread"]
    assert len(server.jobs) == (2 if mode == "batch" else 0)
    assert {path.name for path in raw.glob("*.batch")} == (
        {"answers.batch", "readings.batch"} if mode == "batch" else set()
    )
