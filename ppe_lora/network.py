"""Clients for servers that answer us: one home of keys, proxies, certificates, redirects and sizes.

A client talks to one address. Servers of this machine are reached without a proxy, whatever the environment names. A
redirect is never followed, since it would take a request's text and key elsewhere. A body is cut off where it gets
larger than any honest answer, counted after decompression.
"""

import importlib.util
import ipaddress
import itertools
import os
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import anyio
import httpx2

from ppe_lora.errors import EngineError
from ppe_lora.redaction import address_problem, mask, remember

BROKEN = (httpx2.HTTPError, OSError, anyio.EndOfStream)
"""How a connection fails; httpx2 lets some failures of TLS through as they are."""
LARGEST_BYTES = 16_000_000
"""Of a body after decompression: the answer with the log-probabilities of a thousand places is smaller by far."""
_CONNECT_S = 10.0
_CONNECTIONS = 1000
"""Of one pool."""
_POOLS = 16
_PIECE = 65536
_REMEDY = "mend or unset it, or name the host in NO_PROXY"


class NetworkError(EngineError):
    """A client cannot be made, or what came back is larger or otherwise packed than it may be."""


def read_key(variable: str, whose: str) -> str:
    """The API key in an environment variable, without blanks and line ends around it; empty where there is none.

    Args:
        variable: Its name.
        whose: Whose key it is, for the message.

    Raises:
        NetworkError: It holds what no header can carry.
    """
    key = os.environ.get(variable, "").strip()
    odd = next((place for place, character in enumerate(key, 1) if not "!" <= character <= "~"), None)
    quoted = key[:1] in "\"'" and key[:1] == key[-1:] and len(key) > 1
    if odd is not None or quoted:
        fault = "quotation marks around it" if odd is None else _named(key[odd - 1]) + f" at place {odd}"
        raise NetworkError(
            f"{variable}: expected the API key of {whose}, of printable ASCII characters; got one with {fault}; copy "
            "it again, without anything around it"
        )
    remember(key)
    return key


def client(
    address: str, timeout_s: float, *, largest_bytes: int = LARGEST_BYTES, many: bool = False
) -> httpx2.AsyncClient:
    """A client for one server.

    Args:
        address: Where it is; proxies and certificates are chosen for it.
        timeout_s: Longest wait for a part of an answer.
        largest_bytes: Largest body.
        many: Whether it keeps thousands of connections open: how many requests run at once is the caller's decision.

    Raises:
        NetworkError: The address is none, or the environment names a proxy or certificates that cannot be used.
    """
    check_environment(address)
    proxy = _proxy(address)
    # Without TLS no certificates: reading them takes longer than the first answer of a local server.
    tls = httpx2.create_ssl_context() if _uses_tls(address, proxy) else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    limits = httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
    pools = [
        httpx2.AsyncHTTPTransport(verify=tls, limits=limits, proxy=proxy and httpx2.Proxy(proxy[1]), trust_env=False)
        for _ in range(_POOLS if many and proxy is None else 1)
    ]
    return httpx2.AsyncClient(
        transport=_Transport(pools, largest_bytes),
        timeout=httpx2.Timeout(timeout_s, connect=_CONNECT_S),
        headers={"Accept-Encoding": "gzip, deflate"},
        follow_redirects=False,
        trust_env=False,
    )


def check_environment(address: str) -> None:
    """See that an address can be reached: the address itself, and the environment's proxy and certificates for it.

    Raises:
        NetworkError: All that cannot be used, one a line.
    """
    if problem := address_problem(address):
        raise NetworkError(f"server: {problem}")
    problems = []
    proxy = _proxy(address)
    if proxy is not None and (problem := _proxy_problem(proxy[1])):
        problems.append(f"{proxy[0]}: {problem}; {_REMEDY}")
    if _uses_tls(address, proxy):
        problems += _certificate_problems()
    if problems:
        raise NetworkError("\n".join(problems))


def is_local(host: str) -> bool:
    """Whether a host is this machine by its name or number."""
    name = host.strip("[]").removesuffix(".").lower()
    try:
        number = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return number.is_loopback or number.is_unspecified


def redirected(status: int, location: str | None) -> str | None:
    """What to say of a redirect; None for any other status."""
    if not 300 <= status < 400 or location is None:
        return None
    return (
        f"HTTP {status}, a redirect to {mask(location)[:300]}; requests are not sent on to another address: name that "
        "one, if it is to be trusted with them"
    )


def remedy(address: str, error: BaseException) -> str:
    """What to look at after a failed connection, other than whether the server runs; empty where that is all.

    Args:
        address: Where the server is.
        error: How the connection failed.
    """
    said = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return "name the certificate of its authority in SSL_CERT_FILE"
    if "WRONG_VERSION_NUMBER" in said or "RECORD_LAYER" in said:
        return "it does not speak TLS: write http:// if that is meant"
    if (proxy := _proxy(address)) is not None:
        return f"it was asked through the proxy in {proxy[0]}: mend that, or name the host in NO_PROXY"
    if isinstance(error.__cause__, httpx2.HTTPError):
        return remedy(address, error.__cause__)
    return ""


