"""The exact distributions: against every value scored as a text of its own, and against values computed by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ppe_lora.evaluation.calibration import Calibration
from ppe_lora.recipe.schema import Objective
from ppe_lora.student.collate import PackedCollator, completion_nll, read
from ppe_lora.student.decode import Decoded, Decoder
from ppe_lora.student.encode import encode_rows
from ppe_lora.student.evaluate import encode_split
from ppe_lora.student.objective import _weighed_nll, slot_choices, training_loss
from ppe_lora.student.outputs import unembedding_of
from ppe_lora.student.posterior import crps, deviation, greedy_leaf, leaf_log_probs, mean, quantile
from ppe_lora.student.read_out import read_answer
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.student.trie import build_trie
from ppe_lora.tasks.scores import Answer, ScoresTask
from tests.brute_force import CASES, legal_behind, legal_values, log_probs, written
from tests.pipeline.test_head import make_heads
from tests.runs import TASK, make_rows, make_rows_of
from tests.slopes import model_in_float64, slopes


@pytest.mark.parametrize("case", CASES)
def test_one_pass_equals_every_value_scored_as_its_own_text(tmp_path, monkeypatch, case):
    """The branches see exactly what a text with that value would: log p of all of them within 1e-5; they sum to 1."""
    monkeypatch.setenv("PPE_LORA_CACHE", str(tmp_path / "cache"))
    build, task = CASES[case]
    folder = build(tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    trie = build_trie(task, tokenizer)
    rows = make_rows_of(task, 1, seed=6)
    split = encode_split(rows, task, tokenizer, 512)
    log_p_KV = one_pass(model, PackedCollator(trie)(split.batch_rows(trie)), trie)
    torch.testing.assert_close(log_p_KV.exp().sum(-1), torch.ones(len(task.keys)), rtol=0, atol=1e-5)
    for place, key in enumerate(task.keys):
        before = {other: rows[0].target[other] for other in task.keys[:place]}
        expected_V = log_probs(model, split.encoded[0].prompt_ids, task, tokenizer, key, before)
        torch.testing.assert_close(log_p_KV[place], expected_V, rtol=0, atol=1e-5)


@torch.no_grad()
def one_pass(model, batch, trie) -> torch.Tensor:
    """Log-probabilities of all values of every slot of a pack, as training reads them: (S, V)."""
    return leaf_log_probs(slot_choices(read(model, batch, slots=True), batch, trie), trie)


@pytest.mark.parametrize("slots", ["answers", "request"])
def test_the_packed_text_loss_is_that_of_the_plain_rows(speaker, slots):
    """Cutting a row at its scores and hanging branches on it must not change what the text costs."""
    tokenizer = load_tokenizer(speaker)
    model = AutoModelForCausalLM.from_pretrained(speaker)
    trie = build_trie(TASK, tokenizer, slots)
    split = encode_split(make_rows(5, seed=9), TASK, tokenizer, 512)
    plain, tokens = completion_nll(model, PackedCollator()([row._asdict() for row in split.encoded]))
    with_slots = PackedCollator(trie)(split.batch_rows(trie))
    loss, counted = training_loss(model, with_slots, Objective(), trie)
    assert counted == tokens
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_objective_is_its_formula(speaker):
    """RAFT and CRPS per score from the one-pass distributions, by hand, added to the text's loss."""
    tokenizer = load_tokenizer(speaker)
    model = AutoModelForCausalLM.from_pretrained(speaker).eval()
    trie = build_trie(TASK, tokenizer)
    split = encode_split(make_rows(3, seed=9), TASK, tokenizer, 512)
    batch = PackedCollator(trie)(split.batch_rows(trie))
    gold = [Answer(tuple(map(float, row.target.values()))) for row in split.rows]
    log_p = one_pass(model, batch, trie).double()
    raft = crps_sum = 0.0
    spread_K = torch.tensor([20.0, 30.0])
    scores = [(value, float(spread)) for answer in gold for value, spread in zip(answer.values, spread_K, strict=True)]
    for probabilities, (target, spread) in zip(log_p.exp().tolist(), scores, strict=True):
        raft += ((sum(value * p for value, p in enumerate(probabilities)) - target) / spread) ** 2
        cumulative = [sum(probabilities[: value + 1]) for value in range(100)]
        crps_sum += sum((c - (value >= target)) ** 2 for value, c in enumerate(cumulative)) / spread
    text, _ = training_loss(model, batch, Objective(), trie)
    loss, _ = training_loss(model, batch, Objective(raft=2.0, crps=0.5), trie, spread_K)
    assert loss.item() == pytest.approx(text.item() + 2 * raft + 0.5 * crps_sum, rel=1e-4)


