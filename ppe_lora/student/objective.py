"""What training minimizes: the text's cross-entropy, and how far off the numbers are.

Per row, with the scores' exact distributions p (see `posterior`), their means m, and w a quarter of the range:

    sum over completion tokens of  -log p(token)                             cross-entropy: the text, and its format
    + raft * sum over scores of    ((m - y) / w)^2                           the read-out's own error (RAFT, ICLR 2025)
    + crps * sum over scores of    CRPS(p, y) / w                            keeps the spread honest, RAFT does not

summed over the rows of an optimizer step and divided by its completion tokens.
"""

import torch

from ppe_lora.recipe.schema import Objective
from ppe_lora.student.collate import Batch, forward_logits, summed_nll
from ppe_lora.student.posterior import crps, leaf_log_probs, mean
from ppe_lora.student.trie import ScoreTrie


def training_loss(
    model: torch.nn.Module, batch: Batch, objective: Objective, trie: ScoreTrie | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed objective of a batch, and its number of completion tokens.

    Args:
        model: A causal language model that knows `logits_to_keep`.
        batch: From a collator; with slots where the objective looks at the numbers.
        objective: The weights.
        trie: Needed where the objective looks at the numbers.
    """
    logits, columns = forward_logits(model, batch)
    loss, tokens = summed_nll(logits, columns, batch)
    if trie is not None and "slot_columns" in batch:
        log_p_SV = slot_log_probs(logits, columns, batch, trie)
        values_V = trie.values.to(logits.device)
        target_S = values_V[batch["slot_target"]]
        width = float(values_V[-1] - values_V[0]) / 4
        if objective.raft:
            loss = loss + objective.raft * (((mean(log_p_SV, values_V) - target_S) / width) ** 2).sum()
        if objective.crps:
            loss = loss + objective.crps * (crps(log_p_SV, values_V, target_S) / width).sum()
    return loss, tokens


def slot_log_probs(logits: torch.Tensor, columns: torch.Tensor, batch: Batch, trie: ScoreTrie) -> torch.Tensor:
    """Log-probabilities of all values of every slot of a pack, shape (S, V); see `posterior.leaf_log_probs`.

    Args:
        logits: (1, columns, vocabulary), from `forward_logits`.
        columns: The pack's columns that have logits, ascending.
        batch: A pack with slots.
        trie: The trie that the pack was laid out with.
    """
    place_SM = torch.searchsorted(columns, batch["slot_columns"])
    return leaf_log_probs(logits[0, place_SM], batch["slot_terminator_of"], trie)
