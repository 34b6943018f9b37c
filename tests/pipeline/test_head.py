"""The head: what is read is what was meant to be read, wherever the states come from."""

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from transformers import AutoModelForCausalLM

from ppe_lora.corpus.rows import targets_matrix
from ppe_lora.errors import ModelError
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.schema import Objective
from ppe_lora.student import training
from ppe_lora.student.collate import PackedCollator
from ppe_lora.student.decode import Decoder
from ppe_lora.student.encode import encode_rows
from ppe_lora.student.evaluate import encode_split
from ppe_lora.student.head import (
    FOLDS,
    Head,
    TeachingHeads,
    fit_head,
    fit_teaching_heads,
    layers_to_try,
    listening,
    request_states,
    rows_to_fit,
)
from ppe_lora.student.objective import training_loss
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.student.trie import build_trie
from tests.runs import TASK, make_recipe, make_rows
from tests.slopes import model_in_float64, slopes


@pytest.fixture(scope="module")
def student(speaker):
    tokenizer = load_tokenizer(speaker)
    model = AutoModelForCausalLM.from_pretrained(speaker).eval()
    return model, tokenizer, list(encode_rows(make_rows(7, seed=4), TASK, tokenizer, 512).encoded)


def test_states_are_those_of_the_row_alone(student):
    """Batches, padding and the cached instruction must not change what is read; only the request's own tokens count."""
    model, _, rows = student
    layers = layers_to_try(model)
    read = request_states(model, rows, layers, batch_rows=3)
    assert read.shape == (7, len(layers), model.config.hidden_size)
    for index, row in enumerate(rows):
        with torch.no_grad():
            states = model(torch.tensor([row.prompt_ids]), output_hidden_states=True).hidden_states
        for place, layer in enumerate(layers):
            if layer == model.config.num_hidden_layers:
                continue  # there transformers gives the states behind the last norm
            expected = states[layer][0, row.shared :].mean(dim=0)
            np.testing.assert_allclose(read[index, place], expected, atol=1e-5)


@pytest.mark.parametrize("slots", ["answers", "request"])
@pytest.mark.parametrize("forced", [True, False])
def test_the_decoder_reads_the_same_states(student, slots, forced):
    """Served and fitted features must not differ, or the head answers nonsense."""
    model, tokenizer, rows = student
    layers = layers_to_try(model)[:2]
    states = request_states(model, rows, layers, batch_rows=4)
    rng = np.random.default_rng(0)
    head = Head(tuple(layers), rng.normal(0, 1, (len(layers), 2, states.shape[2])), np.array([50.0, 40.0]))
    decoder = Decoder(model, tokenizer, build_trie(TASK, tokenizer, slots), 40, head)
    decoded = decoder.decode(rows, batch_rows=3, forced=forced)
    np.testing.assert_allclose([one.head_K for one in decoded], head.read(states, 0, 100), atol=1e-3)


def test_the_layers_that_know_are_found(tmp_path):
    """Scores that are linear in two of six layers, noise in the others; saved and loaded unchanged."""
    rng = np.random.default_rng(1)
    states = rng.normal(0, 1, (300, 6, 20)).astype(np.float32)
    states[:, 4] = states[:, 1] + rng.normal(0, 0.1, (300, 20))
    target = 50 + 5 * states[:, 1, :2] + rng.normal(0, 0.5, (300, 2))
    layers = [2, 5, 8, 11, 14, 17]
    head = fit_head(states[:200], layers, target[:200])
    assert {5, 14} <= set(head.layers)
    assert len(head.layers) == 4
    head.save(tmp_path)
    loaded = Head.load(tmp_path)
    places = [layers.index(layer) for layer in head.layers]
    np.testing.assert_allclose(loaded.read(states[200:, places], 0, 100), head.read(states[200:, places], 0, 100))
    alone = fit_head(states[:200, [1]], [5], target[:200]).read(states[200:, [1]], 0, 100)
    assert np.square(alone - target[200:]).mean() < 0.5
    assert Head.load(tmp_path / "nowhere") is None
    (tmp_path / "head.npz").write_bytes(b"no head")
    with pytest.raises(ModelError, match=r"head\.npz: expected a head; got"):
        Head.load(tmp_path)


