"""Ask a served model: python client.py "Something warm and slow for a rainy evening"

Needs nothing but Python. `client.json` beside it has the instruction that the model was trained with and the grammar
that its answers are held to; both belong to the weights. A request's context goes on a line of its own behind it, as in
training: "Something soft\\nContext: time=night, weather=rain".
"""

import argparse
import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any


def ask(request: str, language: str | None, url: str, settings: dict[str, Any]) -> dict[str, float]:
    """The scores of one request."""
    instructions = settings["instructions"]
    body = {
        "model": settings["model"],
        "messages": [
            {"role": "system", "content": instructions[language or next(iter(instructions))]},
            {"role": "user", "content": request},
        ],
        "temperature": 0.0,
        "max_tokens": settings["max_tokens"],
        **settings["guide"],
    }
    asked = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    # A server on this machine is not behind the proxy that the environment may name.
    local = urllib.parse.urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    with opener.open(asked, timeout=60) as response:
        answer = json.load(response)["choices"][0]["message"]["content"]
    scores: dict[str, float] = json.loads(answer)
    return scores


def main() -> None:
    """Print the scores of a request as JSON."""
    settings = json.loads(Path(__file__).with_name("client.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description="Ask a served model for the scores of a request.")
    parser.add_argument("request")
    parser.add_argument("--language", choices=list(settings["instructions"]))
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server, without a path")
    parser.add_argument("--model", default=settings["model"], help="the name it serves the model by")
    given = parser.parse_args()
    scores = ask(given.request, given.language, given.url.rstrip("/"), {**settings, "model": given.model})
    print(json.dumps(scores, separators=(",", ":")))


if __name__ == "__main__":
    main()
