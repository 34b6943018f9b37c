"""What is written for serving engines, and the read-outs over HTTP, with tiny models; the engines themselves run in
tests/engines."""

import asyncio
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import AutoModelForCausalLM

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.engines.client import Asked, Engine
from ppe_lora.engines.llama_cpp import LlamaCpp
from ppe_lora.engines.read_out import decode
from ppe_lora.engines.vllm import Vllm
from ppe_lora.errors import EngineError, ModelError, PpeError, RunError
from ppe_lora.export.gguf import convert, find_tools
from ppe_lora.export.onnx import write_onnx
from ppe_lora.export.proof import prove_export
from ppe_lora.export.vllm import write_vllm
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.student.decode import Decoder, answer_token_limit
from ppe_lora.student.encode import encode_rows
from ppe_lora.student.tokenizer import StudentTokenizer, load_tokenizer
from ppe_lora.student.trie import build_trie
from tests.runs import TASK, make_recipe, make_rows
from tests.tiny import tiny_mistral


class InProcess(Engine):
    """An engine without a network: the log-probabilities come from the model itself, one sequence at a time."""

    concurrent = 1

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__("http://nowhere", "m")
        self._net = model

    async def check(self) -> None: ...

    async def guided_text(self, prompt_ids: Sequence[int], gbnf: str, max_tokens: int) -> str:
        raise NotImplementedError

    @torch.no_grad()
    async def log_probs(self, asked: Sequence[Asked]) -> list[list[float]]:
        rows = []
        for one in asked:
            logits_V = self._net(input_ids=torch.tensor([one.prompt_ids])).logits[0, -1]
            rows.append(logits_V.log_softmax(-1)[one.legal].tolist())
        return rows


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, speaker: Path) -> Recipe:
    return load_recipe(make_recipe(tmp_path_factory.mktemp("recipe"), speaker))


@pytest.fixture(scope="module")
def tokenizer(speaker: Path) -> StudentTokenizer:
    return load_tokenizer(speaker)


@pytest.mark.parametrize("slots", ["answers", "request"])
def test_read_over_http_as_in_process(
    speaker: Path, tokenizer: StudentTokenizer, slots: Literal["answers", "request"]
) -> None:
    """Eleven places a score, each behind the right tokens: one read behind a wrong one shifts the mean in silence."""
    model = AutoModelForCausalLM.from_pretrained(speaker).eval()
    trie = build_trie(TASK, tokenizer, slots)
    rows = encode_rows(make_rows(3, seed=5), TASK, tokenizer, 512).encoded
    expected = Decoder(model, tokenizer, trie, answer_token_limit(TASK, tokenizer)).decode(
        rows, batch_rows=3, forced=True
    )
    for row, one in zip(rows, expected, strict=True):
        found = asyncio.run(decode(InProcess(model), row.prompt_ids, trie))
        assert found.ids == one.ids
        assert found.log_p_KV is not None
        torch.testing.assert_close(found.log_p_KV, one.log_p_KV, rtol=0, atol=1e-4)


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """A server that answers every request with the first of the listed replies (status, body)."""
    replies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = replies[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", replies
    http.shutdown()
    thread.join()
    http.server_close()


SAMPLED = json.dumps({"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:7": -0.1}]}}]})
OTHER = json.dumps({"completion_probabilities": [{"top_probs": [{"id": 9, "prob": 1.0}]}]})


@pytest.mark.parametrize(
    ("engine", "reply", "says"),
    [
        (
            Vllm,
            (200, SAMPLED),
            "expected the log-probability of 'token_id:4'; got those of 1 other tokens; this version",
        ),
        (Vllm, (400, '{"error": "no such model"}'), 'expected an answer; got HTTP 400: {"error": "no such model"}'),
        (LlamaCpp, (200, OTHER), "expected probabilities of tokens among [4, 7]; got {9: 1.0}"),
        (LlamaCpp, (200, "{}"), "got a fault in completion_probabilities (Field required): {}; is it the engine"),
        (
            LlamaCpp,
            (200, "<html>"),
            "got a fault in the body (Invalid JSON: expected value at line 1 column 1): <html>",
        ),
    ],
)
def test_engine_that_does_not_do_as_asked_is_named(
    server: tuple[str, list[Any]], engine: type[Engine], reply: tuple[int, str], says: str
) -> None:
    """Probabilities of tokens nobody asked for, taken as they come, would be a distribution of nothing."""
    url, replies = server
    replies.append(reply)

    async def ask() -> None:
        async with engine(url, "m") as one:
            await one.log_probs([Asked([1, 2], [4, 7])])

    with pytest.raises(EngineError) as error:
        asyncio.run(ask())
    assert says in str(error.value)
    assert str(error.value).startswith(url)


