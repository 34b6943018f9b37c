"""The head: ridge regression from the student's own hidden states to the scores, solved in closed form.

    request tokens -> hidden states of four layers -> their mean over tokens -> a linear map each -> average: scores

What a language model knows about a sentence lies in its middle layers long before a short training has taught it to
write that down as digits, so with few rows this reads more than the text does. It costs one pass over the training
rows to fit and nothing to serve: the decoder computes those states anyway.

It may also teach: training with `train.objective.head` moves the states so that heads fitted before read them better.
There each row is read by a head that was fitted without it. A head that has seen a row reads its states nearly right
already, by heart, and has nothing to say about how they should be.

N rows, L layers, D width, K keys, F folds.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ppe_lora.artifacts import write_bytes
from ppe_lora.errors import ModelError
from ppe_lora.evaluation.metrics import Matrix
from ppe_lora.student.collate import PackedCollator, model_inputs
from ppe_lora.student.encode import EncodedRow, alike
from ppe_lora.student.load import StudentModel
from ppe_lora.student.outputs import at_least_float32, decoder_of
from ppe_lora.student.tensors import OVERFLOWS, NotFinite, read_arrays

LAYERS = 8
"""How many layers are tried, evenly spread over the upper three quarters of the model."""
_AVERAGED = 4
"""How many of them are read."""
HEAD_ROWS = 50
"""Training rows from which a head is fitted."""
FOLDS = 5
"""Of training rows: row i is of fold i % FOLDS."""
TEACHING_ROWS = 4000
"""Most rows that the heads which teach are fitted on, the first ones: there are many fits, and their time grows with
the rows."""
_MOST_ROWS = 20_000
"""Most rows that the head is fitted on: 2.6 GB of states of a 7B. More rows hardly move a linear map."""
_ALPHAS = tuple(10.0**power for power in np.arange(0.5, 5.5, 0.5))
_REMEDY = "delete it, and run `ppe-lora evaluate RECIPE`, then `ppe-lora export RECIPE`"
_TEACHING_REMEDY = "delete it, and continue with `ppe-lora train RECIPE --resume`, which fits the same ones anew"
FILE = "head.npz"
"""No safetensors: vLLM takes every such file in a folder for weights of the model."""


class Head(NamedTuple):
    """A fitted head."""

    layers: tuple[int, ...]
    """Whose outputs are read; 1 is the first decoder layer."""
    weight_LKD: np.ndarray
    """Each layer's own map, divided by the number of layers."""
    offset_K: Matrix

    def read(self, states_NLD: np.ndarray, low: float, high: float) -> Matrix:
        """Scores (N, K) of the mean states of `layers`, within the range, not rounded."""
        return np.clip(np.einsum("nld,lkd->nk", states_NLD, self.weight_LKD) + self.offset_K, low, high)

    def save(self, folder: Path) -> None:
        """Write `head.npz`."""
        _save(folder / FILE, layers=self.layers, weight=self.weight_LKD, offset=self.offset_K)

    @staticmethod
    def load(folder: Path) -> "Head | None":
        """Read `head.npz` of a folder; None where there is none.

        Raises:
            ModelError: The file is no head.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        arrays = read_arrays(path, ("layers", "weight", "offset"), "a head", _REMEDY)
        head = Head(tuple(map(int, arrays["layers"])), arrays["weight"], arrays["offset"])
        if head.weight_LKD.ndim != 3 or head.weight_LKD.shape[:2] != (len(head.layers), *head.offset_K.shape):
            raise ModelError(
                f"{path}: expected a head; got weights {head.weight_LKD.shape} for {len(head.layers)} layers and "
                f"{head.offset_K.shape} offsets; {_REMEDY}"
            )
        return head


class TeachingHeads(NamedTuple):
    """Heads of the same layers, of which each has been fitted without one fold of the training rows."""

    layers: tuple[int, ...]
    weight_FLKD: torch.Tensor
    offset_FK: torch.Tensor

    def read(self, states_NLD: torch.Tensor, fold_N: torch.Tensor) -> torch.Tensor:
        """Scores (N, K), each row's by the head that has not seen its fold; not clipped, so that gradients reach all.

        No matrix product, which autocast or `train.matmul: medium` would round to bfloat16: hidden states have a few
        very large dimensions."""
        weight_FLKD, offset_FK = (numbers.to(states_NLD) for numbers in (self.weight_FLKD, self.offset_FK))
        return (states_NLD[:, :, None] * weight_FLKD[fold_N]).sum((1, 3)) + offset_FK[fold_N]

    def save(self, folder: Path) -> None:
        """Write `teaching_heads.npz`."""
        _save(folder / _TEACHING_FILE, **{name: np.asarray(field) for name, field in self._asdict().items()})

    @staticmethod
    def load(folder: Path) -> "TeachingHeads | None":
        """What `save` wrote; None where there is none.

        Raises:
            ModelError: The file holds no heads.
        """
        path = folder / _TEACHING_FILE
        if not path.is_file():
            return None
        arrays = read_arrays(path, TeachingHeads._fields, "heads that teach", _TEACHING_REMEDY)
        weight_FLKD, offset_FK = (torch.tensor(arrays[name]) for name in ("weight_FLKD", "offset_FK"))
        return TeachingHeads(tuple(map(int, arrays["layers"])), weight_FLKD, offset_FK)


_TEACHING_FILE = "teaching_heads.npz"


def _save(path: Path, **arrays: Any) -> None:
    """Write arrays whole or not at all: a run that is killed meanwhile is resumed."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def of_layers(states_NLD: np.ndarray, layers: Sequence[int], wanted: Sequence[int]) -> np.ndarray:
    """The states of the wanted ones of these layers, in their order."""
    return states_NLD[:, [layers.index(layer) for layer in wanted]]


