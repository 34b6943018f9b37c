"""Target vectors: the mix, the ranges, and independence from the order of the work."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from ppe_lora.corpus.asks import CONTEXTS, make_asks
from ppe_lora.corpus.sampling import clusters_of, sample_targets
from ppe_lora.corpus.teachers import make_teacher
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import Archetype, GenerateSource, Observed, Sampler
from ppe_lora.recipe.teachers import ScriptedTeacher
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


@given(
    weights=st.tuples(*[st.floats(0, 1)] * 3).filter(any),
    seed=st.integers(-(2**40), 2**40),
    few=st.integers(0, 70),
    more=st.integers(0, 70),
)
@settings(max_examples=25, deadline=None)
def test_more_rows_extend_a_data_set_and_change_none(
    weights: tuple[float, float, float], seed: int, few: int, more: int
) -> None:
    """A shared random stream, or a coverage optimized for the count, gives other vectors whenever `rows` is raised."""
    sampler = Sampler(uniform=weights[0], clusters=weights[1], edges=weights[2])
    assert sample_targets(TASK, sampler, seed, few) == sample_targets(TASK, sampler, seed, few + more)[:few]


def test_another_seed_is_another_sample() -> None:
    """A Sobol sequence without its own scrambling is the same for every seed."""
    for sampler in (Sampler(), Sampler(uniform=1, clusters=0, edges=0)):
        assert sample_targets(TASK, sampler, 7, 50) != sample_targets(TASK, sampler, 8, 50)


@pytest.mark.parametrize("count", [100, 300, 1024])
def test_uniform_covers_the_cube_better_than_chance(count: int) -> None:
    """Plain random vectors leave holes and lumps in six dimensions: parts of the range that are never taught."""
    sampled = sample_targets(TASK, Sampler(uniform=1, clusters=0, edges=0), 0, count)
    ours = qmc.discrepancy(np.array([list(s.target.values()) for s in sampled]) / 100)
    rng = np.random.default_rng(0)
    by_chance = [qmc.discrepancy(rng.integers(0, 101, (count, 6)) / 100) for _ in range(10)]
    assert ours < 0.5 * min(by_chance)


def test_uniform_keeps_its_coverage_in_a_mix() -> None:
    """Points dealt by row number instead of by turn lose the sequence's evenness to the other samplers."""
    values = np.array(
        [list(s.target.values()) for s in sample_targets(TASK, Sampler(), 0, 600) if s.sampler == "uniform"]
    )
    rng = np.random.default_rng(0)
    by_chance = [qmc.discrepancy(rng.integers(0, 101, values.shape) / 100) for _ in range(10)]
    assert qmc.discrepancy(values / 100) < 0.5 * min(by_chance)


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
    assert clusters_of(TASK, Sampler(), 0).centers_CK.shape == (12, 6)


def observed(folder: Path, text: str, name: str = "played.csv", **more: float) -> Sampler:
    (folder / name).write_text(text)
    return Sampler(uniform=0, clusters=1, edges=0, observed=Observed(path=str(folder / name), **more))


def test_clusters_follow_observed_vectors(tmp_path: Path) -> None:
    """Vectors matched by column position, or each used once whatever its count, would not be what players do."""
    task = ScoresTask(keys=("x", "y"))
    sampler = observed(tmp_path, "who,y,x\na,10,90\nb,10,90\nc,10,90\nd,60,20\n", spread=0.0)
    counts = Counter(tuple(s.target.values()) for s in sample_targets(task, sampler, 0, 400))
    assert set(counts) == {(90, 10), (20, 60)}
    assert counts[90, 10] == pytest.approx(300, abs=30)
    jsonl = observed(tmp_path, '{"x": 50, "y": 50}\n', "played.jsonl", spread=4.0)
    values = np.array([list(s.target.values()) for s in sample_targets(task, jsonl, 0, 400)])
    assert values.std(axis=0) == pytest.approx([4, 4], abs=0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "x,z\n1,2\n",
            "played.csv:2: expected a column for every key of the task; none for y among x, z; rename the columns",
        ),
        (
            "x,y\n1,101\n\nhigh,2\n",
            "played.csv:2: y: expected a number from 0 to 100; got '101'\n"
            "{folder}/played.csv:4: x: expected a number from 0 to 100; got 'high'",
        ),
        ("x,y\n", "played.csv: expected at least one entry; got an empty file"),
    ],
)
def test_a_bad_file_of_observed_vectors_is_named(tmp_path: Path, text: str, expected: str) -> None:
    """Wrong keys filled with zeros would train on vectors nobody asked for."""
    with pytest.raises(DataError) as error:
        sample_targets(ScoresTask(keys=("x", "y")), observed(tmp_path, text), 0, 1)
    assert str(error.value) == f"{tmp_path}/{expected.format(folder=tmp_path)}"


def test_observed_vectors_on_another_scale_are_refused(tmp_path: Path) -> None:
    """Vectors from 0 to 1 under a range to 100 would all be one corner."""
    with pytest.raises(DataError) as error:
        sample_targets(ScoresTask(keys=("x", "y")), observed(tmp_path, "x,y\n" + "0,1\n0.5,0.2\n" * 10), 0, 1)
    assert str(error.value) == (
        f"{tmp_path}/played.csv: all keys: values from 0 to 1 only, of 0 to 100; are they on another scale?"
    )


def test_a_missing_file_of_observed_vectors_is_named(tmp_path: Path) -> None:
    """The path is written in the recipe, so the recipe's key must be in the message."""
    sampler = Sampler(observed=Observed(path=str(tmp_path / "none.csv")))
    with pytest.raises(DataError) as error:
        sample_targets(TASK, sampler, 0, 1)
    assert str(error.value) == (
        f"data.source.sampler.observed.path: expected a .csv or .jsonl file; got {tmp_path}/none.csv, "
        "which does not exist"
    )


def test_clusters_have_one_source() -> None:
    """Of two sources one would be ignored without a word."""
    with pytest.raises(ValueError, match="name one of them"):
        Sampler(archetypes={"a": Archetype(center={"x": 1.0})}, observed=Observed(path="x.csv"))


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


@pytest.mark.parametrize(
    ("sampler", "key", "spread"),
    [
        (Sampler(archetypes={"calm": {"center": {"energy": 2.0}}}), "data.source.sampler.archetypes.calm.spread", "10"),
        (Sampler(observed={"path": "played.csv"}), "data.source.sampler.observed.spread", "5"),
    ],
)
def test_a_spread_for_a_range_of_100_is_refused_on_a_short_one(sampler: Sampler, key: str, spread: str) -> None:
    """The default of 10 around a score from 1 to 5 throws every one to an end of the range, in silence."""
    task = ScoresTask(keys=("energy",), low=1, high=5, decimals=1)
    with pytest.raises(DataError) as error:
        clusters_of(task, sampler, seed=0)
    assert str(error.value) == (
        f"{key}: expected at most a quarter of the range from 1 to 5; got {spread}, in which every score drowns; a "
        "twentieth of the range is 0.2"
    )
    with pytest.raises(DataError, match=r"data\.source\.teacher\.noise: expected at most a quarter of the range"):
        make_teacher(ScriptedTeacher(), task, 0, Path("raw"))
    make_teacher(ScriptedTeacher(noise=0.2), task, 0, Path("raw"))