@pytest.mark.parametrize("engine", [Vllm, LlamaCpp])
def test_another_model_is_not_taken_for_this_one(server: tuple[str, list[Any]], engine: type[Engine]) -> None:
    url, replies = server
    replies.append((200, '{"data": [{"id": "other"}]}'))
    with pytest.raises(EngineError, match="expected the model m; got it serves other"):
        asyncio.run(engine(url, "m").check())


def test_server_that_is_down_is_an_error_with_a_question(speaker: Path) -> None:
    with pytest.raises(EngineError, match=r"/v1/models: expected an answer; got ConnectError .* is the server up\?"):
        asyncio.run(Vllm("http://127.0.0.1:9", "m").check())


def test_vllm_scripts_name_what_training_saw(recipe: Recipe, tokenizer: StudentTokenizer, tmp_path: Path) -> None:
    """vLLM's default rank is 16 and its default context the model's own; both refuse or fill the memory."""
    write_json(tmp_path / "adapter" / "adapter_config.json", {"base_model_name_or_path": "/models/base"})
    (out := tmp_path / "vllm").mkdir()
    wide = recipe.model_copy(
        update={
            "student": recipe.student.model_copy(update={"lora": recipe.student.lora.model_copy(update={"rank": 20})})
        }
    )
    write_vllm(wide, tokenizer, out)
    merged, adapter = ((out / name).read_text() for name in ("serve.sh", "serve_adapter.sh"))
    limit = 512 + answer_token_limit(TASK, tokenizer)
    for text in (merged, adapter):
        assert f"--max-model-len {limit} --tokenizer-mode auto" in text
        assert text.startswith('#!/bin/sh\nset -eu\ncd "$(dirname "$0")"\n')
        assert text.endswith('"$@"\n')
    assert '--model ../merged --served-model-name "run"' in merged
    assert '--model "$base" --served-model-name base --enable-lora --max-lora-rank 32' in adapter
    assert "/models/base" not in adapter  # a place of this machine, in a script that may be published
    (tools := tmp_path / "tools").mkdir()
    (tools / "python3").write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "$@"\n')
    (tools / "python3").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run([out / "serve_adapter.sh"], env=environment, capture_output=True, text=True, check=True)
    assert "--model /models/base --served-model-name base" in done.stdout
    assert '--lora-modules "run=../adapter"' in adapter
    assert (out / "serve.sh").stat().st_mode & stat.S_IXUSR
    client = read_json(out / "client.json")
    assert client["guide"] == {"structured_outputs": {"grammar": (out / "answer.gbnf").read_text().rstrip("\n")}}
    assert client["instructions"] == {"en": "Score a, b."}


def test_vllm_reads_mistral_tokenizers_as_training_did_and_no_dora(recipe: Recipe, tmp_path: Path) -> None:
    """With another tokenizer mode the ids differ; a DoRA adapter is loaded as plain LoRA by some versions."""
    (out := tmp_path / "vllm").mkdir()
    lora = recipe.student.lora.model_copy(update={"dora": True})
    dora = recipe.model_copy(update={"student": recipe.student.model_copy(update={"lora": lora})})
    write_vllm(dora, load_tokenizer(tiny_mistral(tmp_path / "model", "v3")), out)
    assert "--tokenizer-mode mistral" in (out / "serve.sh").read_text()
    assert not (out / "serve_adapter.sh").exists()