class _Transport(httpx2.AsyncBaseTransport):
    """Takes turns among pools of connections, and bounds what comes back.

    For every request a pool looks at each of its connections, so that many small ones cost less than a large one.
    """

    def __init__(self, pools: list[httpx2.AsyncHTTPTransport], largest_bytes: int) -> None:
        self._pools, self._largest_bytes = pools, largest_bytes
        self._turns = itertools.cycle(pools)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await next(self._turns).handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        headers = response.headers.copy()
        encoding = headers.pop("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            headers.pop("content-length", None)
        stream = _Bounded(response.stream, encoding, str(request.url), self._largest_bytes)
        return httpx2.Response(response.status_code, headers=headers, stream=stream, extensions=response.extensions)

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()


class _Bounded(httpx2.AsyncByteStream):
    """A body, decompressed piece by piece."""

    def __init__(self, stream: httpx2.AsyncByteStream, encoding: str, where: str, largest_bytes: int) -> None:
        self._stream, self._encoding, self._where, self._left = stream, encoding, where, largest_bytes
        self._largest_bytes = largest_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise NetworkError(
                f"{self._where}: expected an answer packed with gzip or not at all; got {self._encoding[:40]}; switch "
                "other compressions off"
            )
        unzip = None if self._encoding in ("identity", "") else zlib.decompressobj(wbits=47)  # gzip or zlib
        async for chunk in self._stream:
            for piece in [chunk] if unzip is None else _pieces(unzip, chunk):
                self._left -= len(piece)
                if self._left < 0:
                    raise NetworkError(
                        f"{self._where}: expected an answer of at most {self._largest_bytes / 1e6:g} MB; got more; is "
                        "it the right server?"
                    )
                yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def _pieces(unzip: "zlib._Decompress", chunk: bytes) -> Iterator[bytes]:
    while chunk and not unzip.eof:
        try:
            piece = unzip.decompress(chunk, _PIECE)
        except zlib.error as error:
            raise httpx2.DecodingError(f"broken compression: {error}") from error
        chunk = unzip.unconsumed_tail
        if piece:
            yield piece


def _uses_tls(address: str, proxy: tuple[str, str] | None) -> bool:
    return address.startswith("https://") or (proxy is not None and proxy[1].startswith("https://"))


def _proxy(address: str) -> tuple[str, str] | None:
    """The environment's proxy for an address: its variable, and where it is."""
    url = httpx2.URL(address)
    if is_local(url.host) or proxy_bypass(url.host) or _in_networks(url.host, getproxies().get("no", "")):
        return None
    for scheme in (url.scheme, "all"):
        if proxy := getproxies().get(scheme, "").strip():
            variable = next((name for name in os.environ if name.lower() == f"{scheme}_proxy"), f"{scheme} proxy")
            return variable, proxy if "://" in proxy else f"http://{proxy}"
    return None


def _in_networks(host: str, no_proxy: str) -> bool:
    """Whether a host's number lies in one of NO_PROXY's networks (10.0.0.0/8), which Python's own rule passes over."""
    for entry in re.split(r"[\s,]+", no_proxy):
        try:
            if "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False


def _proxy_problem(proxy: str) -> str | None:
    scheme, _, rest = proxy.partition("://")
    if scheme.lower() in ("socks5", "socks5h"):
        if importlib.util.find_spec("socksio") is None:
            return f"expected a proxy that speaks HTTP; got {mask(proxy)}, for which the package socksio is missing"
        scheme = "http"
    # A proxy may ask for a name and a password, unlike a server: what is before the @ is left out of the look at it.
    problem = address_problem(f"{scheme}://{rest.rpartition('@')[2]}".removesuffix("/"))
    try:
        httpx2.Proxy(proxy)
    except (httpx2.InvalidURL, ValueError):
        problem = "invalid"
    return problem and f"expected a proxy such as http://localhost:3128; got {mask(proxy)}"


def _certificate_problems() -> Iterator[str]:
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        try:
            ssl.create_default_context(cafile=file)
        except OSError as error:  # ssl.SSLError is one
            fault = "no certificates in it" if isinstance(error, ssl.SSLError) else error.strerror
            yield f"SSL_CERT_FILE: expected a file of certificates (PEM); got {file}: {fault}; mend or unset it"
    elif folder and not Path(folder).is_dir():
        yield f"SSL_CERT_DIR: expected a folder of certificates; got {folder}: no such folder; mend or unset it"


def _named(character: str) -> str:
    if character.isspace():
        return "a line end" if character in "\r\n" else "a blank"
    return "a character that is no ASCII" if ord(character) > 126 else "a control character"
