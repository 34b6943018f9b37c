"""What the bytes of a text file are: the file opened as text, or words on what it is instead and what to do."""

import codecs
import re
from pathlib import Path
from typing import TextIO

from ppe_lora.cells import shown
from ppe_lora.errors import DataError

_HEAD = 1 << 16
_FOREIGN = {
    b"\x1f\x8b": ("gzip", "unpack it: gunzip {name}"),
    b"BZh": ("bzip2", "unpack it: bunzip2 {name}"),
    b"\xfd7zXZ": ("xz", "unpack it: unxz {name}"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unpack it: zstd -d {name}"),
    b"PK\x03\x04": ("an Excel workbook or a zip archive", "save its sheet as `CSV UTF-8`, or unpack it"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save its sheet as `CSV UTF-8`"),
    b"PAR1": ("Parquet", "write it as CSV or JSONL"),
    bytes(8): ("zeros", "copy the file again"),
}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_text(path: Path, encoding: str = "utf-8", key: str | None = None, errors: str = "strict") -> TextIO:
    """A file open as text, line ends as they are, without a byte order mark.

    Args:
        path: The file.
        encoding: What the recipe says it is in.
        key: The recipe's key of the encoding, where it has one, for the remedy.
        errors: As for `open`: what becomes of bytes that are not in the encoding.

    Raises:
        DataError: Its first bytes are those of another format or encoding.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for start, (kind, remedy) in _FOREIGN.items():
        if head.startswith(start):
            raise DataError(f"{path}: expected text; got {kind}; {remedy.format(name=path.name)}")
    utf8 = codecs.lookup(encoding).name == "utf-8"
    if utf8 and (found := _wide(head)):
        raise DataError(f"{path}:1: expected UTF-8 text; its first bytes are those of {found.upper()}; "
                        f"{_remedy(path, found, key)}")  # fmt: skip
    if not encoding.lower().startswith("utf") and _is_utf8(path.read_bytes()):
        raise DataError(f"{path}: expected {encoding} text; got UTF-8; delete {key}")
    return path.open(encoding="utf-8-sig" if utf8 else encoding, errors=errors, newline="")


def undecodable(path: Path, encoding: str = "utf-8", key: str | None = None) -> DataError:
    """The error for a file whose bytes are not in `encoding`: the line, the byte, and what it looks like."""
    content = path.read_bytes()
    name = "UTF-8" if codecs.lookup(encoding).name == "utf-8" else encoding
    found = _wide(content[:_HEAD]) or _likely(content)
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        before, behind = content[: error.start], content[error.start :]
        line = len(re.findall(r"\r\n|\r|\n", before.decode(encoding, "replace"))) + 1
        where, what = f"{path}:{line}", f"got byte {behind[0]:#04x}"
        sample = f" ({_first_words(behind, found)})" if found in _NAMES else ""
    else:
        where, what, sample = str(path), "got text without a byte order mark", ""
    looks = "correct or delete it" if name == "UTF-8" else "save the file as UTF-8"
    if found:
        looks = f"it looks like {_NAMES.get(found, found)}{sample}; {_remedy(path, found, key)}"
    return DataError(f"{where}: expected {name} text; {what}; {looks}")


def _first_words(content: bytes, encoding: str) -> str:
    """How a line goes on in an encoding, for a reader to judge it by."""
    line = re.split(rb"[\r\n]", content[:80])[0]
    return shown(line.decode(encoding, "ignore")[:16])


def _remedy(path: Path, encoding: str, key: str | None) -> str:
    if key:
        return f"write {key}: {encoding}, or save the file as UTF-8"
    return f"save the file as UTF-8: iconv -f {encoding} -t utf-8 {path.name} > NEW"


def _wide(head: bytes) -> str | None:
    """The encoding of two or four bytes a character, by its mark, or by the zeros of Latin text without one."""
    for mark, name in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return name
    even, odd = head[:256:2].count(0), head[1:256:2].count(0)
    half = len(head[:256]) // 4
    return "utf-16-le" if odd > half and not even else "utf-16-be" if even > half and not odd else None


_NAMES = {"utf-8": "UTF-8", "cp932": "Shift-JIS", "euc_jp": "EUC-JP", "cp1252": "Windows-1252 or Latin-1"}


def _likely(content: bytes) -> str | None:
    """The encoding that bytes are most likely in; None where none fits, or where most of them are UTF-8.

    Accented Latin letters may pass for Japanese ones, but they follow other Latin letters.
    """
    if _is_utf8(content):
        return "utf-8"
    signs = [sign for sign in content.decode("utf-8", "replace") if not sign.isascii()]
    if signs.count("\ufffd") * 2 < len(signs):
        return None
    for name in ("euc_jp", "cp932"):
        runs = re.findall(r"(?:^|(.))([^\x00-\x7f]+)", _decoded(content, name), re.DOTALL)
        inside_words = sum(before.isalpha() for before, _ in runs)
        whole = sum("ぁ" <= sign <= "ヿ" or "一" <= sign <= "鿿" for _, run in runs for sign in run)
        if runs and inside_words * 2 < len(runs) and whole * 2 > sum(len(run) for _, run in runs):
            return name
    return "cp1252" if _decoded(content, "cp1252") else None


def _is_utf8(content: bytes) -> bool:
    """Whether bytes are UTF-8 and more than ASCII: other encodings make such bytes by accident only."""
    return not content.isascii() and bool(_decoded(content, "utf-8"))


def _decoded(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return ""
