"""Secrets are refused in addresses and masked in messages; what is no secret stays readable."""

from pathlib import Path

import pytest

from ppe_lora.errors import DataError, FileError, RecipeError, ServeError
from ppe_lora.recipe import load_recipe
from ppe_lora.redaction import address_problem, mask, variable_problem
from ppe_lora.serving.sources import parse_source

BEHIND_THE_AT = (
    "take what is before the @ out: it would stand in every answer and error, and a server's key belongs into an "
    "environment variable"
)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:hunter2@host:8000/v1", "http://***@host:8000/v1"),
        ("https://me@host/v1", "https://***@host/v1"),
        ("http://me:p%40ss@host/v1", "http://***@host/v1"),
        ("http://me:hunter@2@host/v1", "http://***@host/v1"),
        ("http://me:hun/ter2@host/v1", "http://***@host/v1"),
        ("http://me:hun ter2@host/v1", "http://***@host/v1"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(address: str, shown: str) -> None:
    """Otherwise it stands in every raw line, in errors and in the model card."""
    assert address_problem(address) == (
        f"expected an address without a user name or password; got {shown}; {BEHIND_THE_AT}"
    )


def test_a_key_among_an_addresss_parameters_is_refused() -> None:
    assert address_problem("https://host/v1?version=2&api_key=0123456789") == (
        "expected an address without keys; got one in the parameter api_key; put it into an environment variable"
    )


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("http://host:99999/v1", "port 99999 is not between 1 and 65535"),
        ("http://host:0/v1", "port 0 is not between 1 and 65535"),
        ("http://host:-1/v1", "port -1 is not between 1 and 65535"),
        ("http://host:abc/v1", "Invalid port: 'abc'"),
        ("http:///v1", "no host name"),
        ("http://[::1/v1", "Invalid port: ':1'"),
        ("http://a..b/v1", "a part of the host name is empty or longer than 63 characters"),
        ("http://\u2603.example/v1", "Invalid IDNA hostname: '\u2603.example'"),
        ("http://ho st/v1", "it holds white space"),
        ("http://host/v1\n", "it holds white space"),
    ],
)
def test_an_address_no_connection_can_be_opened_to_is_refused_at_once(address: str, fault: str) -> None:
    assert address_problem(address) == (
        f"expected an address such as http://localhost:8000/v1; got {address!r} ({fault})"
    )


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8000/v1",
        "http://[::1]:8000/v1",
        "https://b\u00fccher.example/v1",
        "http://my_host./v1",
        "http://h",
    ],
)
def test_good_addresses_pass(address: str) -> None:
    assert address_problem(address) is None


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("http://me:hunter2@proxy:3128 refused", "http://***@proxy:3128 refused"),
        ('{"authorization": "Bearer 0123456789abcdef"}', '{"authorization": "Bearer ***"}'),
        ("bad header Authorization: Basic bWU6aHVudGVyMg==", "bad header Authorization: Basic ***"),
        ("x-api-key: 0123456789abcdef; retry", "x-api-key: ***; retry"),
        ("data.source.teacher.api_key_env=0123456789abcdef", "data.source.teacher.api_key_env=***"),
        ("GET /v1/models?key=0123 failed", "GET /v1/models?key=*** failed"),
        ("Incorrect API key: sk-proj-0123456789abcdefghij", "Incorrect API key: ***"),
        ("token hf_abcdefghijklmnopqrstuvwxyz is invalid", "token *** is invalid"),
        # no secrets
        ("MISTRAL_API_KEY: expected an API key; got none", "MISTRAL_API_KEY: expected an API key; got none"),
        ("special token: <|im_end|> in data/d/train.jsonl:3", "special token: <|im_end|> in data/d/train.jsonl:3"),
        ("owner/name@main at http://localhost:8000/v1", "owner/name@main at http://localhost:8000/v1"),
        ("a bearer of extraordinarily good news", "a bearer of extraordinarily good news"),
        ("0123456789abcdef0123456789abcdef01234567", "0123456789abcdef0123456789abcdef01234567"),
    ],
)
def test_what_is_masked(said: str, shown: str) -> None:
    assert mask(said) == shown


def test_keys_of_the_environment_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral's keys are 32 letters and digits like any hash: only the environment tells them apart."""
    monkeypatch.setenv("MISTRAL_API_KEY", "abcdefghijklmnopqrstuvwxyz012345\n")
    monkeypatch.setenv("OTHER_API_KEY", "EMPTY")
    assert mask("echo abcdefghijklmnopqrstuvwxyz012345, EMPTY") == "echo ***, EMPTY"


@pytest.mark.parametrize("kind", [DataError, FileError])
def test_every_error_of_ours_masks_its_message(kind: type[Exception]) -> None:
    assert str(kind("http://me:hunter2@host: expected an answer")) == "http://***@host: expected an answer"


def test_a_recipe_with_a_password_in_an_address_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "data:\n  name: d\n  source:\n    kind: generate\n    teacher:\n      kind: openai_compatible\n      model: m\n"
        "      api_key_env: 0123456789abcdefghijklmnop\n      endpoints:\n"
        "        - url: http://me:hunter2@host:8000/v1\nstudent: {model: none}\n"
    )
    with pytest.raises(RecipeError) as refused:
        load_recipe(tmp_path / "r.yaml")
    file = tmp_path / "r.yaml"
    assert str(refused.value).splitlines() == [
        f"{file}:10: data.source.teacher.endpoints.0.url: expected an address without a user name or password; got "
        f"http://***@host:8000/v1; {BEHIND_THE_AT}",
        f"{file}:8: data.source.teacher.api_key_env: expected the name of an environment variable, such as MY_API_KEY; "
        "got 26 other characters; if they are the key itself, `export MY_API_KEY=...` and name the variable here",
    ]


def test_serve_refuses_a_password_in_an_engines_address() -> None:
    with pytest.raises(ServeError) as refused:
        parse_source("fast=checkpoints/demo@http://me:hunter2@host:8000/v1#demo")
    assert str(refused.value) == (
        "fast=checkpoints/demo@URL: expected an address without a user name or password; got http://***@host:8000/v1; "
        + BEHIND_THE_AT
    )


def test_names_of_variables_pass() -> None:
    assert [variable_problem(name) for name in ("MISTRAL_API_KEY", "my_key", "_K2")] == [None, None, None]
