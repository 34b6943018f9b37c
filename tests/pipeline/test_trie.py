"""What makes a trie of scores, and the tokenizers that get none: each error through `build_trie`."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from ppe_lora.errors import ModelError
from ppe_lora.student.row_tokens import branch_tokens
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.student.trie import build_trie
from ppe_lora.tasks.scores import ScoresTask
from tests.runs import TASK
from tests.tiny import tiny_llama, tiny_mistral


def joining(folder: Path, token: str) -> Path:
    """A byte-level tokenizer with one token more."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama(folder))
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(folder)
    return folder


def by_character(**written: str) -> SimpleNamespace:
    """What no tokenizer of `load_tokenizer` is, as those give their texts back: a token a character, some characters
    written as others."""
    table = str.maketrans(written)
    return SimpleNamespace(
        folder="made", piece=chr, completion_ids=lambda messages, answer: [*map(ord, answer.translate(table))]
    )


def test_a_task_with_decimals_and_negative_values(tmp_path):
    """-5.0 to 5.0 in tenths: the sign and the point are choices like any digit, and every leaf is distinct."""
    task = ScoresTask(keys=("a", "b"), low=-5, high=5, decimals=1)
    tokenizer = load_tokenizer(tiny_mistral(tmp_path / "model", "v3"))
    trie = build_trie(task, tokenizer)
    assert len(trie.values) == len(set(trie.paths)) == 101
    assert len(trie.branches) == branch_tokens(task) == 21
    assert trie.completion([-5.0, 0.3]) == tokenizer.completion_ids(task.messages("x", "en"), '{"a":-5.0,"b":0.3}')


@pytest.mark.parametrize("task", [TASK, ScoresTask(keys=("a",), high=1000), ScoresTask(keys=("a",), low=1, high=5)])
def test_the_branches_are_those_that_memory_is_estimated_from(tmp_path, task):
    trie = build_trie(task, load_tokenizer(tiny_llama(tmp_path / "model")))
    assert len(trie.branches) == branch_tokens(task)


@pytest.mark.parametrize("token", ["7,", '"b":7'])
def test_a_token_of_a_digit_and_its_neighbour_makes_no_trie(tmp_path, token):
    """The digits are looked at in answers of one key, where such tokens need not stand."""
    folder = joining(tmp_path / "model", token)
    with pytest.raises(ModelError) as error:
        build_trie(TASK, load_tokenizer(folder))
    assert str(error.value) == (
        f"{folder}: expected the same tokens for a value behind every key; not so behind 'b'; "
        "this tokenizer joins digits with what surrounds them"
    )


@pytest.mark.parametrize("written", [{"9": "8"}, {"}": ""}, {"0": ""}], ids=["alike", "without an end", "empty"])
def test_values_that_tokens_do_not_tell_apart_make_no_trie(written):
    """Two values with the same tokens, values that nothing ends, and a value without any token."""
    with pytest.raises(ModelError) as error:
        build_trie(ScoresTask(keys=("a",), high=9), by_character(**written))
    assert str(error.value) == (
        "made: expected the same tokens for a value behind every key; not so behind 'a'; "
        "this tokenizer joins digits with what surrounds them"
    )


def test_a_terminator_that_is_a_digit_makes_no_trie():
    """Where a value may end and may go on with the same token, its end is not seen."""
    with pytest.raises(ModelError) as error:
        build_trie(TASK, by_character(**{",": "1"}))
    assert str(error.value) == "made: expected a token that ends the value behind 'a' and is no part of any; got '1'"


def test_values_written_otherwise_in_answers_of_one_key_make_no_trie(tmp_path):
    """Read from the request, a score is the one key of its own answer; behind other keys nothing is amiss."""
    folder = joining(tmp_path / "model", '{"b":4')
    tokenizer = load_tokenizer(folder)
    assert build_trie(TASK, tokenizer).alone is None
    with pytest.raises(ModelError) as error:
        build_trie(TASK, tokenizer, "request")
    assert str(error.value) == f"{folder}: expected values written alike in answers of one key; got other tokens"


def test_a_tokenizer_that_changes_its_mind_makes_no_trie():
    """As with BPE dropout: the same answer in other tokens the second time."""
    steady = by_character()
    asked: Counter[str] = Counter()

    def completion_ids(messages, answer):
        asked[answer] += 1
        return [*steady.completion_ids(messages, answer), *[0] * (asked[answer] > 2)]

    with pytest.raises(ModelError) as error:
        build_trie(TASK, SimpleNamespace(folder="made", piece=chr, completion_ids=completion_ids))
    assert str(error.value) == "made: expected the answer's parts to make up the answer; got other tokens"
