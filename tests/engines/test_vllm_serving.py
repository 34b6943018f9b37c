"""A real vLLM server on the processor answers as our decoder does: the merged model, and the adapter on its base.

`make test-engines`. Both are started by the scripts of `ppe-lora export`, in float32 and without graph capture, which a
processor does not profit from.
"""

import asyncio
import json
from pathlib import Path

import pytest

from ppe_lora import commands, pipeline
from ppe_lora.artifacts import read_json
from ppe_lora.engines.vllm import Vllm
from ppe_lora.export.parity import compare
from ppe_lora.export.served import read
from tests.engines.conftest import ROOT, EngineRun
from tests.engines.servers import ask_client, ask_in_front, serving

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
ENVIRONMENT = {
    "PYTHON": str(PYTHON),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # containers often do not let a process choose its cores
}
OPTIONS = ["--dtype", "float32", "--enforce-eager"]
MEANS = 20
IN_FRONT = 5

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"not run: no {PYTHON.parents[1].name}; `make test-engines`"),
]


@pytest.fixture(scope="module")
def exported(engine_run: EngineRun) -> EngineRun:
    export = engine_run.recipe.export.model_copy(update={"engines": ("vllm",)})
    pipeline.export(engine_run.recipe.model_copy(update={"export": export}))
    return engine_run


@pytest.mark.parametrize(("script", "export"), [("serve.sh", "merged"), ("serve_adapter.sh", "adapter")])
def test_vllm_answers_as_our_decoder_does(exported: EngineRun, tmp_path: Path, script: str, export: str) -> None:
    """LoRA weights under names that vLLM does not expect are ignored without a word: the base model would answer."""
    run, task = exported, exported.recipe.task
    command = [run.folder / "vllm" / script, *OPTIONS]
    with serving(command, Vllm, run.recipe.name, tmp_path / "server.log", ENVIRONMENT) as url:
        engine = Vllm(url, run.recipe.name, 1800)
        means = asyncio.run(read(engine, run.prompts[:MEANS], task, run.tokenizer, run.trie))
        engine = Vllm(url, run.recipe.name, 1800)
        texts = means + asyncio.run(read(engine, run.prompts[MEANS:], task, run.tokenizer, None))
        request = next(row.request for row in run.rows if not row.context)
        told = ask_client(run.folder / "vllm", url, run.recipe.name, request)
        served = ask_in_front(run.folder, url, run.recipe.name, run.rows[:IN_FRONT])
        commands.prove(run.recipe, export, url, None)
    greedy = compare(run.readings, texts, task)
    posterior = compare(run.readings[:MEANS], means, task)
    print(json.dumps({"vllm": export, "greedy": greedy, "posterior": posterior}))
    assert greedy["identical"] >= 0.99 * len(run.rows)
    assert max(posterior["largest_difference"]["posterior_mean"].values()) <= 0.5
    for told_by_key, ours in zip(served, run.readings, strict=False):
        assert ours.posterior_mean is not None
        assert told_by_key == pytest.approx(ours.posterior_mean, abs=0.55)  # rounded: the demo serves no greedy text
    asked = next(index for index, row in enumerate(run.rows) if row.request == request)
    assert task.render(told) == texts[asked].text
    (entry,) = [one for one in read_json(run.folder / export / "parity.json")["entries"] if "vLLM" in one["engine"]]
    assert entry["identical"] >= 0.9 * entry["answers"]
