"""Free-running greedy decoding: what the model says when nobody helps it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ppe_lora.student.load import StudentModel
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.tasks.scores import ScoresTask

_SLACK_TOKENS = 8


def answer_token_limit(task: ScoresTask, tokenizer: StudentTokenizer) -> int:
    """Tokens a decode may take: the longest legal answer with its end token, and a few more to show a runaway."""
    longest = {key: max(task.low, task.high, key=lambda value: len(task.render_value(value))) for key in task.keys}
    messages = task.messages("x", "en")
    return len(tokenizer.completion_ids(messages, task.render(longest))) + _SLACK_TOKENS


@torch.no_grad()
def greedy_decode(
    model: StudentModel,
    prompts: Sequence[Sequence[int]],
    tokenizer: StudentTokenizer,
    *,
    max_new_tokens: int,
    batch_rows: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """Decode prompts greedily with the model's own `generate`, batched by length.

    The model's training mode and the random state are left as they were.

    Args:
        model: The bare model, without distributed wrappers.
        prompts: Prompt ids.
        tokenizer: Gives the padding and end tokens.
        max_new_tokens: Tokens after which a row that has not ended is cut.
        batch_rows: Rows decoded together.
        advance: Called with the number of rows after each batch.

    Returns:
        The new ids of each prompt, in the order given, cut after the first end token.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    decoded: dict[int, list[int]] = {}
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_rows):
            batch = order[start : start + batch_rows]
            new_ids = _generate(model, [prompts[index] for index in batch], tokenizer, max_new_tokens)
            decoded.update(zip(batch, new_ids, strict=True))
            advance(len(batch))
    finally:
        model.train(was_training)
    return [decoded[index] for index in range(len(prompts))]


def measure_latency_ms(
    model: StudentModel,
    prompts: Sequence[Sequence[int]],
    tokenizer: StudentTokenizer,
    *,
    max_new_tokens: int,
) -> list[float]:
    """Milliseconds from prompt ids to answer ids of each prompt, one at a time, after one that warms up."""
    latencies = []
    for prompt in [*prompts[:1], *prompts]:
        started = time.perf_counter()
        greedy_decode(model, [prompt], tokenizer, max_new_tokens=max_new_tokens, batch_rows=1)
        latencies.append((time.perf_counter() - started) * 1000)
    return latencies[1:]


def _generate(
    model: StudentModel, prompts: Sequence[Sequence[int]], tokenizer: StudentTokenizer, max_new_tokens: int
) -> list[list[int]]:
    width = max(map(len, prompts))
    input_ids = torch.tensor([[tokenizer.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    generate: Any = model.generate
    output = generate(
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        repetition_penalty=1.0,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=list(tokenizer.end_ids),
        pad_token_id=tokenizer.pad_id,
    )
    return [_until_end(row, tokenizer.end_ids) for row in output[:, width:].tolist()]


def _until_end(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in end_ids:
            return ids[: position + 1]
    return ids
