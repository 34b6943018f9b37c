"""What a student makes of scores, the slow way: whole answers written by its tokenizer, each scored as a text of its
own. Nothing is packed, cached or laid out, and no trie is asked which tokens are legal."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.tasks.scores import ScoresTask
from tests.runs import TASK
from tests.tiny import STUDENTS, tiny_llama, tiny_mistral

TENTHS = ScoresTask(keys=("a", "b"), low=-5, high=5, decimals=1)
"""Values of up to four tokens, with tokens that only one may follow."""
CASES: dict[str, tuple[Callable[[Path], Path], ScoresTask]] = {
    **{family: (build, TASK) for family, build in STUDENTS.items()},
    "six keys": (tiny_llama, ScoresTask()),
    "tenths": (tiny_llama, TENTHS),
    "tenths of mistral": (tiny_mistral, TENTHS),
}

Text = tuple[int, ...]


def legal_values(task: ScoresTask) -> list[float]:
    """Ascending."""
    steps = 10**task.decimals
    return [step / steps for step in range(task.low * steps, task.high * steps + 1)]


def written(task: ScoresTask, tokenizer: StudentTokenizer, key: str, before: Mapping[str, float]) -> list[Text]:
    """The completion with each legal value of a key, ascending, behind these answers to the keys before it."""
    answers = [{**dict.fromkeys(task.keys, task.low), **before, key: value} for value in legal_values(task)]
    return [tuple(tokenizer.completion_ids(task.messages("x", "en"), task.render(answer))) for answer in answers]


def legal_behind(texts: Sequence[Text]) -> dict[Text, list[int]]:
    """Behind which beginnings texts go on differently, and with which tokens."""
    following: dict[Text, set[int]] = {}
    for text in texts:
        for depth, token in enumerate(text):
            following.setdefault(text[:depth], set()).add(token)
    return {beginning: sorted(tokens) for beginning, tokens in following.items() if len(tokens) > 1}


@torch.no_grad()
def log_probs(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    task: ScoresTask,
    tokenizer: StudentTokenizer,
    key: str,
    before: Mapping[str, float],
) -> torch.Tensor:
    """Log-probability of every value of a key, (V,), token by token, each softmax over the tokens that some legal value
    has there."""
    texts = written(task, tokenizer, key, before)
    legal = legal_behind(texts)
    log_p: dict[tuple[Text, int], float] = {}
    for length in {len(beginning) for beginning in legal}:
        alike = [beginning for beginning in legal if len(beginning) == length]
        logits = model(torch.tensor([[*prompt_ids, *beginning] for beginning in alike]), logits_to_keep=1).logits
        for beginning, logits_V in zip(alike, logits[:, -1].double(), strict=True):
            of_legal = logits_V[legal[beginning]].log_softmax(0).tolist()
            log_p |= {(beginning, token): p for token, p in zip(legal[beginning], of_legal, strict=True)}
    return torch.tensor(
        [sum(log_p.get((text[:depth], token), 0.0) for depth, token in enumerate(text)) for text in texts]
    )


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt_ids: Sequence[int], task: ScoresTask, tokenizer: StudentTokenizer) -> Text:
    """The answer written token by token, each the likeliest of those that some legal answer has there."""
    before: dict[str, float] = {}
    for key in task.keys:
        texts = left = written(task, tokenizer, key, before)
        depth = 0
        while len(left) > 1:
            legal = sorted({text[depth] for text in left})
            logits_V = model(torch.tensor([[*prompt_ids, *left[0][:depth]]]), logits_to_keep=1).logits[0, -1]
            token = legal[int(logits_V[legal].argmax())]
            left = [text for text in left if text[depth] == token]
            depth += 1
        before[key] = legal_values(task)[texts.index(left[0])]
    return left[0]