def test_onnx_computes_what_the_model_computes(recipe: Recipe, tokenizer: StudentTokenizer, tmp_path: Path) -> None:
    """First pass with an empty cache, then a pass behind it, on padded rows: what a runtime does in `generate`."""
    folder = Path(recipe.student.model)
    write_onnx(recipe, folder, tokenizer, tmp_path)
    graph = onnx.load(tmp_path / "onnx" / "model.onnx")
    shapes = {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in graph.graph.input
    }
    assert shapes["past_key_values.1.value"] == ["batch_size", 2, "past_sequence_length", 16]
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    run = ReferenceEvaluator(graph)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[7, 5, 6, 9, 11], [0, 0, 8, 4, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    empty = {name: np.zeros((2, 2, 0, 16), np.float32) for name in shapes if name.startswith("past")}
    names = [one.name for one in graph.graph.output]
    first = run.run(None, _feed(ids[:, :4], mask[:, :4], places[:, :4]) | empty)
    past = {name.replace("present", "past_key_values"): value for name, value in zip(names[1:], first[1:], strict=True)}
    second = run.run(None, _feed(ids[:, 4:], mask, places[:, 4:]) | past)
    seen = mask.bool()
    np.testing.assert_allclose(first[0][seen[:, :4]], expected[:, :4][seen[:, :4]], rtol=0, atol=1e-4)
    np.testing.assert_allclose(second[0], expected[:, 4:], rtol=0, atol=1e-4)
    assert "<|im_start|>" in read_json(tmp_path / "tokenizer_config.json")["chat_template"]
    assert (tmp_path / "client.mjs").is_file()


def _feed(ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> dict[str, np.ndarray]:
    return {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "position_ids": places.numpy()}


def test_onnx_without_a_tokenizer_that_javascript_reads_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    model = tiny_mistral(tmp_path / "model", "tekken")
    with pytest.raises(ModelError) as error:
        write_onnx(recipe, model, load_tokenizer(model), tmp_path)
    assert str(error.value) == f"{model}: expected a tokenizer.json, which Transformers.js reads; got none"


def test_missing_tools_of_llama_cpp_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPE_LORA_LLAMA_CPP", str(tmp_path))
    with pytest.raises(EngineError) as error:
        find_tools(["f16", "q4_k_m"])
    assert str(error.value) == (
        f"{tmp_path}: expected the tools of llama.cpp; got no bin/python, src/convert_hf_to_gguf.py, "
        "build/bin/llama-quantize; make them with `make llama-cpp`, or name their folder in PPE_LORA_LLAMA_CPP"
    )
    for name in ("bin/python", "src/convert_hf_to_gguf.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    assert find_tools(["f16", "q8_0"]).converter == tmp_path / "src" / "convert_hf_to_gguf.py"  # needs no quantizer


def test_failing_converter_shows_its_last_lines(
    tokenizer: StudentTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPE_LORA_LLAMA_CPP", str(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "convert_hf_to_gguf.py").write_text("raise SystemExit('BPE pre-tokenizer was not recognized')")
    with pytest.raises(EngineError) as error:
        convert(find_tools(["f16"]), tmp_path, tokenizer, tmp_path / "m.gguf", "f16")
    assert str(error.value) == (
        "llama.cpp's converter failed (exit 1); the last lines it printed:\nBPE pre-tokenizer was not recognized"
    )


@pytest.mark.parametrize(
    ("export", "url", "says"),
    [
        ("quantized", None, "prove: expected one of merged, adapter, gguf, onnx; got quantized"),
        ("merged", None, "--url: expected the address of the running server; got none"),
        ("onnx", "http://x", "--url: expected none for onnx; got http://x"),
    ],
)
def test_wrong_ways_to_prove_are_refused(
    recipe: Recipe, tmp_path: Path, export: str, url: str | None, says: str
) -> None:
    with pytest.raises(RunError) as error:
        prove_export(recipe, tmp_path, export, url, None)
    assert str(error.value) == says


def test_an_export_that_is_not_there_cannot_be_proven(recipe: Recipe, tmp_path: Path) -> None:
    """transformers took the folder for the name of a repository, and said how one is written."""
    for export, url in (("merged", "nonsense"), ("gguf", "http://x"), ("onnx", None)):
        with pytest.raises(ModelError) as error:
            prove_export(recipe, tmp_path, export, url, None)
        assert str(error.value) == (
            f"{tmp_path / export}: expected an export with its parity.json; got none; make it with "
            "`ppe-lora export RECIPE`"
        )
    write_json(tmp_path / "merged" / "parity.json", {"requests": []})
    with pytest.raises(RunError) as refused:
        prove_export(recipe, tmp_path, "merged", "nonsense", None)
    assert str(refused.value) == "--url: expected an address such as http://localhost:8000/v1; got 'nonsense'"


def test_unknown_engine_in_a_recipe_is_an_error_of_its_line(tmp_path: Path) -> None:
    path = make_recipe(tmp_path, Path("m"), "export: {engines: [vllm, tgi]}")
    with pytest.raises(PpeError, match=r"export\.engines\.1: expected 'vllm', 'gguf' or 'onnx'; got 'tgi'"):
        load_recipe(path)
