"""Data files as people, spreadsheets and attackers make them: each is built, or refused with words."""

import gzip
import json
import random
from pathlib import Path

from case import TRACEBACK, Case, last_line, ppe, words_only

_WORDS = ["rain", "a storm at sea", "dancing alone", "雨の夜", "morning coffee", "a long goodbye", "neon", "dust"]
_RECIPE = """
name: hostile
task: {{keys: [joy], instruction: {{en: "Score {{keys}} from {{low}} to {{high}}."}}}}
student: {{model: none}}
data:
  name: hostile
  source:
    kind: import
    source_dir: .
    files: {{all: {{path: {name}}}}}
    request: all.text
    target: {{joy: all.joy}}
"""


def _table(change: str = "", separator: str = ",", end: str = "\n") -> str:
    """Sixty rows of id, text and joy; the thirtieth is replaced by `change`."""
    chance = random.Random(0)
    lines = [separator.join(("id", "text", "joy"))]
    lines += [
        separator.join((f"r{i}", f"{_WORDS[i % 8]} {chance.randrange(10**9)}", str(chance.randrange(101))))
        for i in range(60)
    ]
    if change:
        lines[30] = change
    return end.join(lines) + end


def _lines(change: str = "") -> str:
    """The same rows as JSON lines."""
    header, *rows = _table().splitlines()
    lines = [json.dumps(dict(zip(header.split(","), row.split(","), strict=True))) for row in rows]
    if change:
        lines[30] = change
    return "\n".join(lines) + "\n"


