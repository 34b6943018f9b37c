"""Whatever a server answers in an engine's place, the engine's client says so in words: no other exception comes out.

Six of seven malformed answers of a vLLM were a KeyError, a TypeError or NaN in the middle of serving.
"""

import asyncio
import re
import resource
from collections.abc import Callable
from typing import Any

import pytest

from ppe_lora.engines.client import Asked, Engine
from ppe_lora.engines.llama_cpp import LlamaCpp
from ppe_lora.engines.vllm import Vllm
from ppe_lora.errors import EngineError
from tests.garbage_server import COMMON, Garbage, GarbageServer
from tests.teacher_servers import serve

ASKED = [Asked([1, 2], [5, 6]), Asked([1, 2, 5], [5, 6])]
MODELS = {"data": [{"id": "m", "owned_by": "vllm"}]}


def right(path: str, body: Any) -> Any:
    """What vLLM and llama.cpp answer."""
    if path == "/v1/models":
        return MODELS
    if path == "/props":
        return {"total_slots": 3}
    if path == "/completion":
        return {"content": "{}", "completion_probabilities": [{"top_probs": [{"id": 5, "prob": 1.0}]}]}
    return {"choices": [place(0), place(1)]}


def place(index: Any, **tokens: Any) -> dict[str, Any]:
    top = (
        {"token_id:5": -0.5, "token_id:6": -1.0}
        if not tokens
        else {k.replace("_id", "_id:"): v for k, v in tokens.items()}
    )
    return {"index": index, "text": "{}", "logprobs": {"top_logprobs": [top]}}


def choices(*given: Any) -> Garbage:
    return Garbage(lambda path, body: {"choices": list(given)})


def probabilities(*given: Any) -> Garbage:
    return Garbage(lambda path, body: {"content": "{}", "completion_probabilities": [{"top_probs": list(given)}]})


VLLM = {
    "no choice": choices(),
    "one choice too few": choices(place(0)),
    "a choice twice": choices(place(0), place(0)),
    "no log-probabilities": choices({"index": 0, "text": ""}, {"index": 1, "text": ""}),
    "null": choices({"index": 0, "logprobs": None}, {"index": 1, "logprobs": None}),
    "an empty list": choices(*({"index": index, "logprobs": {"top_logprobs": []}} for index in (0, 1))),
    "NaN": choices(place(0), place(1, token_id5=float("nan"), token_id6=-1.0)),
    "infinity": choices(place(0), place(1, token_id5=float("-inf"), token_id6=-1.0)),
    "words": choices(place(0), place(1, token_id5="much", token_id6=-1.0)),
    "above 0": choices(place(0), place(1, token_id5=3.0, token_id6=-1.0)),
    "other tokens": choices(place(0), place(1, token_id7=-0.5, token_id8=-1.0)),
    "an index that is none": choices(place(0), place("two")),
}
LLAMA_CPP = {
    "no place": Garbage(lambda path, body: {"content": "{}", "completion_probabilities": []}),
    "no token": probabilities(),
    "other tokens": probabilities({"id": 7, "prob": 1.0}),
    "NaN": probabilities({"id": 5, "prob": float("nan")}),
    "nothing but 0": probabilities({"id": 5, "prob": 0.0}, {"id": 6, "prob": 0.0}),
    "below 0": probabilities({"id": 5, "prob": -1.0}),
    "no id": probabilities({"prob": 1.0}),
    "null": Garbage(lambda path, body: {"completion_probabilities": None}),
}


def says(engine: type[Engine], garbage: Garbage, use: Callable[[Engine], Any], *wrong_at: str) -> str:
    """What the client says of an answer; fails where it says nothing, or another exception comes out."""
    with serve(GarbageServer(garbage, right, wrong_at)) as url:

        async def main() -> None:
            async with engine(url, "m", timeout_s=2.0) as one:
                await use(one)

        with pytest.raises(EngineError) as error:
            asyncio.run(main())
        assert "Internal Server Error" not in str(error.value)  # of the server here
        return re.sub(r"127\.0\.0\.1:\d{2,}", "HOST", str(error.value))


CASES = [
    *((Vllm, name, garbage) for name, garbage in (COMMON | VLLM).items()),
    *((LlamaCpp, name, garbage) for name, garbage in (COMMON | LLAMA_CPP).items()),
]


@pytest.mark.parametrize(("engine", "name", "garbage"), CASES, ids=[f"{one.__name__} {name}" for one, name, _ in CASES])
def test_a_malformed_answer_is_said_in_words(engine: type[Engine], name: str, garbage: Garbage) -> None:
    path = "/v1/completions" if engine is Vllm else "/completion"
    message = says(engine, garbage, lambda one: one.log_probs(ASKED), path)
    assert message.startswith(f"http://HOST{path}: expected ")
    assert "; got " in message


@pytest.mark.parametrize(("name", "garbage"), COMMON.items())
@pytest.mark.parametrize("engine", [Vllm, LlamaCpp])
def test_a_malformed_list_of_models_is_said_in_words(engine: type[Engine], name: str, garbage: Garbage) -> None:
    assert says(engine, garbage, lambda one: one.check(), "/v1/models").startswith("http://HOST/v1/models: expected ")


@pytest.mark.parametrize(("name", "garbage"), COMMON.items())
@pytest.mark.parametrize("engine", [Vllm, LlamaCpp])
def test_a_malformed_text_is_said_in_words(engine: type[Engine], name: str, garbage: Garbage) -> None:
    path = "/v1/completions" if engine is Vllm else "/completion"
    assert says(engine, garbage, lambda one: one.guided_text([1], "", 9), path).startswith(f"http://HOST{path}: ")


def test_a_llama_cpp_that_does_not_tell_its_slots() -> None:
    """Older and newer servers leave `total_slots` out."""
    garbage = Garbage(lambda path, body: {"model": "m"})
    assert says(LlamaCpp, garbage, lambda one: one.check(), "/props") == (
        "http://HOST/props: expected an answer as this engine gives it; got a fault in total_slots (Field required): "
        '{"model": "m"}; is it the engine that it is taken for, in a version that is known to work?'
    )


def test_the_token_that_is_left_out_is_named() -> None:
    assert says(Vllm, VLLM["other tokens"], lambda one: one.log_probs(ASKED), "/v1/completions") == (
        "http://HOST/v1/completions: expected the log-probability of 'token_id:5'; got those of 2 other tokens; this "
        "version of vLLM does not know logprob_token_ids: use 0.32 or newer"
    )


def test_a_redirect_takes_no_request_elsewhere() -> None:
    """The request's text would go to whoever the redirect names."""
    assert says(Vllm, COMMON["a redirect"], lambda one: one.log_probs(ASKED), "/v1/completions") == (
        "http://HOST/v1/completions: expected an answer; got HTTP 307, a redirect to http://127.0.0.1:9/elsewhere; "
        "requests are not sent on to another address: name that one, if it is to be trusted with them"
    )


def test_a_small_body_that_unpacks_to_a_large_one_takes_no_memory() -> None:
    """194 kB of gzip took 1.3 GB."""
    garbage = COMMON["a bomb"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = says(Vllm, garbage, lambda one: one.log_probs(ASKED), "/v1/completions")
    assert message == (
        "http://HOST/v1/completions: expected an answer of at most 16 MB; got more; is it the right server?"
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