@pytest.mark.parametrize("slots", ["answers", "request"])
def test_the_legal_term_is_what_illegal_tokens_take(speaker, slots):
    """At every token of a gold value, the terminator included, the mass of the legal tokens in the whole vocabulary;
    where scores are read from the request, in an answer of that key only."""
    tokenizer = load_tokenizer(speaker)
    model = AutoModelForCausalLM.from_pretrained(speaker).eval()
    trie = build_trie(TASK, tokenizer, slots)
    split = encode_split(make_rows(2, seed=9), TASK, tokenizer, 512)
    batch = PackedCollator(trie)(split.batch_rows(trie))
    expected = 0.0
    for row, rendered in zip(split.encoded, split.rows, strict=True):
        for place, key in enumerate(TASK.keys):
            task = TASK if slots == "answers" else TASK.model_copy(update={"keys": (key,)})
            before = {other: rendered.target[other] for other in TASK.keys[:place] if other in task.keys}
            texts = written(task, tokenizer, key, before)
            text = texts[legal_values(task).index(rendered.target[key])]
            for beginning, legal in legal_behind(texts).items():
                if beginning == text[: len(beginning)]:
                    with torch.no_grad():
                        p = model(torch.tensor([[*row.prompt_ids, *beginning]])).logits[0, -1].double().softmax(0)
                    expected -= float(p[legal].sum().log())
    text_alone, _ = training_loss(model, batch, Objective(), trie)
    loss, _ = training_loss(model, batch, Objective(legal=3.0), trie, torch.ones(2))
    assert loss.item() - text_alone.item() == pytest.approx(3 * expected, rel=1e-3, abs=1e-4)


def test_weights_of_the_text_loss_by_hand():
    """Skeleton weight, label smoothing and focal exponent on logits that a reader can check."""
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    wanted = torch.tensor([0, 1])  # token 0 is a digit, token 1 is not
    trie = SimpleNamespace(paths=((0,),))
    objective = Objective(skeleton=0.5, label_smoothing=0.1, focal=2.0)
    expected = 0.0
    for row, token, weight in zip(logits.tolist(), wanted.tolist(), (1.0, 0.5), strict=True):
        norm = math.log(sum(map(math.exp, row)))
        log_p = [value - norm for value in row]
        smooth = -0.9 * log_p[token] - 0.1 * sum(log_p) / 3
        expected += weight * (1 - math.exp(log_p[token])) ** 2 * smooth
    loss, tokens = _weighed_nll(logits, wanted, objective, trie)
    assert tokens == 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("focal", [0.5, 1.0, 2.0])
