"""Broken and hostile files: model folders, recipes, and the JSON of data sets and runs. None is used, all are told."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from case import Case, last_line, ppe_forked, words_only

ROOT = Path(__file__).parents[2]
Spoil = Callable[[Path], object]
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefghi", "bcdefghij", strict=True)
)
_OTHERS: dict[str, Any] = {
    "a list": [1],
    "null": None,
    "empty": b"",
    "half": b'{"a": {',
    "deep": b"[" * 100_000,
    "UTF-16": "{}".encode("utf-16"),
}
"""In place of a JSON object."""


def cases(quick: bool, scratch: Path) -> list[Case]:
    """Recipes, model folders, and the JSON files of a data set."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, str(ROOT))
    from tests.runs import make_data, make_recipe
    from tests.tiny import tiny_llama

    good = scratch / "good"
    make_data(good / "data" / "d")
    tiny_llama(good / "model")
    make_recipe(good, Path("model"))
    (good / "run.yaml").write_text((good / "run.yaml").read_text().replace("'model'", "./model"))
    commands: dict[str, tuple[tuple[str, ...], dict[str, Spoil]]] = {
        "recipe": (("data", "show", "run.yaml"), _recipes()),
        "model": (("train", "run.yaml", "train.epochs=1"), _models(quick)),
        "data set": (("data", "stats", "run.yaml"), _json_files("data/d/manifest.json", quick)),
        "override": (("data", "show", "run.yaml", f"data={{a: {BOMB}}}"), {"alias bomb": lambda here: None}),
    }
    found = []
    for what, (command, spoils) in commands.items():
        for name, spoil in spoils.items():
            here = Path(shutil.copytree(good, scratch / "here"))
            spoil(here)
            done = ppe_forked(*command, cwd=here)
            found.append(Case(f"{what}: {name}", "words", last_line(done), words_only(done)))
            shutil.rmtree(here)
    return found


def _put(name: str, content: Any) -> Spoil:
    whole = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda here: (here / name).write_bytes(whole)


def _changed(name: str, **values: Any) -> Spoil:
    return lambda here: (here / name).write_text(json.dumps(json.loads((here / name).read_text()) | values))


def _cut(name: str, share: float) -> Spoil:
    def spoil(here: Path) -> None:
        whole = (here / name).read_bytes()
        (here / name).write_bytes(whole[: int(share * len(whole))])

    return spoil


def _piped(name: str) -> Spoil:
    def spoil(here: Path) -> None:
        (here / name).unlink(missing_ok=True)
        os.mkfifo(here / name)

    return spoil


def _json_files(name: str, quick: bool) -> dict[str, Spoil]:
    chosen = list(_OTHERS.items())[:: 3 if quick else 1]
    return {f"{Path(name).name} {kind}": _put(name, content) for kind, content in chosen}


def _recipes() -> dict[str, Spoil]:
    return {
        "alias bomb": _put("run.yaml", BOMB.encode()),
        "3,000 nested keys": _put("run.yaml", b"{a: " * 3000 + b"1" + b"}" * 3000),
        "300 indented keys": _put("run.yaml", "\n".join(" " * i + "a:" for i in range(300)).encode()),
        "binary": _put("run.yaml", bytes(range(256))),
        "empty": _put("run.yaml", b""),
        "a list": _put("run.yaml", b"- a"),
        "month 13": _put("run.yaml", b"seed: 2001-13-45"),
        "large": _put("run.yaml", b"# x\n" * 1_000_000),
        "a pipe": _piped("run.yaml"),
        "extends a bomb": lambda here: (
            _put("b.yaml", BOMB.encode())(here),
            _put("run.yaml", b"extends: b.yaml")(here),
        ),
        "extends itself": _put("run.yaml", b"extends: run.yaml"),
    }


def _models(quick: bool) -> dict[str, Spoil]:
    spoils = {
        **_json_files("model/config.json", quick),
        **_json_files("model/model.safetensors.index.json", quick),
        **_json_files("model/tokenizer.json", quick),
        **_json_files("model/tokenizer_config.json", quick),
        **_json_files("model/generation_config.json", quick),
        "weights empty": _put("model/model.safetensors", b""),
        "weights cut": _cut("model/model.safetensors", 0.5),
        "weights with a header of exabytes": _put("model/model.safetensors", (2**62).to_bytes(8, "little")),
        "weights a pipe": _piped("model/model.safetensors"),
        "tokenizer cut": _cut("model/tokenizer.json", 0.5),
        "tokenizer a pipe": _piped("model/tokenizer.json"),
        "a billion layers": _changed("model/config.json", num_hidden_layers=10**9),
        "no heads": _changed("model/config.json", num_attention_heads=0),
        "a text for a width": _changed("model/config.json", hidden_size="64"),
        "unknown architecture": _changed("model/config.json", model_type="x"),
    }
    for name in ("../outside.safetensors", "/etc/passwd", ".", "config.json", "b.safetensors"):
        spoils[f"index naming {name}"] = _put("model/model.safetensors.index.json", {"weight_map": {"a": name}})
    for template in ("{% for %}", "{{ 1/0 }}", "{{ ''.__class__.__mro__ }}", "x"):
        spoils[f"template {template}"] = _put("model/chat_template.jinja", template.encode())
    return spoils
