"""The head: what is read is what was meant to be read, wherever the states come from."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ppe_lora.student.decode import Decoder
from ppe_lora.student.encode import encode_rows
from ppe_lora.student.head import Head, fit_head, layers_to_try, request_states
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.student.trie import build_trie
from tests.runs import TASK, make_rows


@pytest.fixture(scope="module")
def student(speaker):
    tokenizer = load_tokenizer(speaker)
    model = AutoModelForCausalLM.from_pretrained(speaker).eval()
    return model, tokenizer, list(encode_rows(make_rows(7, seed=4), TASK, tokenizer, 512).encoded)


def test_states_are_those_of_the_row_alone(student):
    """Batches, padding and the cached instruction must not change what is read; only the request's own tokens count."""
    model, tokenizer, rows = student
    layers = layers_to_try(model)
    read = request_states(model, rows, layers, batch_rows=3, pad_id=tokenizer.pad_id)
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
    layer = layers_to_try(model)[0]
    states = request_states(model, rows, [layer], batch_rows=4, pad_id=tokenizer.pad_id)[:, 0]
    rng = np.random.default_rng(0)
    head = Head(layer, rng.normal(0, 1, (2, states.shape[1])), np.array([50.0, 40.0]))
    decoder = Decoder(model, tokenizer, build_trie(TASK, tokenizer, slots), 40, head)
    decoded = decoder.decode(rows, batch_rows=3, forced=forced)
    np.testing.assert_allclose([one.head_K for one in decoded], head.read(states, 0, 100), atol=1e-3)


def test_the_layer_that_knows_is_found(tmp_path):
    """Scores that are linear in the second of three layers, and noise in the others; saved and loaded unchanged."""
    rng = np.random.default_rng(1)
    states = rng.normal(0, 1, (300, 3, 20)).astype(np.float32)
    target = 50 + 5 * states[:, 1, :2] + rng.normal(0, 0.5, (300, 2))
    head = fit_head(states[:200], [2, 5, 8], target[:200])
    assert head.layer == 5
    head.save(tmp_path)
    loaded = Head.load(tmp_path)
    read = loaded.read(states[200:, 1], 0, 100)
    assert np.square(read - target[200:]).mean() < 0.5
    np.testing.assert_array_equal(loaded.weight_KD, head.weight_KD)
    assert Head.load(tmp_path / "nowhere") is None
