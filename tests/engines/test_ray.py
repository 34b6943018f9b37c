"""The examples for Ray with a real local one: `ray_batch.py` between `data questions` and `data answers`, and
`ray_sweep.py` with a stub for the runs. `make test-engines`."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from ppe_lora.corpus.teachers.llm.raw_log import read_replies
from tests.teacher_builds import compatible, data, write_recipe
from tests.teacher_fakes import write_request
from tests.teacher_servers import CHAT, KEY, Fault, OpenAIServer, Status, serve

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-ray" / "bin" / "python"
ROWS = 150

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no {PYTHON}: `make test-engines` makes it"),
]


def some_fail(path: str, number: int) -> Fault | None:
    """The first and third are tried again by Ray, the fifth is refused for good."""
    return {0: Status(503), 2: Status(429), 4: Status(400)}.get(number) if path == CHAT else None


def test_ray_answers_the_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray keeps rows in typed columns: a body that they change, or an answer under another's key, would go unseen."""
    monkeypatch.setenv("RAY_TEST_KEY", KEY)
    server = OpenAIServer(answer=write_request, key=KEY, faults=some_fail)
    with serve(server) as url:
        write_recipe(tmp_path, f"{compatible(url)}, api_key_env: RAY_TEST_KEY", ROWS)
        assert data(monkeypatch, tmp_path, "questions", "--out", "q") == 0
        command = [PYTHON, ROOT / "examples" / "ray_batch.py", "q/requests-000.jsonl", "results.jsonl"]
        done = subprocess.run(
            [*command, "--url", f"{url}/v1", "--key-variable", "RAY_TEST_KEY", "--batch", "32"],
            capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(line) for line in Path("q/requests-000.jsonl").read_text().splitlines()]
        asked = [line["body"] for line in lines]
        assert len(server.bodies) == ROWS - 1
        assert all(body in asked for body in server.bodies)
        assert data(monkeypatch, tmp_path, "answers", "--results", "results.jsonl") == 0
        assert f"{ROWS - 1} new answers\n  1 questions have none (the first: results.jsonl:" in capsys.readouterr().out
        assert data(monkeypatch, tmp_path, "build") == 0
        assert len(server.bodies) == ROWS  # the build asks the one that was refused
    kept = {key: reply.text for key, reply in read_replies(Path("data/raw/d")).items()}
    assert kept == {line["custom_id"]: write_request(line["body"]) for line in lines}


def test_the_engines_words_for_a_question_and_its_answer() -> None:
    """Ray's vLLM processor takes other names than the HTTP interface; a schema that is lost gives free text."""
    script = (
        "import json, ray_batch as r;"
        "body = dict(model='m', messages=[dict(role='user', content='x')], temperature=0.5, seed=3, max_tokens=9,"
        " response_format=dict(type='json_schema', json_schema=dict(name='a', schema=dict(type='object'))));"
        "row = dict(custom_id='k', body=json.dumps(body));"
        "row |= dict(generated_text='t', num_generated_tokens=9, num_input_tokens=4);"
        "print(json.dumps([r.engine_input(row), json.loads(r.engine_output(row)['line'])]))"
    )
    done = subprocess.run([PYTHON, "-c", script], cwd=ROOT / "examples", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    question, result = json.loads(done.stdout.splitlines()[-1])
    assert question == {
        "messages": [{"role": "user", "content": "x"}],
        "sampling_params": {
            "temperature": 0.5, "max_tokens": 9, "seed": 3, "structured_outputs": {"json": '{"type": "object"}'},
        },
    }  # fmt: skip
    assert result["custom_id"] == "k"
    (choice,) = result["response"]["body"]["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("t", "length")
    assert result["response"]["body"]["usage"] == {"prompt_tokens": 4, "completion_tokens": 9}


def test_ray_runs_every_recipe_and_tells_which_failed(tmp_path: Path) -> None:
    """A recipe that is left out, or a failure that is not told, is found at the leaderboard, days later."""
    stub = tmp_path / "bin" / "ppe-lora"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\necho "$@" > "ran_$(basename "$2")"\ncase "$2" in *r08*) exit 2;; esac\n')
    stub.chmod(0o755)
    (tmp_path / "recipes").mkdir()
    recipes = sorted((ROOT / "recipes" / "rank_sweep").glob("*.yaml"))
    for recipe in recipes:
        (tmp_path / "recipes" / recipe.name).symlink_to(recipe)
    done = subprocess.run(
        [PYTHON, ROOT / "examples" / "ray_sweep.py", "recipes", "--gpus", "0"],
        cwd=tmp_path, env=os.environ | {"PATH": f"{stub.parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-3000:]
    told = {f"recipes/{recipe.name}: finished" for recipe in recipes if recipe.stem != "r08"}
    assert set(done.stdout.splitlines()) == told | {"recipes/r08.yaml: failed with status 2"}
    ran = {path.name.removeprefix("ran_"): path.read_text().strip() for path in tmp_path.glob("ran_*")}
    assert ran == {recipe.name: f"run recipes/{recipe.name}" for recipe in recipes}
