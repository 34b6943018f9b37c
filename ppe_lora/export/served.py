"""Whether a served model answers as the adapter did: the requests of its certificate, asked over HTTP or in Node."""

import asyncio
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ppe_lora.artifacts import read_json
from ppe_lora.engines.client import Engine
from ppe_lora.engines.grammar import answer_gbnf
from ppe_lora.engines.read_out import decode
from ppe_lora.errors import EngineError
from ppe_lora.export.answers import Correction
from ppe_lora.export.parity import Asked, Reading, add_entry, asked
from ppe_lora.student.decode import answer_token_limit
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.trie import ScoreTrie
from ppe_lora.tasks.scores import ScoresTask

_SHOWN_LINES = 15


def prove_served(
    folder: Path,
    engine: Engine,
    name: str,
    task: ScoresTask,
    tokenizer: StudentTokenizer,
    trie: ScoreTrie | None,
    correction: Correction,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Ask a running server the requests of a certificate, and enter what it answers.

    Args:
        folder: The export that it serves.
        engine: The server.
        name: What it is, for the certificate.
        task: The model's task.
        tokenizer: Its tokenizer.
        trie: The trie of both; None where scores have no distributions.
        correction: What makes its served answers of the distributions.
        advance: Called with the number of requests answered.

    Returns:
        The entry (see `parity.add_entry`).

    Raises:
        EngineError: The server cannot be reached, or does not answer as asked.
        ModelError: The folder has no certificate.
    """
    prompts = [_prompt(one, task, tokenizer) for one in asked(folder)]
    readings = asyncio.run(read(engine, prompts, task, tokenizer, trie, correction, advance))
    return add_entry(folder, task, name, readings)


async def read(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    task: ScoresTask,
    tokenizer: StudentTokenizer,
    trie: ScoreTrie | None,
    correction: Correction,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Reading]:
    """What comes of every prompt: the text that the engine writes under the grammar, and, with a trie, the mean and the
    served answer, as `serve` makes it of the engine's distributions.

    Raises:
        EngineError: The server cannot be reached, or does not answer as asked.
    """
    gbnf, limit = answer_gbnf(task), answer_token_limit(task, tokenizer)

    async def one(prompt: Sequence[int], slots: asyncio.Semaphore) -> Reading:
        async with slots:
            text = await engine.guided_text(prompt, gbnf, limit)
            decoded = None if trie is None else await decode(engine, prompt, trie)
        advance(1)
        return Reading(text) if trie is None or decoded is None else correction.reading(text, decoded, task, trie)

    async with engine:
        await engine.check()
        slots = asyncio.Semaphore(engine.concurrent)
        return list(await asyncio.gather(*(one(prompt, slots) for prompt in prompts)))


def prove_node(folder: Path, task: ScoresTask) -> dict[str, Any]:
    """Let Node answer the requests of an ONNX export's certificate, and enter what it answers.

    Raises:
        EngineError: There is no Node, its packages are not installed, or it fails.
        ModelError: The folder has no certificate.
    """
    lines = [
        json.dumps({"request": _messages(one, task)[-1]["content"], "language": one.language}) for one in asked(folder)
    ]
    version = read_json(folder / "package.json")["dependencies"]["@huggingface/transformers"]
    try:
        done = subprocess.run(
            ["node", str(folder.absolute() / "client.mjs")], input="\n".join(lines), capture_output=True, text=True
        )
    except OSError as error:
        raise EngineError(f"{folder}: expected the program node; got {error}; install Node 20.11 or newer") from error
    texts = done.stdout.splitlines()
    if done.returncode or len(texts) != len(lines):
        last = "\n".join(done.stderr.strip().splitlines()[-_SHOWN_LINES:])
        raise EngineError(
            f"{folder}: expected {len(lines)} answers of client.mjs; got {len(texts)} (exit {done.returncode}); run "
            f"`npm install` there first; the last lines it printed:\n{last}"
        )
    return add_entry(folder, task, f"Transformers.js {version} in Node", [Reading(json.loads(text)) for text in texts])


def _messages(one: Asked, task: ScoresTask) -> list[dict[str, str]]:
    return task.messages(one.request, one.language, one.context)


def _prompt(one: Asked, task: ScoresTask, tokenizer: StudentTokenizer) -> list[int]:
    return tokenizer.prompt_ids(_messages(one, task))
