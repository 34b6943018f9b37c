"""Target vectors: the mix, the ranges, and independence from the order of the work."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_lora.corpus.asks import CONTEXTS, make_asks
from ppe_lora.corpus.sampling import archetypes_of, sample_targets
from ppe_lora.recipe.schema import Archetype, GenerateSource, Sampler
from ppe_lora.tasks.scores import ScoresTask

TASK = ScoresTask()


@given(
    low=st.integers(-50, 50),
    span=st.integers(1, 200),
    decimals=st.sampled_from((0, 1)),
    seed=st.integers(-(2**40), 2**40),
)
@settings(max_examples=25, deadline=None)
def test_every_vector_is_legal_for_any_task(low: int, span: int, decimals: int, seed: int) -> None:
    """A cluster drawn past the end of the range, or a missing rounding, makes rows that training refuses to read."""
    task = ScoresTask(keys=("x", "y"), low=low, high=low + span, decimals=decimals)
    for target, _ in sample_targets(task, Sampler(), seed, 20):
        task.check_target(target)


def test_more_rows_extend_a_data_set_and_change_none() -> None:
    """A shared random stream would give other vectors to the first rows whenever `rows` is raised."""
    assert sample_targets(TASK, Sampler(), 7, 50) == sample_targets(TASK, Sampler(), 7, 80)[:50]
    assert sample_targets(TASK, Sampler(), 7, 50) != sample_targets(TASK, Sampler(), 8, 50)


def test_samplers_are_mixed_by_weight() -> None:
    """Weights taken as shares without normalizing would break on weights that do not sum to one."""
    names = Counter(s.sampler for s in sample_targets(TASK, Sampler(uniform=2, clusters=1, edges=1), 0, 2000))
    assert names["uniform"] == pytest.approx(1000, abs=80)
    assert names["cluster"] == pytest.approx(500, abs=70)
    assert names["edge"] == pytest.approx(500, abs=70)


def test_uniform_has_the_moments_of_a_uniform() -> None:
    """Mean 50 and variance 100**2 / 12 = 833; a sampler of a narrower cube would pass every range check."""
    values = np.array(
        [list(s.target.values()) for s in sample_targets(TASK, Sampler(uniform=1, clusters=0, edges=0), 3, 2000)]
    )
    assert values.mean() == pytest.approx(50, abs=1)
    assert values.var() == pytest.approx(833, rel=0.04)


def test_every_edge_row_has_a_score_at_an_end() -> None:
    """An edge row with no extreme score is a uniform row under another name."""
    for target, name in sample_targets(TASK, Sampler(uniform=0, clusters=0, edges=1), 0, 300):
        assert name == "edge"
        assert any(value <= 10 or value >= 90 for value in target.values())


def test_clusters_follow_the_named_archetypes() -> None:
    """Archetypes ignored in favour of drawn ones, or their weights ignored, would not show in any count."""
    center = {"energy": 20.0, "warmth": 80.0, "brightness": 40.0, "acousticness": 80.0, "complexity": 30.0}
    named = {
        "evening": Archetype(center={**center, "nostalgia": 70.0}, spread=2.0, weight=1.0),
        "never": Archetype(center=dict.fromkeys(TASK.keys, 99.0), weight=0.0),
    }
    sampler = Sampler(uniform=0, clusters=1, edges=0, archetypes=named)
    values = np.array([list(s.target.values()) for s in sample_targets(TASK, sampler, 0, 400)])
    assert values.mean(axis=0) == pytest.approx([20, 80, 40, 80, 30, 70], abs=0.5)
    assert len(archetypes_of(TASK, Sampler(), 0)) == 12


def test_asks_follow_weights_and_contexts_are_in_the_language() -> None:
    """A Japanese request with an English context would teach the model a mixture nobody sends."""
    source = GenerateSource(rows=600, languages={"ja": 1.0, "en": 3.0}, styles={"short": 1.0}, context=0.5)
    asks = [ask for ask, _ in make_asks(TASK, source, 0)]
    assert Counter(ask.language for ask in asks)["en"] == pytest.approx(450, abs=40)
    assert {ask.style for ask in asks} == {"short"}
    assert sum(ask.context is not None for ask in asks) == pytest.approx(300, abs=40)
    for ask in asks:
        for name, value in (ask.context or {}).items():
            assert value in CONTEXTS[ask.language][name]
