"""The head: ridge regression from the student's own hidden states to the scores, solved in closed form after training.

    request tokens -> hidden states of one layer -> their mean -> a linear map -> six scores

What a language model knows about a sentence lies in its middle layers long before a short training has taught it to
write that down as digits, so with few rows this reads more than the text does. It costs one pass over the training
rows to fit and nothing to serve: the decoder computes those states anyway. N rows, L layers, D width, K keys.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from ppe_lora.evaluation.metrics import Matrix
from ppe_lora.student.cache import PromptCache, chunk_of, encode_instruction
from ppe_lora.student.encode import EncodedRow, alike
from ppe_lora.student.load import StudentModel

LAYERS = 8
"""How many layers are tried, evenly spread over the upper three quarters of the model."""
LEAST_ROWS = 50
"""Training rows from which a head is fitted."""
_ALPHAS = tuple(10.0**power for power in np.arange(0.5, 5.5, 0.5))
FILE = "head.npz"
"""No safetensors: vLLM takes every such file in a folder for weights of the model."""


class Head(NamedTuple):
    """A fitted head."""

    layer: int
    """Whose output is read; 1 is the first decoder layer."""
    weight_KD: Matrix
    offset_K: Matrix

    def read(self, states_ND: Matrix, low: float, high: float) -> Matrix:
        """Scores (N, K) of mean hidden states, within the range, not rounded."""
        return np.clip(states_ND @ self.weight_KD.T + self.offset_K, low, high)

    def save(self, folder: Path) -> None:
        """Write `head.npz`."""
        np.savez(folder / FILE, layer=self.layer, weight=self.weight_KD, offset=self.offset_K)

    @staticmethod
    def load(folder: Path) -> "Head | None":
        """Read `head.npz` of a folder; None where there is none."""
        if not (folder / FILE).is_file():
            return None
        with np.load(folder / FILE, allow_pickle=False) as arrays:
            return Head(int(arrays["layer"]), arrays["weight"], arrays["offset"])


def fit_head(states_NLD: np.ndarray, layers: Sequence[int], target_NK: Matrix) -> Head:
    """Fit one head a layer and keep that with the smallest leave-one-out error on these rows; the strength of the ridge
    is chosen per score in the same way.

    Args:
        states_NLD: From `request_states`.
        layers: Which layers those are.
        target_NK: Training targets in task units.
    """
    from sklearn.linear_model import RidgeCV  # slow to import

    best: tuple[float, Head] | None = None
    for place, layer in enumerate(layers):
        states_ND = states_NLD[:, place].astype(np.float64)
        center_D, spread_D = states_ND.mean(axis=0), states_ND.std(axis=0) + 1e-6
        ridge = RidgeCV(alphas=_ALPHAS, alpha_per_target=True).fit((states_ND - center_D) / spread_D, target_NK)
        weight_KD = np.asarray(ridge.coef_).reshape(target_NK.shape[1], -1) / spread_D
        error = -float(np.mean(ridge.best_score_))
        if best is None or error < best[0]:
            best = error, Head(layer, weight_KD, np.asarray(ridge.intercept_) - weight_KD @ center_D)
    assert best is not None
    return best[1]


def layers_to_try(model: StudentModel) -> list[int]:
    """Layers whose states may be read, ascending."""
    count = len(_layers(model))
    return sorted({round(count * (0.25 + 0.75 * step / (LAYERS - 1))) or 1 for step in range(LAYERS)})


@torch.no_grad()
def request_states(
    model: StudentModel,
    rows: Sequence[EncodedRow],
    layers: Sequence[int],
    *,
    batch_rows: int,
    pad_id: int,
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Mean hidden states of each row's own prompt tokens, those behind the shared instruction: (N, L, D), float32.

    The model's training mode is left as it was.
    """
    found: dict[int, np.ndarray] = {}
    instructions: dict[tuple[int, ...], DynamicCache] = {}
    was_training = model.training
    model.eval()
    try:
        for batch in alike(rows, batch_rows):
            shared = tuple(rows[batch[0]].prompt_ids[: rows[batch[0]].shared])
            if shared and shared not in instructions:
                instructions[shared] = encode_instruction(model, shared)
            requests = [rows[index].prompt_ids[rows[index].shared :] for index in batch]
            prompts = PromptCache(model, instructions.get(shared), len(batch))
            with listening(model, layers) as heard:
                prompts.feed(chunk_of(requests, pad_id), 1)
            means = [mean_states(heard[layer], [len(request) for request in requests], 0) for layer in layers]
            found.update(zip(batch, np.stack(means, axis=1), strict=True))
            advance(len(batch))
    finally:
        model.train(was_training)
    return np.stack([found[index] for index in range(len(rows))])


@contextmanager
def listening(model: StudentModel, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """While it lasts, the output of these layers (B, W, D) is kept in the mapping, from the last forward pass."""
    heard: dict[int, torch.Tensor] = {}
    handles = []
    for layer in layers:

        def keep(module: Any, inputs: Any, output: Any, layer: int = layer) -> None:
            heard[layer] = output[0] if isinstance(output, tuple) else output

        handles.append(_layers(model)[layer - 1].register_forward_hook(keep))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def mean_states(states_BWD: torch.Tensor, lengths: Sequence[int], behind: int) -> np.ndarray:
    """Mean of each row's columns that end `behind` columns before the last, (B, D), float32."""
    end = states_BWD.shape[1] - behind
    means = [
        states_WD[end - length : end].float().mean(dim=0) for states_WD, length in zip(states_BWD, lengths, strict=True)
    ]
    return torch.stack(means).cpu().numpy()


def _layers(model: StudentModel) -> Any:
    decoder: Any = model.get_decoder()
    return decoder.layers
