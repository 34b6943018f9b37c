"""The drafted decoder against `generate`, brute force and the padded loss."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ppe_lora.student.attention import IMPLEMENTATION
from ppe_lora.student.collate import PaddedCollator, completion_nll
from ppe_lora.student.decode import Decoder, _is_argmax, answer_token_limit, generate, measure_latency_ms
from ppe_lora.student.encode import encode_rows
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.student.trie import build_trie
from ppe_lora.tasks.scores import Answer, ScoresTask
from tests.brute_force import CASES, greedy, log_probs
from tests.runs import TASK, make_rows_of, make_speaker
from tests.tiny import tiny_mistral

SIX = ScoresTask()
HALF_TRAINED = 36
"""Steps after which about half of the speaker's answers are valid."""


def decoder_for(folder, task=TASK, slots="answers") -> Decoder:
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=IMPLEMENTATION).eval()
    return Decoder(model, tokenizer, build_trie(task, tokenizer, slots), answer_token_limit(task, tokenizer))


def encoded(decoder, count, task=TASK, seed=3):
    return list(encode_rows(make_rows_of(task, count, seed), task, decoder.tokenizer, 512).encoded)


def freely(decoder, rows) -> list[list[int]]:
    return generate(decoder.model, [row.prompt_ids for row in rows], decoder.tokenizer, decoder.max_new_tokens)


def test_free_text_is_what_generate_writes(tmp_path):
    """500 rows of a model that is learning the format, valid and broken answers, down to the end token."""
    decoder = decoder_for(make_speaker(tmp_path / "half", steps=HALF_TRAINED))
    rows = encoded(decoder, 500)
    expected = freely(decoder, rows)
    valid = sum(isinstance(TASK.parse(decoder.tokenizer.decode(ids)), Answer) for ids in expected)
    assert 50 < valid < 450  # both the draft and the fallback are needed
    assert [one.ids for one in decoder.decode(rows, batch_rows=64)] == expected


