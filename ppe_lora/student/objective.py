"""What training minimizes: the text's cross-entropy, and how far off the numbers are.

Per row, with the scores' exact distributions p (see `posterior`), their means m, and s the standard deviation of a
score among the training targets, so that 1 is the squared error of always answering their mean:

    sum over completion tokens of  a * cross-entropy                         the text, and its format
    + raft  * sum over scores of   ((m - y) / s)^2                           the read-out's own error (RAFT, ICLR 2025)
    + crps  * sum over scores of   CRPS(p, y) / s                            keeps the spread honest, RAFT does not
    + legal * sum over choices on the target's path of  -log P(legal tokens)
    + head  * sum over scores of   ((h - y) / s)^2                           h: what a head reads, see `head`

summed over the rows of an optimizer step and divided by its completion tokens. a is `skeleton` for tokens that no
number consists of, and 1 for the others. With `label_smoothing` e and `focal` g the cross-entropy of a token is

    (1 - p)^g * ((1 - e) * -log p + e * mean over the vocabulary of -log p_v)

with p the probability of the right token (focal loss: Lin et al., ICCV 2017; smoothing: Szegedy et al., CVPR 2016).
"""

import torch

from ppe_lora.recipe.schema import Objective
from ppe_lora.student.collate import Batch, Read, read, summed_nll
from ppe_lora.student.head import TeachingHeads, listening, pack_means
from ppe_lora.student.layout import IGNORED
from ppe_lora.student.outputs import at_least_float32
from ppe_lora.student.posterior import choice_logits, crps, illegal_nats, leaf_log_probs, mean
from ppe_lora.student.trie import ScoreTrie

_LEAST_DOUBT = 1e-6
"""Smallest 1 - p that the focal weight tells from others."""


def training_loss(
    model: torch.nn.Module,
    batch: Batch,
    objective: Objective,
    trie: ScoreTrie | None,
    spread_K: torch.Tensor | None = None,
    heads: TeachingHeads | None = None,
    unembedding: torch.nn.Linear | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed objective of a batch, and its number of completion tokens.

    Args:
        model: A causal language model that knows `logits_to_keep`.
        batch: From a collator; with slots where the objective looks at the numbers.
        objective: The weights.
        trie: Needed where the objective looks at the numbers or weighs the skeleton.
        spread_K: Standard deviation of each key's training targets, task units; needed where the objective looks at
            the numbers.
        heads: Needed where the objective has a term for them, with the trie and the spread.
        unembedding: The model's, from `outputs.unembedding_of`: saves time where the objective looks at the numbers.
    """
    path_SD = None
    if objective.legal and trie is not None:
        leaf_S = batch["leaves"].flatten()
        path_SD = batch["slot_columns"].gather(1, trie.step_choice.to(leaf_S.device)[leaf_S])
    with listening(model, [] if heads is None else heads.layers) as heard:
        found = read(model, batch, slots=objective.reads_numbers, also=path_SD, unembedding=unembedding)
    if (objective.skeleton, objective.label_smoothing, objective.focal) == (1.0, 0.0, 0.0):
        loss, tokens = summed_nll(found, batch)
    else:
        loss, tokens = _weighed_nll(found.logits, batch["labels"][:, found.columns], objective, trie)
    if not objective.reads_numbers and heads is None:
        return loss, tokens
    if trie is None or spread_K is None:
        raise ValueError("an objective that looks at the numbers needs the trie and the spread of the targets")
    if objective.reads_numbers:
        loss = loss + _number_terms(found, path_SD, batch, objective, trie, spread_K)
    if heads is not None:
        means_NLD = torch.stack([pack_means(heard[layer], batch["requests"]) for layer in heads.layers], dim=1)
        off_NK = heads.read(means_NLD, batch["folds"]) - trie.values.to(means_NLD)[batch["leaves"]]
        loss = loss + objective.head * ((off_NK / spread_K.to(means_NLD)) ** 2).sum()
    return loss, tokens


def slot_choices(found: Read, batch: Batch, trie: ScoreTrie) -> torch.Tensor:
    """`posterior.choice_logits` of every slot of a pack that was read with its slots, (S, M, C)."""
    assert found.slots is not None
    return choice_logits(found.slots.logits_of(trie.tokens), batch["slot_terminator_of"], trie)


def _number_terms(
    found: Read,
    path_SD: torch.Tensor | None,
    batch: Batch,
    objective: Objective,
    trie: ScoreTrie,
    spread_K: torch.Tensor,
) -> torch.Tensor:
    choice_SMC = slot_choices(found, batch, trie)
    log_p_SV = leaf_log_probs(choice_SMC, trie)
    values_V = trie.values.to(choice_SMC.device)
    leaf_S = batch["leaves"].flatten()
    target_S = values_V[leaf_S]
    spread_S = spread_K.to(values_V).repeat(len(target_S) // len(spread_K))
    loss = log_p_SV.new_zeros(())
    if objective.raft:
        loss = loss + objective.raft * (((mean(log_p_SV, values_V) - target_S) / spread_S) ** 2).sum()
    if objective.crps:
        loss = loss + objective.crps * (crps(log_p_SV, values_V, target_S) / spread_S).sum()
    if path_SD is not None:
        logits_SDV = found.logits[0, torch.searchsorted(found.columns, path_SD)]
        loss = loss + objective.legal * illegal_nats(logits_SDV, choice_SMC, leaf_S, trie)
    return loss


def _weighed_nll(
    logits: torch.Tensor, wanted: torch.Tensor, objective: Objective, trie: ScoreTrie | None
) -> tuple[torch.Tensor, torch.Tensor]:
    supervised = wanted != IGNORED
    log_p_TV, wanted_T = at_least_float32(logits[supervised]).log_softmax(-1), wanted[supervised]
    right_T = log_p_TV.gather(1, wanted_T[:, None])[:, 0]
    nll_T = -(1 - objective.label_smoothing) * right_T - objective.label_smoothing * log_p_TV.mean(-1)
    if objective.focal:  # clamped, for below 1 the power has an infinite slope where a token is certain
        nll_T = (-torch.expm1(right_T)).clamp(min=_LEAST_DOUBT) ** objective.focal * nll_T
    if trie is not None and objective.skeleton != 1.0:
        digits = torch.tensor(sorted({token for path in trie.paths for token in path}), device=wanted.device)
        nll_T = torch.where(torch.isin(wanted_T, digits), nll_T, objective.skeleton * nll_T)
    return nll_T.sum(), supervised.sum()
