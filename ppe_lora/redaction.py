"""Secrets: refused in addresses, masked in everything that is shown, logged or kept.

Every `PpeError` masks its message, and trackers their logs. What a server answers goes through `mask_sent` where it is
read, and stays as it is otherwise.
"""

import os
import re
from urllib.parse import parse_qsl, urlsplit

MASK = "***"
_SHORTEST = 8
"""Characters of a secret: shorter ones, such as `none` and `EMPTY`, are placeholders."""
_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(r"(?:^|[_-])(?:key|token|secret|password|passwd|signature|sig|auth)$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHAPES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(://)[^\s\"'<>]*@", rf"\1{MASK}@"),  # to the last @: passwords hold some unquoted
        (r"(?i)\b(bearer|basic)(\s+)(?=\S*\d)[\w.~+/=-]{16,}", rf"\1\2{MASK}"),
        (
            r"(?i)((?:api[-_ ]?key(?:_env)?|access[-_]?token|authorization|secret|passwd|password)[\"']?\s*[:=]\s*"
            r"[\"']?(?:bearer |basic )?)(?=\S*\d)[^\s\"'&,;}<>*]{8,}",
            rf"\1{MASK}",
        ),
        (r"(?i)([?&](?:key|token|sig|signature)=)[^\s\"'&]+", rf"\1{MASK}"),
        (r"\b(?:sk|pk|rk)[-_][\w-]{20,}|\b(?:hf|gsk|ghp|gho|xai)_?[A-Za-z0-9]{24,}|\bAKIA[A-Z0-9]{16}\b", MASK),
    )
)
_remembered: set[str] = set()


def remember(secret: str) -> None:
    """Have `mask` hide a secret wherever it appears, whatever its environment variable is called."""
    if len(secret) >= _SHORTEST:
        _remembered.add(secret)


def mask(text: str) -> str:
    """A text without secrets: keys of this process and its environment, user names in addresses, what looks like a key.

    Example:
        >>> mask("http://me:hunter2@host:8000/v1 said: bad header Authorization: Bearer 0123456789abcdef0123")
        'http://***@host:8000/v1 said: bad header Authorization: Bearer ***'
    """
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, MASK)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def mask_sent(text: str) -> str:
    """A text without the keys that this process sends: all that the answer of a server can echo. Nothing else of it is
    touched, since it becomes data."""
    for secret in _remembered:
        text = text.replace(secret, MASK)
    return text


def address_problem(address: str) -> str | None:
    """What is wrong with the address of a server, as `expected X; got Y` and the remedy; None for a good one.

    Credentials are never repeated in it.
    """
    shown = _without_credentials(address)
    if not address.startswith(("http://", "https://")):
        return f"expected an address such as http://localhost:8000/v1; got {shown!r}"
    if shown != address:
        return (
            f"expected an address without a user name or password; got {shown}; take what is before the @ out: it "
            "would stand in every answer and error, and a server's key belongs into an environment variable"
        )
    if fault := _host_fault(address):
        return f"expected an address such as http://localhost:8000/v1; got {shown!r} ({fault})"
    parameters = parse_qsl(urlsplit(address).query)
    named = next((name for name, _ in parameters if _SECRET_PARAMETER.search(name)), None)
    if named is not None:
        return (
            f"expected an address without keys; got one in the parameter {named}; put it into an environment variable"
        )
    if "?" in address or "#" in address:
        return f"expected an address that ends with its path; got {shown!r}; leave out what begins at ? or #"
    return None


def variable_problem(name: str) -> str | None:
    """What is wrong with the name of an environment variable that is to hold a key; None for a good one.

    A key written in the place of the name is never repeated.
    """
    looks_like_key = len(name) >= 20 and any(map(str.isdigit, name)) and any(map(str.islower, name))
    if _VARIABLE.fullmatch(name) and not looks_like_key:
        return None
    return (
        f"expected the name of an environment variable, such as MY_API_KEY; got {len(name)} other characters; "
        "if they are the key itself, `export MY_API_KEY=...` and name the variable here"
    )


def _secrets() -> set[str]:
    found = set(_remembered)
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name) and len(value.strip()) >= _SHORTEST:
            found.add(value.strip())
    return found


def _without_credentials(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "", address
    return f"{scheme}{separator}{MASK}@{rest.rpartition('@')[2]}" if "@" in rest else address


def _host_fault(address: str) -> str | None:
    """Why no connection can be opened to an address."""
    from httpx2 import URL, InvalidURL  # 50 ms that most commands do not need

    if any(character.isspace() for character in address):
        return "it holds white space"
    try:
        url = URL(address)
        host = url.raw_host.decode("ascii")
    except (InvalidURL, ValueError) as error:
        return str(error)
    if not host or "%" in host:
        return "no host name"
    if ":" not in host and not all(0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
        return "a part of the host name is empty or longer than 63 characters"
    if url.port is not None and not 0 < url.port < 65536:
        return f"port {url.port} is not between 1 and 65535"
    return None