@pytest.mark.parametrize("case", CASES)
def test_forced_answers_and_distributions_by_brute_force(case, tmp_path, monkeypatch):
    """An untrained model never says JSON; forced, it does, the likeliest legal token at a time, and each value has the
    probability of its own text."""
    monkeypatch.setenv("PPE_LORA_CACHE", str(tmp_path / "cache"))
    build, task = CASES[case]
    decoder = decoder_for(build(tmp_path / "model"), task)
    tokenizer = decoder.tokenizer
    rows = encoded(decoder, 3, task)
    free = decoder.decode(rows, batch_rows=2)
    assert [one.ids for one in free] == freely(decoder, rows)
    for row, one, unforced in zip(rows, decoder.decode(rows, batch_rows=2, forced=True), free, strict=True):
        assert tuple(one.ids) == greedy(decoder.model, row.prompt_ids, task, tokenizer)
        values = dict(zip(task.keys, task.parse(tokenizer.decode(one.ids)).values, strict=True))
        assert torch.equal(one.log_p_KV, unforced.log_p_KV)
        torch.testing.assert_close(one.log_p_KV.exp().sum(-1), torch.ones(len(task.keys)), rtol=0, atol=1e-5)
        for place, key in enumerate(task.keys):
            before = {other: values[other] for other in task.keys[:place]}
            expected_V = log_probs(decoder.model, row.prompt_ids, task, tokenizer, key, before)
            torch.testing.assert_close(one.log_p_KV[place], expected_V, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_scores_read_from_the_request_alone(case, tmp_path, monkeypatch):
    """One pass, each score as the one key of its own answer: brute force on such texts, forced and free alike."""
    monkeypatch.setenv("PPE_LORA_CACHE", str(tmp_path / "cache"))
    build, task = CASES[case]
    decoder = decoder_for(build(tmp_path / "model"), task, slots="request")
    tokenizer = decoder.tokenizer
    rows = encoded(decoder, 3, task)
    free = decoder.decode(rows, batch_rows=2)
    assert [one.ids for one in free] == freely(decoder, rows)
    passes = []
    hook = decoder.model.register_forward_hook(lambda *_: passes.append(1))
    forced = decoder.decode([row._replace(completion_ids=[]) for row in rows], batch_rows=3, forced=True)
    assert len(passes) == 1  # the instruction is encoded already
    hook.remove()
    for row, one, unforced in zip(rows, forced, free, strict=True):
        said = task.parse(tokenizer.decode(one.ids)).values
        torch.testing.assert_close(one.log_p_KV, unforced.log_p_KV, rtol=0, atol=1e-5)
        for place, key in enumerate(task.keys):
            alone = task.model_copy(update={"keys": (key,)})
            expected_V = log_probs(decoder.model, row.prompt_ids, alone, tokenizer, key, {})
            torch.testing.assert_close(one.log_p_KV[place], expected_V, rtol=0, atol=1e-5)
            text = tokenizer.decode(greedy(decoder.model, row.prompt_ids, alone, tokenizer))
            assert alone.parse(text).values == (said[place],)


def test_completions_cost_what_they_cost_alone(speaker):
    """Scored behind the cached prompts: the padded loss of each row, unmoved by the answers that were decoded."""
    decoder = decoder_for(speaker)
    rows = encoded(decoder, 7)
    collate = PaddedCollator(decoder.tokenizer.pad_id)
    with torch.no_grad():
        alone = [float(completion_nll(decoder.model, collate([row._asdict()]))[0]) for row in rows]
    assert [one.nll for one in decoder.decode(rows, batch_rows=4)] == pytest.approx(alone, rel=1e-5)
    decoder.trie = None
    assert [one.nll for one in decoder.decode(rows, batch_rows=4)] == pytest.approx(alone, rel=1e-5)


def test_every_score_takes_one_pass(tmp_path, monkeypatch):
    """Six scores: 7 passes forced and 8 free, the instruction's included, whatever the values are."""
    decoder = decoder_for(tiny_mistral(tmp_path / "model", "v3"), SIX)
    rows = encoded(decoder, 3, SIX)
    passes = []
    decoder.model.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(decoder, "_generate", lambda rows: [[] for _ in rows])
    for answer in ((0, 7, 10, 42, 99, 100), (100, 10, 100, 1, 0, 100)):
        leaves = iter([decoder.trie.leaf_of(value) for value in answer])
        monkeypatch.setattr(
            "ppe_lora.student.decode.greedy_leaf", lambda *_, leaves=leaves: torch.full((3,), next(leaves))
        )
        passes.clear()
        forced = decoder.decode(rows, batch_rows=3, forced=True)
        assert [one.ids for one in forced] == [decoder.trie.completion(answer)] * 3
        assert len(passes) == 6 + 1 + 1  # the scores, the instruction, the loss of the rows' own completions
        decoder._instructions.clear()
    monkeypatch.undo()
    monkeypatch.setattr(decoder, "_generate", lambda rows: [[] for _ in rows])
    passes.clear()
    decoder.decode([row._replace(completion_ids=[]) for row in rows], batch_rows=3)
    assert len(passes) == 6 + 1 + 1  # the scores, the instruction, the tail


def test_two_instructions_and_none_in_one_call(speaker):
    """Rows are batched by what they share; the order given comes back."""
    decoder = decoder_for(speaker)
    rows = encoded(decoder, 9)
    rows[1::3] = [row._replace(shared=0) for row in rows[1::3]]
    rows[2::3] = [row._replace(shared=row.shared - 3) for row in rows[2::3]]
    assert [one.ids for one in decoder.decode(rows, batch_rows=2)] == freely(decoder, rows)


def test_decoding_leaves_no_trace(speaker):
    """Training mode and random state are as before."""
    decoder = decoder_for(speaker)
    decoder.model.train()
    before = torch.random.get_rng_state()
    latencies = measure_latency_ms(decoder, encoded(decoder, 2), forced=True)
    assert len(latencies) == 2
    longest = decoder.tokenizer.completion_ids(TASK.messages("x", "en"), '{"a":100,"b":100}')
    assert decoder.max_new_tokens == len(longest) + 8
    assert min(latencies) > 0
    assert decoder.model.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_latencies_are_of_warm_instructions_and_single_requests(speaker):
    """A row whose instruction is encoded within its time is measured two or three times too slow, and it is the p99."""
    decoder = decoder_for(speaker)
    rows = encoded(decoder, 4)
    rows[1] = rows[1]._replace(shared=rows[1].shared - 3)
    asked: list[tuple[str, bool]] = []
    decode = decoder.decode

    def noted(some, *, batch_rows, forced):
        known = tuple(some[0].prompt_ids[: some[0].shared]) in decoder._instructions
        assert (len(some), batch_rows, some[0].completion_ids) == (1, 1, [])
        asked.append((some[0].id, known))
        return decode(some, batch_rows=batch_rows, forced=forced)

    decoder.decode = noted
    assert len(measure_latency_ms(decoder, rows, forced=True)) == 4
    assert sorted(asked[:2]) == sorted([(rows[0].id, False), (rows[1].id, False)])
    assert asked[2:] == [(row.id, True) for row in rows]


def test_a_drafted_token_is_kept_as_arg_max_would_have_it():
    """Of several largest logits `generate` takes the first: half-precision logits are often equal."""
    logits = torch.tensor(
        [[1.0, 3.0, 2.0], [3.0, 3.0, 2.0], [3.0, 3.0, 2.0], [1.0, 2.0, 3.0], [float("nan"), 1.0, 0.0]]
    )
    token = torch.tensor([1, 0, 1, 1, 1])
    expected = logits.argmax(-1) == token
    assert _is_argmax(logits.clone(), token).tolist() == expected.tolist() == [True, True, False, False, False]