_DEEP = '{"id": "x", "text": ' + '{"a":' * 3000 + "1" + "}" * 3000 + ', "joy": 1}'
_READ: dict[str, tuple[str, str | bytes]] = {
    "plain": ("a.csv", _table()),
    "byte order mark": ("a.csv", "\ufeff" + _table()),
    "capital ending": ("a.CSV", _table()),
    "semicolons": ("a.csv", _table(separator=";")),
    "tabs": ("a.tsv", _table(separator="\t")),
    "sep= line": ("a.csv", "sep=;\r\n" + _table(separator=";", end="\r\n")),
    "old Mac line ends": ("a.csv", _table(end="\r")),
    "mixed line ends": ("a.csv", _table().replace("\n", "\r\n", 20)),
    "empty rows of a spreadsheet": ("a.csv", _table() + ",,\n,,\n"),
    "empty columns of a spreadsheet": ("a.csv", _table().replace("\n", ",,\n")),
    "quoted line ends": ("a.csv", _table('q,"two\r\nlines",5')),
    "formula with apostrophe": ("a.csv", _table("q,'=1+1,5")),
    "numbers padded with blanks": ("a.csv", _table("q,x, 5 ")),
    "JSON lines": ("a.jsonl", _lines()),
    "JSON lines with a byte order mark": ("a.jsonl", "\ufeff" + _lines()),
    "JSON numbers as ids": ("a.jsonl", _lines('{"id": 7, "text": "seven", "joy": 7.0}')),
    "blank JSON lines": ("a.jsonl", _lines().replace("\n", "\n\n")),
}
_REFUSED: dict[str, tuple[str, str | bytes]] = {
    "Shift-JIS": ("a.csv", _table().encode("cp932")),
    "EUC-JP": ("a.csv", _table().encode("euc_jp")),
    "Latin-1": ("a.csv", _table("q,un été à la crème,5").replace("雨の夜", "nuit").encode("cp1252")),
    "UTF-16": ("a.csv", _table().encode("utf-16")),
    "UTF-16 without a mark": ("a.csv", _table().encode("utf-16-le")),
    "UTF-32": ("a.csv", _table().encode("utf-32")),
    "gzip": ("a.csv", gzip.compress(_table().encode())),
    "workbook": ("a.csv", b"PK\x03\x04" + bytes(range(256))),
    "random bytes": ("a.csv", random.Random(1).randbytes(5000)),
    "zeros": ("a.csv", bytes(5000)),
    "zeros as JSON lines": ("a.jsonl", bytes(5000)),
    "empty": ("a.csv", ""),
    "header only": ("a.csv", "id,text,joy\n"),
    "header twice": ("a.csv", _table("id,text,joy")),
    "title above the header": ("a.csv", "Survey 2026,,\n" + _table()),
    "column twice": ("a.csv", _table().replace("text,joy", "joy,joy", 1)),
    "no column names": ("a.csv", ",,\n" + _table()),
    "quote never closed": ("a.csv", _table('q,"x,5')),
    "quote never closed, long": ("a.csv", _table('q,"' + "x" * 200_000)),
    "text behind a quote": ("a.csv", _table('q,"x" y,5')),
    "field too many": ("a.csv", _table("q,x,5,6")),
    "field too few": ("a.csv", _table("q,x")),
    "NUL in a text": ("a.csv", _table("q,x\x00y,5")),
    "escape character": ("a.csv", _table("q,\x1b[31mx,5")),
    "decimal comma": ("a.csv", _table('q,x,"3,5"')),
    "thousands separator": ("a.csv", _table('q,x,"1,234"')),
    "percent": ("a.csv", _table("q,x,45%")),
    "underscore": ("a.csv", _table("q,x,1_0")),
    "wide digits": ("a.csv", _table("q,x,１０")),
    "infinity": ("a.csv", _table("q,x,Infinity")),
    "hexadecimal": ("a.csv", _table("q,x,0x10")),
    "date": ("a.csv", _table("q,x,2026-05-03")),
    "missing score": ("a.csv", _table("q,x,")),
    "missing id": ("a.csv", _table(",x,5")),
    "id twice": ("a.csv", _table("r1,x,5")),
    "id with a blank": ("a.csv", _table(" r1,x,5")),
    "5,000 digits": ("a.jsonl", _lines('{"id": "x", "text": "x", "joy": ' + "9" * 5000 + "}")),
    "key twice": ("a.jsonl", _lines('{"id": "x", "text": "x", "text": "y", "joy": 5}')),
    "NaN": ("a.jsonl", _lines('{"id": "x", "text": "x", "joy": NaN}')),
    "too large": ("a.jsonl", _lines('{"id": "x", "text": "x", "joy": 1e999}')),
    "3,000 nested keys": ("a.jsonl", _lines(_DEEP)),
    "lone surrogate": ("a.jsonl", _lines('{"id": "x", "text": "\\ud800", "joy": 5}')),
    "list as text": ("a.jsonl", _lines('{"id": "x", "text": ["x"], "joy": 5}')),
    "truth value as text": ("a.jsonl", _lines('{"id": "x", "text": true, "joy": 5}')),
    "truth value as score": ("a.jsonl", _lines('{"id": "x", "text": "x", "joy": true}')),
    "record without the request": ("a.jsonl", _lines('{"id": "x", "joy": 5}')),
    "record without an id": ("a.jsonl", _lines('{"text": "x", "joy": 5}')),
    "1.0 as id": ("a.jsonl", _lines('{"id": 1.0, "text": "x", "joy": 5}')),
    "trailing commas": ("a.jsonl", _lines().replace("\n", ",\n")),
    "JSON list": ("a.jsonl", "[" + _lines().strip().replace("\n", ",") + "]"),
    "JSON file": ("a.json", "[" + _lines().strip().replace("\n", ",") + "]"),
    "ratings from 0 to 1": ("a.csv", "id,text,joy\n" + "".join(f"r{i},text {i},{i / 59:.3f}\n" for i in range(60))),
    "ones and zeros": ("a.csv", "id,text,joy\n" + "".join(f"r{i},text {i},{i % 2}\n" for i in range(60))),
    "requests of zero width": ("a.csv", "id,text,joy\n" + "".join(f"r{i},\u200b,{i}\n" for i in range(60))),
}


def cases(quick: bool, scratch: Path) -> list[Case]:
    """Every file is built by `ppe-lora data build`; quick leaves out every second one."""
    found = []
    for read, files in ((True, _READ), (False, _REFUSED)):
        for number, (title, (name, content)) in enumerate(files.items()):
            if quick and number % 2:
                continue
            folder = scratch / f"{read}{number}"
            folder.mkdir()
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
            (folder / "r.yaml").write_text(_RECIPE.format(name=name))
            done = ppe("data", "build", "r.yaml", cwd=folder)
            whole = (folder / "data" / "hostile" / "manifest.json").is_file()
            passed = words_only(done) and not whole
            if read:
                passed = done.returncode == 0 and whole and TRACEBACK not in done.stderr
            found.append(Case(title, "rows" if read else "status 2, words, no rows", last_line(done), passed))
    return found
