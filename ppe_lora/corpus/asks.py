"""What to ask a teacher for: vector, language, style and context of every row."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from ppe_lora.corpus.sampling import SamplerName, sample_targets
from ppe_lora.corpus.seeding import row_rng
from ppe_lora.corpus.teachers.base import Ask
from ppe_lora.recipe.schema import GenerateSource
from ppe_lora.tasks.scores import Language, ScoresTask

Name = TypeVar("Name", bound=str)

CONTEXTS: Mapping[Language, Mapping[str, tuple[str, ...]]] = {
    "en": {
        "weather": ("rain", "sunny", "cloudy", "snow"),
        "time": ("morning", "afternoon", "evening", "night"),
        "place": ("home", "train", "car", "office", "park"),
    },
    "ja": {
        "weather": ("雨", "晴れ", "曇り", "雪"),
        "time": ("朝", "昼", "夕方", "夜"),
        "place": ("自宅", "電車", "車", "職場", "公園"),
    },
}
"""What a game may know beside the request."""


def make_asks(task: ScoresTask, source: GenerateSource, seed: int) -> list[tuple[Ask, SamplerName]]:
    """Every ask of a recipe with the sampler that drew its vector. Ask i depends on the seed and on i only."""
    sampled = sample_targets(task, source.sampler, seed, source.rows)
    asks: list[tuple[Ask, SamplerName]] = []
    for index, (target, sampler) in enumerate(sampled):
        rng = row_rng(seed, "ask", index)
        language = _weighted(rng, source.languages)
        style = _weighted(rng, source.styles)
        context = _context(rng, language) if rng.random() < source.context else None
        asks.append((Ask(index, target, language, style, context), sampler))
    return asks


def _context(rng: np.random.Generator, language: Language) -> dict[str, str]:
    known = CONTEXTS[language]
    names = [name for name in known if rng.random() < 0.5] or ["weather"]
    return {name: known[name][int(rng.integers(len(known[name])))] for name in names}


def _weighted(rng: np.random.Generator, weights: Mapping[Name, float]) -> Name:
    names = list(weights)
    shares = np.array([weights[name] for name in names], dtype=float)
    if not shares.any():
        shares[:] = 1.0
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]
