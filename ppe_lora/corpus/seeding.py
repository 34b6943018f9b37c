"""Random numbers that depend on the seed, the purpose and the row only, never on the order of the work."""

import hashlib

import numpy as np

_STREAMS = ("vector", "archetypes", "ask", "phrasing", "prompt", "cube")


def row_rng(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """A generator for one row and one purpose.

    Args:
        seed: The recipe's seed; negative ones are allowed.
        stream: What the numbers are for; streams are independent of each other.
        index: The row's place in the generation, from 0.
    """
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=(_STREAMS.index(stream), index)))


def unit_hash(seed: int, purpose: str, text: str) -> float:
    """A number in [0, 1) that depends on the three arguments only: the same on every platform and Python."""
    digest = hashlib.sha256(f"{seed}\x1f{purpose}\x1f{text}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