def test_a_certain_token_has_a_slope(focal):
    """p is exactly 1 in float32 there, where (1 - p)^0.5 is infinitely steep."""
    logits = torch.tensor([[30.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    objective = Objective(focal=focal, label_smoothing=0.1)
    _weighed_nll(logits, torch.tensor([0, 1]), objective, None)[0].backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().min() > 0


def test_means_do_not_depend_on_how_precise_products_are():
    """`train.matmul: medium` rounds the factors of a product to bfloat16 where the processor can."""
    log_p_SV = torch.randn(60, 101, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    values_V = torch.arange(101.0)
    exact_S = mean(log_p_SV.double(), values_V)
    torch.set_float32_matmul_precision("medium")
    try:
        torch.testing.assert_close(mean(log_p_SV, values_V).double(), exact_S, rtol=0, atol=1e-4)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_training_and_decoding_read_the_same_distributions(speaker):
    """Scores read from the request alone, laid out in a training pack and behind cached prompts."""
    tokenizer = load_tokenizer(speaker)
    model = AutoModelForCausalLM.from_pretrained(speaker).eval()
    trie = build_trie(TASK, tokenizer, "request")
    split = encode_split(make_rows(3, seed=9), TASK, tokenizer, 512)
    packed = one_pass(model, PackedCollator(trie)(split.batch_rows(trie)), trie)
    decoded = Decoder(model, tokenizer, trie, 40).decode(split.encoded, batch_rows=3)
    torch.testing.assert_close(torch.cat([one.log_p_KV for one in decoded]), packed, rtol=0, atol=1e-4)


@pytest.mark.parametrize("objective", [Objective(raft=1.0, crps=1.0), Objective(raft=1.0, legal=1.0)])
def test_reading_legal_tokens_alone_changes_no_loss_and_no_gradient(speaker, objective):
    """The choices by a dozen rows of the output head instead of all of them, in float64."""
    tokenizer = load_tokenizer(speaker)
    model = AutoModelForCausalLM.from_pretrained(speaker).double().eval()
    trie = build_trie(TASK, tokenizer)
    batch = PackedCollator(trie)(encode_split(make_rows(3, seed=9), TASK, tokenizer, 512).batch_rows(trie))
    found = []
    for unembedding in (None, unembedding_of(model)):
        model.zero_grad()
        loss, _ = training_loss(model, batch, objective, trie, torch.ones(2) * 25, unembedding=unembedding)
        loss.backward()
        found.append((loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])))
    (whole, whole_gradient), (read_alone, gradient) = found
    assert read_alone == pytest.approx(whole, rel=1e-6)
    assert (gradient - whole_gradient).norm() <= 1e-5 * whole_gradient.norm()
    columns = read(model, batch, slots=True, unembedding=unembedding_of(model)).columns
    assert len(columns) < len(read(model, batch, slots=True).columns)


def test_logits_made_in_another_way_are_computed_whole(speaker):
    """A scale behind the output head, as some families have: reading rows of the head alone would miss it."""
    model = AutoModelForCausalLM.from_pretrained(speaker)
    assert unembedding_of(model) is model.lm_head
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 8
        return output

    model.forward = scaled
    assert unembedding_of(model) is None
    tokenizer = load_tokenizer(speaker)
    rows = encode_rows(make_rows(3, seed=4), TASK, tokenizer, 512).encoded
    trie = build_trie(TASK, tokenizer)
    decoded = Decoder(model, tokenizer, trie, 40).decode(rows, batch_rows=3)
    expected_V = log_probs(model, rows[0].prompt_ids, TASK, tokenizer, "a", {})
    torch.testing.assert_close(decoded[0].log_p_KV[0], expected_V, rtol=0, atol=1e-5)


TERMS = {
    "text": {},
    "raft": {"raft": 1.0},
    "crps": {"crps": 1.0},
    "legal": {"legal": 1.0},
    "head": {"head": 1.0},
    "skeleton": {"skeleton": 3.0},
    "label smoothing": {"label_smoothing": 0.3},
    "focal": {"focal": 2.0},
}


@pytest.mark.parametrize("slots", ["answers", "request"])
@pytest.mark.parametrize("term", TERMS)
def test_gradients_of_the_objective(speaker, term, slots):
    """Each term without the plain text's part, which is many times larger and would hide it: its gradient is its slope,
    through layout, trie and objective, in float64."""
    tokenizer = load_tokenizer(speaker)
    model = model_in_float64(speaker)
    trie = build_trie(TASK, tokenizer, slots)
    batch = PackedCollator(trie)(encode_split(make_rows(2, seed=9), TASK, tokenizer, 512).batch_rows(trie))
    heads = make_heads(model.config.hidden_size) if term == "head" else None

    def value() -> torch.Tensor:
        loss, _ = training_loss(model, batch, Objective(**TERMS[term]), trie, torch.tensor([20.0, 30.0]), heads)
        assert loss.dtype == torch.float64
        return loss - training_loss(model, batch, Objective(), trie)[0] if TERMS[term] else loss

    by_gradient, by_differences = slopes(model, value)
    assert by_gradient == pytest.approx(by_differences, rel=1e-5)


def test_summaries_by_hand():
    """Mass 1/4, 1/2, 1/4 on 0, 1, 3."""
    log_p = torch.tensor([[0.25, 0.5, 0.25]]).log()
    values = torch.tensor([0.0, 1.0, 3.0])
    assert mean(log_p, values).item() == pytest.approx(1.25)
    assert deviation(log_p, values).item() == pytest.approx(math.sqrt(0.25 * 1.25**2 + 0.5 * 0.25**2 + 0.25 * 1.75**2))
    assert [quantile(log_p, values, share).item() for share in (0.1, 0.25, 0.5, 0.9)] == [0.0, 0.0, 1.0, 3.0]
    assert crps(log_p, values, torch.tensor([1.0])).item() == pytest.approx(0.25**2 * 1 + 0.25**2 * 2)
    certain = torch.tensor([[0.0, 0.0, 1.0]]).log()
    assert crps(certain, values, torch.tensor([0.0])).item() == pytest.approx(3.0)


def test_greedy_takes_the_likeliest_token_and_not_the_likeliest_value(speaker):
    """Most mass begins with 4, but is spread over 4 and 40 to 49: 0 is the likeliest value, and 42 is what is said."""
    trie = build_trie(TASK, load_tokenizer(speaker))
    choice_1MC = torch.zeros(1, *trie.legal.shape).masked_fill(~trie.legal, float("-inf"))
    for leaf, depth, logit in ((42, 0, 5.0), (0, 0, 4.5), (42, 1, 0.5)):
        choice_1MC[0, trie.step_choice[leaf, depth], trie.step_child[leaf, depth]] = logit
    assert leaf_log_probs(choice_1MC, trie).argmax(-1).tolist() == [0]
    assert greedy_leaf(choice_1MC, trie).tolist() == [42]


@pytest.mark.parametrize(("read_out", "expected"), [("greedy", 7), ("posterior_mean", 28), ("posterior_median", 40)])
def test_each_read_out_answers_what_it_says(speaker, read_out, expected):
    """Mass 0.45 on 7, 0.4 on 40 and 0.15 on 60: mode, mean and median are three different answers."""
    tokenizer = load_tokenizer(speaker)
    trie = build_trie(TASK, tokenizer)
    p_V = torch.zeros(101)
    p_V[[7, 40, 60]] = torch.tensor([0.45, 0.4, 0.15])
    decoded = Decoded(trie.completion([7.0, 7.0]), p_V.log().repeat(2, 1), 0.0)
    assert read_answer(decoded, TASK, tokenizer, trie, read_out, None).values_K == [expected] * 2


def test_a_correction_is_made_from_the_mean_and_not_from_the_answer(speaker):
    """On a scale of five values half a point is an eighth of the range: mass 1/2 on 2, 1/4 on 3 and 4 has its mean at
    2.75, and three times that less 5 is 3, where three times the answer 3 would be 4."""
    task = ScoresTask(keys=("a", "b"), low=1, high=5)
    tokenizer = load_tokenizer(speaker)
    trie = build_trie(task, tokenizer)
    decoded = Decoded(trie.completion([2.0, 2.0]), torch.tensor([0, 0.5, 0.25, 0.25, 0]).log().repeat(2, 1), 0.0)
    stretch = Calibration("affine", 3 * np.eye(2), np.full(2, -5.0), 1.0, 20, {})
    read = read_answer(decoded, task, tokenizer, trie, "calibrated", stretch)
    assert read.values_K == [3, 3]
    assert read.low_K == [pytest.approx(3.25 - math.sqrt(0.6875), abs=1e-3)] * 2
    alone = read_answer(decoded, task, tokenizer, trie, "posterior_mean", None)
    assert (alone.values_K, alone.low_K, alone.high_K) == ([3, 3], [2, 2], [4, 4])
