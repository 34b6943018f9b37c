"""What the environment, a key or a server does to a client becomes words, or does not matter; no traceback."""

import asyncio
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from ppe_lora import network
from ppe_lora.corpus.teachers.llm.exchange import Endpoint, Question, Refused
from ppe_lora.corpus.teachers.llm.mistral import MistralEndpoint
from ppe_lora.corpus.teachers.llm.mistral_batch import MistralBatch
from ppe_lora.corpus.teachers.llm.openai_compatible import OpenAICompatibleEndpoint
from ppe_lora.engines.llama_cpp import LlamaCpp
from ppe_lora.engines.vllm import Vllm
from ppe_lora.errors import EngineError, PpeError
from ppe_lora.export.scripts import CLIENTS
from ppe_lora.proxies import spare_local_servers
from ppe_lora.serving.engine import find_engine
from tests.garbage_server import COMMON, Garbage, GarbageServer
from tests.teacher_servers import KEY, MistralServer, OpenAIServer, free_port, serve

ANYWHERE = "https://teacher.example/v1"
REMEDY = "mend or unset it, or name the host in NO_PROXY"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy")
ASKED = Question("teacher-1", ({"role": "user", "content": "a secret wish"},), {})


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MISTRAL_API_KEY", KEY)


MAKERS: dict[str, Callable[[Path], Any]] = {
    "openai": lambda folder: OpenAICompatibleEndpoint(ANYWHERE),
    "mistral": lambda folder: MistralEndpoint(),
    "mistral batch": lambda folder: MistralBatch(folder),
    "vllm": lambda folder: Vllm("https://engine.example", "m"),
    "llama.cpp": lambda folder: LlamaCpp("https://engine.example", "m"),
}
BAD = [
    ("ALL_PROXY", "socks5://me:hunter2@proxy:1080",
     f"a proxy that speaks HTTP; got socks5://***@proxy:1080, for which the package socksio is missing; {REMEDY}"),
    ("HTTPS_PROXY", "http://proxy:99999", f"a proxy such as http://localhost:3128; got http://proxy:99999; {REMEDY}"),
    ("https_proxy", "ftp://proxy", f"a proxy such as http://localhost:3128; got ftp://proxy; {REMEDY}"),
    ("HTTPS_PROXY", "http://me:hunter2@", f"a proxy such as http://localhost:3128; got http://***@; {REMEDY}"),
    ("SSL_CERT_FILE", "/nowhere.pem",
     "a file of certificates (PEM); got /nowhere.pem: No such file or directory; mend or unset it"),
    ("SSL_CERT_FILE", "/", "a file of certificates (PEM); got /: Is a directory; mend or unset it"),
    ("SSL_CERT_FILE", __file__,
     f"a file of certificates (PEM); got {__file__}: no certificates in it; mend or unset it"),
    ("SSL_CERT_DIR", "/nowhere", "a folder of certificates; got /nowhere: no such folder; mend or unset it"),
]  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("variable", "value", "says"), BAD)
def test_what_the_environment_names_and_cannot_be_used(
    kind: str, variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They were an ImportError, a ValueError or a FileNotFoundError from the depths of a library."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(network.NetworkError) as error:
        MAKERS[kind](tmp_path)
    assert str(error.value) == f"{variable}: expected {says}"


def test_everything_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:0")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with pytest.raises(network.NetworkError) as error:
        network.check_environment(ANYWHERE)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["ALL_PROXY", "SSL_CERT_FILE"]


def test_passwords_of_proxies_may_hold_percent_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("http://me:hun%40ter@proxy:3128/", "me:50%@proxy:3128", "http://me:a%zz@proxy:3128"):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        asyncio.run(network.client(ANYWHERE, 1.0).aclose())


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://"])
def test_a_server_of_this_machine_is_reached_past_any_proxy(
    variable: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy's refusal was told as: start a server."""
    monkeypatch.setenv(variable, proxy)
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with serve(OpenAIServer()) as url:
        for host in ("127.0.0.1", "localhost"):
            asyncio.run(checked(OpenAICompatibleEndpoint(url.replace("127.0.0.1", host) + "/v1")))
        assert find_engine(f"{url}/v1", "teacher-1") is not None
    with serve(MistralServer()) as url:
        asyncio.run(checked(MistralEndpoint(server_url=url)))


@pytest.mark.parametrize(
    ("known", "then"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "corp.example, 127.0.0.1"}, "corp.example,127.0.0.1,localhost,::1"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_other_libraries_are_told_of_local_servers(
    known: dict[str, str], then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's client and the trackers go by NO_PROXY; a company's hosts in it must not be lost."""
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    spare_local_servers()
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (then, then)


def test_the_exported_client_reaches_a_server_of_this_machine_past_any_proxy(tmp_path: Path) -> None:
    shutil.copy(CLIENTS / "client.py", tmp_path)
    settings = {"model": "teacher-1", "instructions": {"en": "Score."}, "max_tokens": 9, "guide": {}}
    (tmp_path / "client.json").write_text(json.dumps(settings))
    with serve(OpenAIServer(answer=lambda body: '{"a":1}')) as url:
        done = subprocess.run(
            [sys.executable, tmp_path / "client.py", "rain", "--url", url], capture_output=True, text=True,
            env={**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
        )  # fmt: skip
    assert (done.stdout, done.stderr) == ('{"a":1}\n', "")


async def checked(endpoint: Endpoint) -> None:
    try:
        await endpoint.check("teacher-1")
    finally:
        await endpoint.close()


@pytest.mark.parametrize(
    ("host", "no_proxy", "proxied"),
    [
        ("teacher.example", "", True),
        ("teacher.example", "example.org, .example", False),
        ("teacher.example", "*", False),
        ("10.1.2.3", "10.0.0.0/8", False),
        ("11.1.2.3", "10.0.0.0/8", True),
        ("[::1]", "", False),
        ("127.9.9.9", "", False),
        ("0.0.0.0", "", False),
        ("models.localhost.", "", False),
        ("localhost.example", "", True),
    ],
)
def test_who_is_reached_through_a_proxy(
    host: str, no_proxy: str, proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert network._proxy(f"http://{host}:8000/v1") == (("HTTP_PROXY", "http://proxy:3128") if proxied else None)


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("kéy-of-mine", "a character that is no ASCII at place 2"),
        ("\ufeffkey", "a character that is no ASCII at place 1"),
        ("key of mine", "a blank at place 4"),
        ("key\nX-Other: 1", "a line end at place 4"),
        ("key\x07", "a control character at place 4"),
        ('"key"', "quotation marks around it"),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "mistral"])
def test_a_key_that_no_header_can_carry(kind: str, key: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A UnicodeEncodeError from the depths, or a 401 for a key that looks right."""
    variable = "MISTRAL_API_KEY" if kind == "mistral" else "SERVER_KEY"
    whose = "https://api.mistral.ai" if kind == "mistral" else ANYWHERE
    monkeypatch.setenv(variable, key)
    with pytest.raises(network.NetworkError) as error:
        MistralEndpoint() if kind == "mistral" else OpenAICompatibleEndpoint(ANYWHERE, key_variable=variable)
    assert str(error.value) == (
        f"{variable}: expected the API key of {whose}, of printable ASCII characters; got one with {fault}; copy it "
        "again, without anything around it"
    )


def test_line_ends_and_blanks_around_a_key_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", " the-right-one\r\n")
    with serve(OpenAIServer(key="the-right-one")) as url:
        asyncio.run(checked(OpenAICompatibleEndpoint(f"{url}/v1", key_variable="SERVER_KEY")))


# ------------------------------------------------------------------------------------------------- what comes back


def endpoint(kind: str, url: str) -> Endpoint:
    return MistralEndpoint(server_url=url) if kind == "mistral" else OpenAICompatibleEndpoint(f"{url}/v1")


def refusal(kind: str, garbage: Garbage) -> str:
    """What a teacher's client says of a question that is answered so; it must not be asked again."""

    async def ask(one: Endpoint) -> None:
        try:
            await one.ask(ASKED)
        finally:
            await one.close()

    with serve(GarbageServer(garbage, lambda path, body: {}, ("/v1/chat/completions",))) as url:
        with pytest.raises(Refused) as error:
            asyncio.run(ask(endpoint(kind, url)))
        return str(error.value).replace(url, "URL")


@pytest.mark.parametrize("kind", ["openai", "mistral"])
def test_a_question_does_not_follow_a_redirect(kind: str) -> None:
    """The request's text and the key would go to whoever the redirect names."""
    elsewhere = OpenAIServer()
    with serve(elsewhere) as other:
        there = Garbage(b"", status=307, headers={"location": f"{other}/v1/chat/completions"})
        message = refusal(kind, there).replace(other, "OTHER")
    assert elsewhere.received == {}
    assert message.partition(": ")[2] == (
        "expected an answer; got HTTP 307, a redirect to OTHER/v1/chat/completions; requests are not sent on to "
        "another address: name that one, if it is to be trusted with them"
    )


@pytest.mark.parametrize("kind", ["openai", "mistral"])
def test_a_teachers_answer_is_bounded_too(kind: str) -> None:
    assert refusal(kind, COMMON["a bomb"]) == (
        "URL/v1/chat/completions: expected an answer of at most 16 MB; got more; is it the right server?"
    )


@pytest.mark.parametrize("packed", [b"plain", gzip.compress(b"plain", mtime=0), gzip.compress(b"", mtime=0)])
def test_honest_answers_are_unpacked(packed: bytes) -> None:
    headers = {"content-encoding": "gzip"} if packed != b"plain" else {}

    async def get(url: str) -> httpx2.Response:
        async with network.client(url, 5.0) as client:
            return await client.get(f"{url}/x")

    with serve(GarbageServer(Garbage(packed, headers=headers), lambda path, body: {}, ("/x",))) as url:
        expected = b"plain" if packed == b"plain" else gzip.decompress(packed)
        assert asyncio.run(get(url)).content == expected


# --------------------------------------------------------------------------------------- connections that fail


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """A server with a certificate of its own making."""
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True,
    )  # fmt: skip
    config = uvicorn.Config(
        OpenAIServer().app, log_level="critical", http="h11", lifespan="off", ssl_certfile=certificate, ssl_keyfile=key
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)


def checking(url: str) -> str:
    """What `check` says."""
    with pytest.raises(PpeError) as error:
        asyncio.run(checked(OpenAICompatibleEndpoint(url)))
    return str(error.value)


def test_a_certificate_of_an_unknown_authority(tls_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice was to start a server."""
    url = f"https://localhost:{tls_port}/v1"
    assert checking(url).endswith("; name the certificate of its authority in SSL_CERT_FILE")
    with pytest.raises(EngineError, match=r"name the certificate of its authority in SSL_CERT_FILE$"):
        asyncio.run(Vllm(url.removesuffix("/v1"), "m").check())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
    asyncio.run(checked(OpenAICompatibleEndpoint(url)))


def test_https_to_a_server_without_tls() -> None:
    with serve(OpenAIServer()) as url:
        said = checking(url.replace("http://127.0.0.1", "https://localhost") + "/v1")
    assert said.endswith("; it does not speak TLS: write http:// if that is meant")


def test_a_proxy_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hunter2@127.0.0.1:{free_port()}")
    said = checking("http://teacher.invalid/v1")
    assert said.endswith("; it was asked through the proxy in HTTP_PROXY: mend that, or name the host in NO_PROXY")
    assert "hunter2" not in said