class _Ridge(NamedTuple):
    """One layer's map, for states as they are."""

    layer: int
    weight_KD: Matrix
    offset_K: Matrix
    error: float
    """Leave-one-out squared error, mean over scores, in units of their variances."""


def rows_to_fit(count: int) -> list[int]:
    """Which of the training rows the head is fitted on: all, or evenly spread ones."""
    if count <= _MOST_ROWS:
        return list(range(count))
    return [int(index) for index in np.linspace(0, count - 1, _MOST_ROWS)]


def fit_head(states_NLD: np.ndarray, layers: Sequence[int], target_NK: Matrix) -> Head:
    """Fit a ridge regression a layer, and average those of the layers where the leave-one-out error is smallest.

    The same error chooses a strength for each score, or for each principal component of the scores, whichever is
    better: what several scores share is often easier to read than what tells them apart, and wants to shrink less.

    Args:
        states_NLD: From `request_states`.
        layers: Which layers those are.
        target_NK: Training targets in task units.
    """
    return _average(_best(_ridges(states_NLD, layers, target_NK)))


def fit_teaching_heads(states_NLD: np.ndarray, layers: Sequence[int], target_NK: Matrix) -> TeachingHeads:
    """As `fit_head`, once without each fold; only the choice of layers is that of all rows together.

    Args:
        states_NLD: Of the first training rows, at most `TEACHING_ROWS`, in order.
        layers: Which layers those are.
        target_NK: Their targets in task units.
    """
    best = [ridge.layer for ridge in _best(_ridges(states_NLD, layers, target_NK))]
    best_NLD = of_layers(states_NLD, layers, best)
    fold_N = np.arange(len(target_NK)) % FOLDS
    heads = [_average(_ridges(best_NLD[fold_N != fold], best, target_NK[fold_N != fold])) for fold in range(FOLDS)]
    weight_FLKD, offset_FK = (
        torch.tensor(np.stack(some), dtype=torch.float32)
        for some in ([head.weight_LKD for head in heads], [head.offset_K for head in heads])
    )
    return TeachingHeads(tuple(best), weight_FLKD, offset_FK)


