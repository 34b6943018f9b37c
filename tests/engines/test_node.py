"""Node with the real Transformers.js answers as our decoder does. `make test-engines`."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ppe_lora import commands, pipeline
from ppe_lora.artifacts import read_json
from tests.engines.conftest import ROOT, EngineRun

PACKAGES = ROOT / ".venv-node" / "node_modules"
ANSWERS = 20

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not PACKAGES.is_dir(), reason=f"not run: no {PACKAGES.parent.name}; `make test-engines`"),
    pytest.mark.skipif(shutil.which("node") is None, reason="not run: the program node is missing"),
]


def test_node_answers_as_our_decoder_does(engine_run: EngineRun) -> None:
    """A cache, a mask or a template that the browser's runtime reads otherwise than torch does."""
    run, task = engine_run, engine_run.recipe.task
    export = run.recipe.export.model_copy(update={"engines": ("onnx",)})
    pipeline.export(run.recipe.model_copy(update={"export": export}))
    folder = run.folder / "onnx"
    (folder / "node_modules").symlink_to(PACKAGES)
    asked = [task.messages(row.request, row.language, row.context)[-1]["content"] for row in run.rows[:ANSWERS]]
    lines = [json.dumps({"request": text, "language": "en"}) for text in asked]
    done = subprocess.run(["node", folder / "client.mjs"], input="\n".join(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [one.text for one in run.readings[:ANSWERS]]
    commands.prove(run.recipe, "onnx", None, None)
    (entry,) = [one for one in read_json(folder / "parity.json")["entries"] if "Node" in one["engine"]]
    assert entry["identical"] >= 0.9 * entry["answers"]


def test_a_client_without_its_packages_says_what_to_do(engine_run: EngineRun, tmp_path: Path) -> None:
    from ppe_lora.errors import EngineError
    from ppe_lora.export.served import prove_node

    folder = tmp_path / "onnx"
    shutil.copytree(run_folder := engine_run.folder / "onnx", folder, ignore=shutil.ignore_patterns("node_modules"))
    assert run_folder.is_dir()
    with pytest.raises(EngineError, match="run `npm install` there first"):
        prove_node(folder, engine_run.recipe.task)
