"""Target vectors before anyone has phrased them: uniform, in clusters, at the edges.

Letters: N rows, K keys. Row i depends on the seed and on i only, so more rows extend a data set and change none.
"""

from typing import Literal, NamedTuple

import numpy as np

from ppe_lora.corpus.seeding import row_rng
from ppe_lora.recipe.schema import Archetype, Sampler
from ppe_lora.tasks.scores import ScoresTask

SamplerName = Literal["uniform", "cluster", "edge"]
_DRAWN_ARCHETYPES = 12
_EDGE = 0.1
"""Width of an edge as a share of the range."""


class Sampled(NamedTuple):
    """A target vector and the sampler that drew it."""

    target: dict[str, float]
    """One value per key in task units, rounded to the task's decimals."""
    sampler: SamplerName


def sample_targets(task: ScoresTask, sampler: Sampler, seed: int, count: int) -> list[Sampled]:
    """The first `count` target vectors of a recipe."""
    archetypes = archetypes_of(task, sampler, seed)
    return [_sample(task, sampler, archetypes, seed, index) for index in range(count)]


def archetypes_of(task: ScoresTask, sampler: Sampler, seed: int) -> list[Archetype]:
    """The recipe's archetypes or, where it names none, a dozen drawn from the seed.

    Drawn centers keep a tenth of the range away from its ends; their spread is a tenth of the range.
    """
    if sampler.archetypes:
        return list(sampler.archetypes.values())
    rng = row_rng(seed, "archetypes")
    centers_NK = task.low + task.span * rng.uniform(0.1, 0.9, (_DRAWN_ARCHETYPES, len(task.keys)))
    return [
        Archetype(center=dict(zip(task.keys, center_K.tolist(), strict=True)), spread=task.span / 10)
        for center_K in centers_NK
    ]


def _sample(task: ScoresTask, sampler: Sampler, archetypes: list[Archetype], seed: int, index: int) -> Sampled:
    rng = row_rng(seed, "vector", index)
    names: tuple[SamplerName, ...] = ("uniform", "cluster", "edge")
    name = names[_weighted(rng, [sampler.uniform, sampler.clusters, sampler.edges])]
    unit_K = rng.uniform(0.0, 1.0, len(task.keys))
    if name == "edge":
        unit_K = _pushed_to_edges(unit_K, rng)
    values_K = task.low + task.span * unit_K
    if name == "cluster":
        archetype = archetypes[_weighted(rng, [a.weight for a in archetypes])]
        center_K = np.array([archetype.center[key] for key in task.keys], dtype=float)
        values_K = rng.normal(center_K, archetype.spread)
    rounded = [task.round(value) for value in values_K.tolist()]
    return Sampled(dict(zip(task.keys, rounded, strict=True)), name)


def _pushed_to_edges(unit_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some scores (half of them on average, at least one) moved into the outer tenths of the range."""
    chosen_K = rng.random(len(unit_K)) < 0.5
    chosen_K[rng.integers(len(unit_K))] = True
    inside_K = unit_K * _EDGE
    return np.where(chosen_K, np.where(rng.random(len(unit_K)) < 0.5, inside_K, 1.0 - inside_K), unit_K)


def _weighted(rng: np.random.Generator, weights: list[float]) -> int:
    shares = np.array(weights, dtype=float)
    if not shares.any():
        shares[:] = 1.0
    return int(rng.choice(len(weights), p=shares / shares.sum()))
