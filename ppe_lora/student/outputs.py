"""What a forward pass is read for: logits at some columns, of the whole vocabulary or of a few tokens.

    the distributions of the scores         at slots and branches     the dozen tokens that numbers are made of
    whether the model says the same         at the answer's tokens    all
    what the row's own answer costs         at the answer's tokens    all

Logits are the output head's weight, a row a token, times the last hidden states, and with 32,768 tokens or more they
are a large part of a small model's work. So columns are kept as hidden states, and the head is applied to as much of
them as is read. Where a model makes its logits otherwise (scaled, capped, by a quantized or sharded head), which is
found out by trying, they are computed whole. B rows, W columns, L tokens, V the vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from ppe_lora.student.load import StudentModel

_TRIED_TOKENS = 8


class Outputs(NamedTuple):
    """Columns of a forward pass, in a tensor of any leading shape."""

    states: torch.Tensor
    """Their last hidden states; where `unembedding` is None, their logits."""
    unembedding: nn.Linear | None

    def at(self, places: Any) -> "Outputs":
        """Some of the columns, by any index of the leading dimensions."""
        return Outputs(self.states[places], self.unembedding)

    def logits(self) -> torch.Tensor:
        """Over the whole vocabulary, (..., V)."""
        return self.states if self.unembedding is None else self.unembedding(self.states)

    def logits_of(self, tokens_L: torch.Tensor) -> torch.Tensor:
        """Of these tokens, (..., L)."""
        tokens_L = tokens_L.to(self.states.device)
        if self.unembedding is None:
            return self.states[..., tokens_L]
        weight_LD, bias = self.unembedding.weight[tokens_L], self.unembedding.bias
        return functional.linear(self.states.to(weight_LD.dtype), weight_LD, None if bias is None else bias[tokens_L])


@torch.no_grad()
def unembedding_of(model: StudentModel) -> nn.Linear | None:
    """The output head, where the model's logits are its product with the last hidden states and nothing else, tried on
    a few tokens; None elsewhere. The training mode is left as it was."""
    was_training = model.training
    model.eval()
    try:
        with last_states(model) as states:
            logits = model(input_ids=torch.arange(_TRIED_TOKENS, device=model.device)[None]).logits
    finally:
        model.train(was_training)
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.dim() != 2 or not head.weight.is_floating_point():
        return None
    same = head.weight.dtype == states[0].dtype and torch.equal(head(states[0]).to(logits.dtype), logits)
    return head if same else None


def run(model: StudentModel, unembedding: nn.Linear | None, keep: int, **inputs: Any) -> Outputs:
    """A forward pass of which the last `keep` columns are kept: (B, keep).

    Args:
        model: A causal language model that knows `logits_to_keep`.
        unembedding: From `unembedding_of`.
        keep: How many columns.
        inputs: Of the model.
    """
    if unembedding is None:
        return Outputs(model(**inputs, logits_to_keep=keep).logits, None)
    none = torch.empty(0, dtype=torch.long, device=model.device)
    with last_states(model) as states:
        model(**inputs, logits_to_keep=none)
    return Outputs(states[0][:, -keep:], unembedding)


@contextmanager
def last_states(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """While it lasts, the last hidden states (B, W, D) of each forward pass are appended to the list: behind the last
    norm, as the output head gets them. The model may be wrapped."""
    states: list[torch.Tensor] = []
    handle = decoder_of(model).register_forward_hook(lambda module, inputs, output: states.append(output[0]))
    try:
        yield states
    finally:
        handle.remove()


def at_least_float32(numbers: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, for softmaxes and sums; a model in float64 keeps it."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def decoder_of(model: nn.Module) -> Any:
    """The text model without its output head, also where PEFT or distributed training wraps the model."""
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    return inner.get_decoder()
