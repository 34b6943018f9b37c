"""Answer a file of questions with Ray Data's batch inference, for those who have a cluster.

    ppe-lora data questions RECIPE --out questions
    python examples/ray_batch.py questions/requests-000.jsonl results-000.jsonl --url http://HOST:8000/v1
    ppe-lora data answers RECIPE --results results-000.jsonl
    ppe-lora data build RECIPE

With --url, OpenAI-compatible servers answer (`pip install "ray[data]" pydantic aiohttp`). Without, the cluster's own
GPUs do: each of --replicas loads the questions' model into vLLM (`pip install "ray[llm]"`).

Results are written as they come. After an interruption read them with `data answers` and write the remaining questions
with `data questions`.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import ray
from ray.data.llm import HttpRequestProcessorConfig, Processor, build_processor, vLLMEngineProcessorConfig

Row = dict[str, Any]


def read_questions(path: Path) -> list[Row]:
    """One row per line: `custom_id` and `body`. Bodies stay JSON text, which no table's column types can change."""
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [{"custom_id": line["custom_id"], "body": json.dumps(line["body"])} for line in lines]


def result_line(key: str, body: Row) -> Row:
    """A line of results. A body without choices is the server's account of an error; Ray does not tell the status."""
    response = {"status_code": 500 if body.get("choices") is None else 200, "body": body}
    line = {"custom_id": key, "response": response, "error": None}
    return {"line": json.dumps(line, default=lambda array: array.tolist())}


def http_processor(url: str, key_variable: str | None, workers: int, batch: int) -> Processor:
    """Sends the bodies as they are.

    Ray tries 408, 429, 502 to 504 and broken connections again. Another error leaves its question unanswered where the
    server explains it in JSON, and ends the job where not.
    """
    headers = {"Authorization": f"Bearer {os.environ[key_variable]}"} if key_variable else None
    return build_processor(
        HttpRequestProcessorConfig(
            url=f"{url.rstrip('/')}/chat/completions",
            headers=headers,
            concurrency=workers,
            batch_size=batch,
            max_retries=8,
        ),
        preprocess=lambda row: {"payload": json.loads(row["body"])},
        postprocess=lambda row: result_line(row["custom_id"], row["http_response"]),
    )


def engine_input(row: Row) -> Row:
    """A question in the words of Ray's vLLM processor."""
    body = json.loads(row["body"])
    sampling = {name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed") if name in body}
    if "response_format" in body:
        sampling["structured_outputs"] = {"json": json.dumps(body["response_format"]["json_schema"]["schema"])}
    return {"messages": body["messages"], "sampling_params": sampling}


def engine_output(row: Row) -> Row:
    """What the engine wrote, as a chat completion. Ray does not hand the finish reason on; the length tells it."""
    limit = json.loads(row["body"]).get("max_tokens")
    written = int(row["num_generated_tokens"])
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": row["generated_text"]},
        "finish_reason": "length" if limit and written >= limit else "stop",
    }
    usage = {"prompt_tokens": int(row["num_input_tokens"]), "completion_tokens": written}
    return result_line(row["custom_id"], {"object": "chat.completion", "choices": [choice], "usage": usage})


def engine_processor(model: str, replicas: int, batch: int) -> Processor:
    """Loads the model into vLLM on each of so many GPUs."""
    return build_processor(
        vLLMEngineProcessorConfig(model_source=model, concurrency=replicas, batch_size=batch),
        preprocess=engine_input,
        postprocess=engine_output,
    )


def main() -> None:
    """Read questions, answer them, write each result once."""
    parser = argparse.ArgumentParser(description="Answer a batch file with Ray Data")
    parser.add_argument("questions", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--url", help="of an OpenAI-compatible server or of the balancer before several, with /v1")
    parser.add_argument("--key-variable", help="environment variable that holds the server's API key")
    parser.add_argument("--model", help="name or folder to load without --url; by default the questions' model")
    parser.add_argument("--replicas", type=int, default=1, help="workers: GPUs, or with --url processes that send")
    parser.add_argument("--batch", type=int, default=64, help="questions that one worker has under way")
    given = parser.parse_args()
    rows = read_questions(given.questions)
    if given.url:
        processor = http_processor(given.url, given.key_variable, given.replicas, given.batch)
    else:
        processor = engine_processor(given.model or json.loads(rows[0]["body"])["model"], given.replicas, given.batch)
    blocks = max(1, min(len(rows) // given.batch, 1000))
    with given.results.open("x", encoding="utf-8") as file:
        for row in processor(ray.data.from_items(rows, override_num_blocks=blocks)).iter_rows():
            file.write(row["line"] + "\n")
            file.flush()


if __name__ == "__main__":
    main()
