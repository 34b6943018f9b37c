"""Target vectors before anyone has phrased them: uniform, in clusters, at the edges.

Letters: N rows, K keys, C clusters. Row i depends on the seed and on i only, so more rows extend a data set and change
none.
"""

from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppe_lora.artifacts import hash_file
from ppe_lora.cells import bounded, number_of, shown
from ppe_lora.corpus.precision import SURE, Scale, narrow
from ppe_lora.corpus.seeding import row_rng
from ppe_lora.corpus.tables import file_problem, raise_problems, read_records
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import Observed, Sampler
from ppe_lora.tasks.scores import ScoresTask

SamplerName = Literal["uniform", "cluster", "edge"]
_NAMES: tuple[SamplerName, ...] = ("uniform", "cluster", "edge")
_DRAWN_ARCHETYPES = 12
_EDGE = 0.1
"""Width of an edge as a share of the range."""

Floats = NDArray[np.float64]


class Sampled(NamedTuple):
    """A target vector and the sampler that drew it."""

    target: dict[str, float]
    """One value per key in task units, rounded to the task's decimals."""
    sampler: SamplerName


class Clusters(NamedTuple):
    """What the sampler `cluster` draws around, in task units."""

    centers_CK: Floats
    spread_C: Floats
    """Standard deviation around each center."""
    weight_C: Floats


def sample_targets(task: ScoresTask, sampler: Sampler, seed: int, count: int) -> list[Sampled]:
    """The first `count` target vectors of a recipe.

    Raises:
        DataError: The file of observed vectors cannot be used.
    """
    mix = _cumulative([sampler.uniform, sampler.clusters, sampler.edges])
    clusters = clusters_of(task, sampler, seed)
    cluster_mix = _cumulative(clusters.weight_C.tolist())
    rngs = [row_rng(seed, "vector", index) for index in range(count)]
    names = [_NAMES[_pick(rng, mix)] for rng in rngs]
    cube = iter(_cube(seed, names.count("uniform"), len(task.keys)))
    sampled = []
    for name, rng in zip(names, rngs, strict=True):
        if name == "uniform":
            values_K = task.low + task.span * next(cube)
        elif name == "edge":
            values_K = task.low + task.span * _pushed_to_edges(rng.uniform(0.0, 1.0, len(task.keys)), rng)
        else:
            chosen = _pick(rng, cluster_mix)
            values_K = rng.normal(clusters.centers_CK[chosen], clusters.spread_C[chosen])
        rounded = [task.round(value) for value in values_K.tolist()]
        sampled.append(Sampled(dict(zip(task.keys, rounded, strict=True)), name))
    return sampled


def clusters_of(task: ScoresTask, sampler: Sampler, seed: int) -> Clusters:
    """The recipe's archetypes, or its observed vectors, or a dozen centers drawn from the seed.

    Drawn centers keep a tenth of the range away from its ends; their spread is a tenth of the range.

    Raises:
        DataError: The file of observed vectors cannot be used.
    """
    spreads = {f"archetypes.{name}.spread": one.spread for name, one in sampler.archetypes.items()}
    spreads |= {"observed.spread": sampler.observed.spread} if sampler.observed else {}
    for key, spread in spreads.items():
        check_spread(f"data.source.sampler.{key}", spread, task)
    if sampler.observed:
        centers_CK = read_observed(task, sampler.observed)
        ones_C = np.ones(len(centers_CK))
        return Clusters(centers_CK, sampler.observed.spread * ones_C, ones_C)
    if sampler.archetypes:
        named = sampler.archetypes.values()
        centers_CK = np.array([[one.center[key] for key in task.keys] for one in named], dtype=float)
        return Clusters(centers_CK, np.array([one.spread for one in named]), np.array([one.weight for one in named]))
    drawn_CK = row_rng(seed, "archetypes").uniform(0.1, 0.9, (_DRAWN_ARCHETYPES, len(task.keys)))
    ones_C = np.ones(_DRAWN_ARCHETYPES)
    return Clusters(task.low + task.span * drawn_CK, task.span / 10 * ones_C, ones_C)


def check_spread(key: str, spread: float, task: ScoresTask) -> None:
    """Refuse a standard deviation that leaves nothing of what it is around. Its default suits a range of 100.

    Raises:
        DataError: It is more than a quarter of the range.
    """
    if spread > task.span / 4:
        raise DataError(
            f"{key}: expected at most a quarter of the range from {task.low} to {task.high}; got {spread:g}, in which "
            f"every score drowns; a twentieth of the range is {task.span / 20:g}"
        )


def read_observed(task: ScoresTask, observed: Observed) -> Floats:
    """The vectors of the recipe's file of observed play, in task units and the task's key order.

    Raises:
        DataError: The file is missing or empty, a key has no column, or a value is no number in the task's range. All
            problems are collected; those in the file start with `file:line`.
    """
    path = _observed_path(observed)
    vectors: list[list[float]] = []
    problems: list[str] = []
    for record in read_records(path):
        absent = [key for key in task.keys if key not in record.values]
        if absent:
            raise DataError(
                f"{path}:{record.line}: expected a column for every key of the task; none for {', '.join(absent)} "
                f"among {', '.join(record.values)}; rename the columns"
            )
        vector = []
        for key in task.keys:
            try:
                vector.append(bounded(number_of(record.values[key]), task.low, task.high))
            except ValueError:
                problems.append(
                    f"{path}:{record.line}: {key}: expected a number from {task.low} to {task.high}; "
                    f"got {shown(record.values[key])}"
                )
        vectors.append(vector)
    if len(vectors) >= SURE and not problems:
        values = {"all keys": [value for vector in vectors for value in vector]}
        problems = [f"{path}: {note}" for note in narrow(values, Scale(task.low, task.high))]
    raise_problems(problems)
    return np.array(vectors, dtype=float)


def observed_hash(sampler: Sampler) -> str | None:
    """Content hash of the file of observed vectors, or None for a sampler without one.

    Raises:
        DataError: The file is missing.
    """
    return hash_file(_observed_path(sampler.observed)) if sampler.observed else None


def _observed_path(observed: Observed) -> Path:
    path = Path(observed.path)
    key = "data.source.sampler.observed.path"
    if not path.exists():
        raise DataError(f"{key}: expected a .csv or .jsonl file; got {path}, which does not exist")
    if problem := file_problem(path):
        raise DataError(f"{key}: {problem}")
    return path


def _cube(seed: int, count: int, keys: int) -> Floats:
    """The first points of a scrambled Sobol sequence in the unit cube: `count` rows by `keys`."""
    from scipy.stats import qmc  # slow to import, and only builders of data need it

    sequence = qmc.Sobol(keys, rng=row_rng(seed, "cube"))
    points: Floats = sequence.random_base2(max(count - 1, 0).bit_length())
    return points[:count]


def _pushed_to_edges(unit_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some scores (half of them on average, at least one) moved into the outer tenths of the range."""
    chosen_K = rng.random(len(unit_K)) < 0.5
    chosen_K[rng.integers(len(unit_K))] = True
    inside_K = unit_K * _EDGE
    return np.where(chosen_K, np.where(rng.random(len(unit_K)) < 0.5, inside_K, 1.0 - inside_K), unit_K)


def _cumulative(weights: list[float]) -> Floats:
    """Upper ends of the shares of some weights in the unit interval; equal shares where all weights are 0."""
    shares = weights if any(weights) else [1.0] * len(weights)
    return np.array(list(accumulate(shares))) / sum(shares)


def _pick(rng: np.random.Generator, cumulative: Floats) -> int:
    return int(np.searchsorted(cumulative[:-1], rng.random(), side="right"))
