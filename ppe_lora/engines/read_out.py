"""An engine's answer to one prompt, as `student.decode.Decoder` gives it by force: same text, same distributions.

For whole scores from 0 to 100 eleven places are read per score (see `student.trie`), each behind the answers in front
of it; S slots, M choices, C children.
"""

from collections.abc import Sequence

import torch

from ppe_lora.engines.client import Asked, Engine
from ppe_lora.student.decode import Decoded
from ppe_lora.student.posterior import greedy_leaf, leaf_log_probs
from ppe_lora.student.trie import ScoreTrie


async def decode(engine: Engine, prompt_ids: Sequence[int], trie: ScoreTrie) -> Decoded:
    """Read every score of an answer: its forced greedy text and the distribution of each score.

    Args:
        engine: Serves the merged model.
        prompt_ids: The prompt as `StudentTokenizer.prompt_ids` has it.
        trie: The trie of the model's task and tokenizer.

    Raises:
        EngineError: The engine cannot be reached, or does not answer as asked.
    """
    if trie.alone is not None:
        last = len(trie.leads) - 1  # alone, every value ends as the last key's does, with the answer
        choice_KMC = await _read(engine, [([*prompt_ids, *lead], last) for lead in trie.alone], trie)
        leaves = greedy_leaf(choice_KMC, trie).tolist()
        log_p_KV = leaf_log_probs(choice_KMC, trie)
    else:
        seen, leaves, scores = list(prompt_ids), [], []
        for key, lead in enumerate(trie.leads):
            seen += lead
            choice_1MC = await _read(engine, [(seen, key)], trie)
            leaves.append(int(greedy_leaf(choice_1MC, trie)))
            seen += trie.paths[leaves[-1]]
            scores.append(leaf_log_probs(choice_1MC, trie))
        log_p_KV = torch.cat(scores)
    return Decoded(trie.completion([float(trie.values[leaf]) for leaf in leaves]), log_p_KV, 0.0)


async def _read(engine: Engine, slots: Sequence[tuple[Sequence[int], int]], trie: ScoreTrie) -> torch.Tensor:
    """Logits of the legal tokens at each choice of slots (tokens in front, key whose terminator ends it), (S, M, C)."""
    paths = _choice_paths(trie)
    asked = [
        Asked([*front, *path], trie.children[key, choice][trie.legal[choice]].tolist())
        for front, key in slots
        for choice, path in enumerate(paths)
    ]
    choice_SMC = torch.full((len(slots), *trie.legal.shape), float("-inf"))
    for place, values in enumerate(await engine.log_probs(asked)):
        slot, choice = divmod(place, len(paths))
        choice_SMC[slot, choice, trie.legal[choice]] = torch.tensor(values)
    return choice_SMC


def _choice_paths(trie: ScoreTrie) -> list[list[int]]:
    """Per choice, the tokens between the slot and the place where it is read."""
    paths: dict[int, list[int]] = {0: []}
    behind: list[list[int]] = []
    for branch in trie.branches:
        behind.append([*(behind[branch.parent] if branch.parent is not None else []), branch.token])
        if branch.choice is not None:
            paths[branch.choice] = behind[-1]
    return [paths[choice] for choice in range(len(paths))]
