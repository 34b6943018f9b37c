"""The exact distribution of every score of every row, from one forward pass.

The branches of a score (see `trie`) are laid out behind its slot, where nobody else sees them, so that the logits of
all choices are read at once. S slots, V values, M choices, C children, D choices on a path, L legal tokens.
"""

import torch

from ppe_lora.student.outputs import at_least_float32
from ppe_lora.student.trie import ScoreTrie


def choice_logits(legal_SML: torch.Tensor, key_S: torch.Tensor, trie: ScoreTrie) -> torch.Tensor:
    """Logits of the legal tokens at each choice of each slot, (S, M, C), at least float32; -inf where there
    is none.

    Args:
        legal_SML: Logits of `trie.tokens` at each choice of each slot.
        key_S: Which key of the task each slot belongs to: the terminator depends on it.
        trie: The trie of the task and tokenizer.
    """
    place_KMC = torch.searchsorted(trie.tokens, trie.children)
    choice_SMC = at_least_float32(legal_SML).gather(2, place_KMC.to(legal_SML.device)[key_S])
    return choice_SMC.masked_fill(~trie.legal.to(legal_SML.device), float("-inf"))


def leaf_log_probs(choice_SMC: torch.Tensor, trie: ScoreTrie) -> torch.Tensor:
    """Log-probability of every legal value of each slot, shape (S, V): log_softmax over the legal tokens at each
    choice (`choice_logits`), summed along the value's path. `exp` of a row sums to 1."""
    device = choice_SMC.device
    log_p_SMC = choice_SMC.log_softmax(-1)
    step_SVD = log_p_SMC[:, trie.step_choice.to(device), trie.step_child.to(device)]
    return step_SVD.masked_fill(~trie.steps.to(device), 0.0).sum(-1)


def greedy_leaf(choice_SMC: torch.Tensor, trie: ScoreTrie) -> torch.Tensor:
    """The value that greedy decoding among the legal tokens writes, as its index, shape (S,). Not always the most
    probable value: a token at a time, it takes the likeliest beginning."""
    device = choice_SMC.device
    taken_SVD = choice_SMC.argmax(-1)[:, trie.step_choice.to(device)] == trie.step_child.to(device)
    return (taken_SVD | ~trie.steps.to(device)).all(-1).int().argmax(-1)


def illegal_nats(
    logits_SDV: torch.Tensor, choice_SMC: torch.Tensor, leaf_S: torch.Tensor, trie: ScoreTrie
) -> torch.Tensor:
    """-log of the probability that the whole vocabulary gives to the legal tokens, at the choices on the path of each
    slot's value, summed: 0 where nothing illegal is possible.

    Args:
        logits_SDV: Logits of the whole vocabulary at the choices on the path of each slot's value, as
            `trie.step_choice` names them.
        choice_SMC: From `choice_logits`.
        leaf_S: The value of each slot, as its index.
        trie: The trie of the task and tokenizer.
    """
    device = choice_SMC.device
    legal_SD = choice_SMC.logsumexp(-1).gather(1, trie.step_choice.to(device)[leaf_S])
    nats_SD = at_least_float32(logits_SDV).logsumexp(-1) - legal_SD
    return nats_SD.masked_fill(~trie.steps.to(device)[leaf_S], 0.0).sum()


def mean(log_p_SV: torch.Tensor, values_V: torch.Tensor) -> torch.Tensor:
    """Mean of each distribution, shape (S,), in task units: the read-out with the smallest expected squared error.

    No matrix product, which `train.matmul: medium` would round to bfloat16: a tenth of a point off on 0-100.
    """
    return (log_p_SV.exp() * values_V.to(log_p_SV)).sum(-1)


def deviation(log_p_SV: torch.Tensor, values_V: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each distribution, shape (S,), in task units."""
    mean_S = mean(log_p_SV, values_V)
    return (log_p_SV.exp() * (values_V - mean_S[:, None]) ** 2).sum(-1).sqrt()


def quantile(log_p_SV: torch.Tensor, values_V: torch.Tensor, share: float) -> torch.Tensor:
    """The smallest value with at least `share` of the mass at or below it, shape (S,), in task units."""
    reached_SV = log_p_SV.exp().cumsum(-1) >= share - 1e-6
    return values_V[reached_SV.float().argmax(-1)]


def crps(log_p_SV: torch.Tensor, values_V: torch.Tensor, target_S: torch.Tensor) -> torch.Tensor:
    """Continuous ranked probability score of each distribution, shape (S,), in task units; 0 is all mass on the target.

    CRPS = sum over steps of the value axis of (F(v) - [v >= y])^2 times the step's width, F the cumulative
    distribution. For a distribution that is a point it is the absolute error.
    """
    cumulative_SV = log_p_SV.exp().cumsum(-1)
    above_SV = (values_V >= target_S[:, None]).float()
    return ((cumulative_SV - above_SV)[:, :-1] ** 2 * values_V.diff()).sum(-1)
