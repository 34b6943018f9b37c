"""The exact distribution of every score of every row, from one forward pass.

The branches of a score (see `trie`) are laid out behind its slot, where nobody else sees them, so that the logits of
all choices are read at once. S slots, V values, M choices, C children, D choices on a path.
"""

import torch

from ppe_lora.student.trie import ScoreTrie


def leaf_log_probs(logits_SMV: torch.Tensor, key_S: torch.Tensor, trie: ScoreTrie) -> torch.Tensor:
    """Log-probability of every legal value of each slot, shape (S, V), float32: log_softmax over the legal tokens at
    each choice, summed along the value's path. `exp` of a row sums to 1.

    Args:
        logits_SMV: Logits at the M choices of each slot over the whole vocabulary.
        key_S: Which key of the task each slot belongs to: the terminator depends on it.
        trie: The trie of the task and tokenizer.
    """
    return path_log_probs(_choice_logits(logits_SMV, key_S, trie), trie)


def path_log_probs(choice_SMC: torch.Tensor, trie: ScoreTrie) -> torch.Tensor:
    """`leaf_log_probs` of logits read at the legal tokens only, (S, M, C), -inf where there is none. A constant added
    to all logits of a choice changes nothing, so log-probabilities over any wider set of tokens do as well."""
    device = choice_SMC.device
    step_SVD = choice_SMC.log_softmax(-1)[:, trie.step_choice.to(device), trie.step_child.to(device)]
    return step_SVD.masked_fill(~trie.steps.to(device), 0.0).sum(-1)


def greedy_leaf(logits_SMV: torch.Tensor, key_S: torch.Tensor, trie: ScoreTrie) -> torch.Tensor:
    """The value that greedy decoding among the legal tokens writes, as its index, shape (S,). Not always the most
    probable value: a token at a time, it takes the likeliest beginning. Arguments as in `leaf_log_probs`."""
    return greedy_path(_choice_logits(logits_SMV, key_S, trie), trie)


def greedy_path(choice_SMC: torch.Tensor, trie: ScoreTrie) -> torch.Tensor:
    """`greedy_leaf` of logits read at the legal tokens only, as in `path_log_probs`."""
    device = choice_SMC.device
    best_SM = choice_SMC.argmax(-1)
    taken_SVD = best_SM[:, trie.step_choice.to(device)] == trie.step_child.to(device)
    return (taken_SVD | ~trie.steps.to(device)).all(-1).int().argmax(-1)


def _choice_logits(logits_SMV: torch.Tensor, key_S: torch.Tensor, trie: ScoreTrie) -> torch.Tensor:
    """Logits of the children at each choice, (S, M, C), float32; -inf where there is none."""
    children_SMC = trie.children.to(logits_SMV.device)[key_S]
    logits_SMC = logits_SMV.gather(2, children_SMC).float()
    return logits_SMC.masked_fill(~trie.legal.to(logits_SMV.device), float("-inf"))


def mean(log_p_SV: torch.Tensor, values_V: torch.Tensor) -> torch.Tensor:
    """Mean of each distribution, shape (S,), in task units: the read-out with the smallest expected squared error."""
    return log_p_SV.exp() @ values_V


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