def test_states_are_held_once(student):
    """Those of 100,000 rows of a 7B are 13 GB; they were kept one by one, and then stacked beside that."""
    model, _, rows = student
    many = [row for row in rows for _ in range(80)]
    layers = layers_to_try(model)
    tracemalloc.start()
    try:
        read = request_states(model, many, layers, batch_rows=20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * read.nbytes
    np.testing.assert_allclose(read[0], read[1], atol=1e-5)


def test_only_rows_that_are_fitted_are_read(student, speaker, tmp_path, monkeypatch):
    """All training rows were, and 4,000 of them used, while other processes ran into their time-out."""
    model, tokenizer, _ = student
    split = encode_split(make_rows(60, seed=6), TASK, tokenizer, 512)
    recipe = load_recipe(make_recipe(tmp_path, speaker, "train: {objective: {head: 1}}"))
    read = []

    def counted(model, encoded, layers, **settings):
        read.append(len(encoded))
        return request_states(model, encoded, layers, **settings)

    monkeypatch.setattr(training, "request_states", counted)
    monkeypatch.setattr(training, "TEACHING_ROWS", 55)
    heads = training._teaching_heads(model, split, recipe, tmp_path)
    assert read == [55]
    layers = layers_to_try(model)
    all_NLD = request_states(model, split.encoded[:55], layers, batch_rows=recipe.evaluate.batch_rows)
    expected = fit_teaching_heads(all_NLD, layers, targets_matrix(split.rows[:55], TASK))
    assert torch.equal(heads.weight_FLKD, expected.weight_FLKD)


def test_of_very_many_rows_the_head_is_fitted_on_evenly_spread_ones(monkeypatch):
    assert rows_to_fit(20_000) == list(range(20_000))
    assert len(rows_to_fit(20_001)) == 20_000
    monkeypatch.setattr("ppe_lora.student.head._MOST_ROWS", 4)
    assert rows_to_fit(10) == [0, 3, 6, 9]


def test_what_scores_share_is_read_together():
    """Four noisy ratings of one thing say more about it than each of them alone; ratings of different things do not."""
    rng = np.random.default_rng(2)
    states = rng.normal(0, 1, (1200, 1, 100)).astype(np.float32)
    things = 50 + states[:, 0] @ rng.normal(0, 1, (100, 4))
    for truth, gain in ((things[:, :1].repeat(4, axis=1), 0.9), (things, 1.05)):
        target = truth[:200] + rng.normal(0, 30, (200, 4))
        alone = RidgeCV(alphas=10.0 ** np.arange(0.5, 5.5, 0.5), alpha_per_target=True)
        alone.fit(states[:200, 0], target)
        read = fit_head(states[:200], [7], target).read(states[200:], -1e3, 1e3)
        error, usual = (np.mean((said - truth[200:]) ** 2) for said in (read, alone.predict(states[200:, 0])))
        assert error < gain * usual


def test_more_scores_than_rows_are_read():
    """Sixty scores of fifty rows have fewer components than scores; a constant one is read as it is."""
    rng = np.random.default_rng(3)
    states = rng.normal(0, 1, (50, 1, 4)).astype(np.float32)
    target = 50 + states[:, 0] @ rng.normal(0, 5, (4, 60))
    target[:, 7] = 42.0
    read = fit_head(states, [3], target).read(states, -1e3, 1e3)
    # The weakest strength, 10^0.5 on fifty rows, takes about 3.2 / 53 of a deviation away: 0.4 % of the variance.
    assert np.mean((read - target) ** 2) < 0.01 * target.var(axis=0).mean()
    np.testing.assert_allclose(read[:, 7], 42.0, atol=1e-6)


def test_a_teaching_head_has_not_seen_the_row_that_it_reads(tmp_path):
    """Another target of a row must change what the other folds' heads read, never what its own fold's does."""
    rng = np.random.default_rng(4)
    states = rng.normal(0, 1, (60, 2, 8)).astype(np.float32)
    target = 50 + 5 * states[:, 0, :2] + rng.normal(0, 1, (60, 2))
    other = target.copy()
    other[7] += 30
    fold = torch.tensor([row % FOLDS for row in range(60)])
    heads, others = (fit_teaching_heads(states, [1, 2], some) for some in (target, other))
    others.save(tmp_path)
    others = TeachingHeads.load(tmp_path)
    assert heads.layers == others.layers == (1, 2)
    np.testing.assert_array_equal(heads.weight_FLKD[7 % FOLDS], others.weight_FLKD[7 % FOLDS])
    assert not np.allclose(heads.weight_FLKD[0], others.weight_FLKD[0])
    read = heads.read(torch.tensor(states), fold)
    row = np.einsum("ld,lkd->k", states[9], heads.weight_FLKD[9 % FOLDS].numpy()) + heads.offset_FK[9 % FOLDS].numpy()
    np.testing.assert_allclose(read[9], row, rtol=1e-4)
    assert np.square(read.numpy() - target).mean() < 13  # half of what the mean would get


def make_heads(width: int) -> TeachingHeads:
    """Heads of layers 1 and 2 that read nothing in particular."""
    draws = torch.Generator().manual_seed(3)
    offset_FK = 50 + torch.randn(FOLDS, 2, generator=draws)
    return TeachingHeads((1, 2), torch.randn(FOLDS, 2, 2, width, generator=draws), offset_FK)


def test_the_heads_term_of_the_objective_by_hand(student):
    """Each row's own states, read by its fold's head, in units of each key's spread; nothing of the other rows of the
    pack, with branches between them or without."""
    model, tokenizer, _ = student
    rows = make_rows(3, seed=5)
    split = encode_split(rows, TASK, tokenizer, 512)
    trie = build_trie(TASK, tokenizer)
    heads = make_heads(model.config.hidden_size)
    expected = 0.0
    with listening(model, heads.layers) as heard:
        for index, (row, encoded) in enumerate(zip(rows, split.encoded, strict=True)):
            with torch.no_grad():
                model(torch.tensor([encoded.prompt_ids]))
            read = heads.offset_FK[index].double()
            for place, layer in enumerate(heads.layers):
                state_D = heard[layer][0, encoded.shared :].mean(dim=0).double()
                read = read + heads.weight_FLKD[index, place].double() @ state_D
            off_K = (read - torch.tensor(list(row.target.values()))) / torch.tensor([20.0, 30.0])
            expected += float((off_K**2).sum())
    for branches in (None, trie):
        batch = PackedCollator(branches)(split.batch_rows(trie))
        text, _ = training_loss(model, batch, Objective(), trie)
        loss, _ = training_loss(model, batch, Objective(head=2.0), trie, torch.tensor([20.0, 30.0]), heads)
        assert loss.item() - text.item() == pytest.approx(2 * expected, rel=1e-4)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_heads_term_teaches_the_states(speaker, checkpointed):
    """Its gradient is its slope, without the text's; gradient checkpointing must not cut it off without a word."""
    tokenizer = load_tokenizer(speaker)
    model = model_in_float64(speaker).train()
    if checkpointed:
        model.gradient_checkpointing_enable()
    trie = build_trie(TASK, tokenizer)
    batch = PackedCollator()(encode_split(make_rows(2, seed=9), TASK, tokenizer, 512).batch_rows(trie))
    heads = make_heads(model.config.hidden_size)

    def term() -> torch.Tensor:
        spread_K = torch.ones(2) * 25
        loss, _ = training_loss(model, batch, Objective(head=1.0), trie, spread_K, heads)
        return loss - training_loss(model, batch, Objective(), trie)[0]

    by_gradient, by_differences = slopes(model, term)
    assert by_gradient == pytest.approx(by_differences, rel=1e-5)
