"""A model whose every number is float64, and the slope of a term by its gradient and by differences."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

_STEP = 1e-5


def model_in_float64(folder: Path) -> PreTrainedModel:
    """Norms included, which transformers computes in float32 whatever the model is: differences of 1e-5 of a slope
    would drown in that."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).double().eval()

    def norm(states: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
        return functional.rms_norm(states, states.shape[-1:], module.weight, module.variance_epsilon)

    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = lambda states, module=module: norm(states, module)
    return model


def slopes(model: torch.nn.Module, term: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """Of a term, along one random direction of all weights: by its gradient, and by central differences."""
    draws = torch.Generator().manual_seed(0)
    weights = list(model.parameters())
    directions = [torch.randn(weight.shape, generator=draws, dtype=weight.dtype) for weight in weights]
    model.zero_grad()
    term().backward()
    by_gradient = sum(
        float((weight.grad * direction).sum())
        for weight, direction in zip(weights, directions, strict=True)
        if weight.grad is not None
    )

    @torch.no_grad()
    def moved_by(step: float) -> float:
        for weight, direction in zip(weights, directions, strict=True):
            weight += step * direction
        return float(term())

    above, below = moved_by(_STEP), moved_by(-2 * _STEP)
    moved_by(_STEP)
    return by_gradient, (above - below) / (2 * _STEP)