def _ridges(states_NLD: np.ndarray, layers: Sequence[int], target_NK: Matrix) -> list[_Ridge]:
    from sklearn.linear_model import RidgeCV  # slow to import

    middle_K, spread_K = target_NK.mean(axis=0), target_NK.std(axis=0) + 1e-9
    scaled_NK = (target_NK - middle_K) / spread_K
    components_KK = np.linalg.eigh(scaled_NK.T @ scaled_NK)[1]
    ways = [np.eye(len(spread_K)), components_KK]
    found = []
    for place, layer in enumerate(layers):
        states_ND = states_NLD[:, place].astype(np.float64)
        center_D, scale_D = states_ND.mean(axis=0), states_ND.std(axis=0) + 1e-6
        states_ND -= center_D  # in place: these are the largest arrays of a fit
        states_ND /= scale_D
        wanted = np.concatenate([scaled_NK @ way_KK for way_KK in ways], axis=1)  # fitted together: one decomposition
        ridge = RidgeCV(alphas=_ALPHAS, alpha_per_target=True).fit(states_ND, wanted)
        error_WK = -np.reshape(ridge.best_score_, (len(ways), -1))
        chosen = int(error_WK.mean(axis=1).argmin())
        slope_KD = ways[chosen] @ ridge.coef_.reshape(len(ways), len(spread_K), -1)[chosen]
        weight_KD = spread_K[:, None] * slope_KD / scale_D
        intercept_K = ways[chosen] @ ridge.intercept_.reshape(len(ways), -1)[chosen]
        offset_K = middle_K + spread_K * intercept_K - weight_KD @ center_D
        found.append(_Ridge(layer, weight_KD, offset_K, float(error_WK[chosen].mean())))
    return found


def _best(ridges: Sequence[_Ridge]) -> list[_Ridge]:
    """Those to be averaged, by layer."""
    return sorted(sorted(ridges, key=lambda ridge: ridge.error)[:_AVERAGED], key=lambda ridge: ridge.layer)


def _average(ridges: Sequence[_Ridge]) -> Head:
    weight_LKD = np.stack([ridge.weight_KD for ridge in ridges]) / len(ridges)
    return Head(
        tuple(ridge.layer for ridge in ridges), weight_LKD, np.mean([ridge.offset_K for ridge in ridges], axis=0)
    )


def layers_to_try(model: StudentModel) -> list[int]:
    """Layers whose states may be read, ascending."""
    count = len(decoder_of(model).layers)
    return sorted({round(count * (0.25 + 0.75 * step / (LAYERS - 1))) or 1 for step in range(LAYERS)})


@torch.no_grad()
def request_states(
    model: StudentModel,
    rows: Sequence[EncodedRow],
    layers: Sequence[int],
    *,
    batch_rows: int,
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Mean hidden states of each row's own prompt tokens, those behind the shared instruction: (N, L, D), float32.

    The model's training mode is left as it was.

    Raises:
        NotFinite: There are states that are no numbers.
    """
    read_NLD = np.empty((0, len(layers), 0), dtype=np.float32)
    collate = PackedCollator()
    decoder = decoder_of(model)
    was_training = model.training
    model.eval()
    try:
        for indices in alike(rows, batch_rows):
            prompts = [rows[index]._replace(completion_ids=[]) for index in indices]
            batch = {
                name: tensor.to(model.device) for name, tensor in collate([row._asdict() for row in prompts]).items()
            }
            with listening(model, layers) as heard:
                decoder(**model_inputs(batch))
            means = [pack_means(heard[layer], batch["requests"]).cpu().numpy() for layer in layers]
            if not len(read_NLD):  # filled batch by batch: the states of all rows are never held twice
                read_NLD = np.empty((len(rows), len(layers), means[0].shape[1]), dtype=means[0].dtype)
            read_NLD[indices] = np.stack(means, axis=1)
            if not np.isfinite(read_NLD[indices]).all():
                raise NotFinite(f"row {prompts[0].id}: expected finite hidden states; got NaN or infinity; {OVERFLOWS}")
            advance(len(indices))
    finally:
        model.train(was_training)
    return read_NLD


def pack_means(states_1TD: torch.Tensor, requests_N2: torch.Tensor) -> torch.Tensor:
    """Mean state of each row's own prompt tokens, (N, D), at least float32; `requests_N2` is the batch's `requests`."""
    states_TD = at_least_float32(states_1TD[0])
    return torch.stack([states_TD[start : start + length].mean(dim=0) for start, length in requests_N2.tolist()])


@contextmanager
def listening(model: torch.nn.Module, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """While it lasts, the output of these layers (B, W, D) is kept in the mapping, from the last forward pass."""
    heard: dict[int, torch.Tensor] = {}
    handles = []
    for layer in layers:

        def keep(module: Any, inputs: Any, output: Any, layer: int = layer) -> None:
            heard[layer] = output[0] if isinstance(output, tuple) else output

        handles.append(decoder_of(model).layers[layer - 1].register_forward_hook(keep))
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
