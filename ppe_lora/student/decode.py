"""Answers from a student: the free greedy text, and in the same passes the exact distribution of every score.

Most tokens of an answer are known in advance. They are fed as a draft, together with the branches of the score that
follows (see `trie`), so that one pass reads a whole score:

    pass 1   [instruction, cached] <- [request {"energy":] <- 1 2 .. 9, 10 behind 1
    pass 2                                 [2,"warmth":]   <- 1 2 .. 9, 10 behind 1     the answer was 42; 4 is seen
    ..
    pass 7                                 [1}<end>]                                    only where the text is free

Free text is what `generate` writes: a drafted token counts only where it is the arg-max of the whole vocabulary, and a
row where one is not is decoded by `generate` instead. Forced text takes the arg-max of the legal tokens, so that every
answer is valid. The distribution of a score is conditioned on the forced answers in front of it in both cases.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from transformers import DynamicCache

from ppe_lora.student.cache import Chunk, PromptCache, chunk_of, encode_instruction
from ppe_lora.student.collate import PaddedCollator, completion_nll
from ppe_lora.student.encode import EncodedRow, alike
from ppe_lora.student.head import Head, listening, mean_states
from ppe_lora.student.layout import Run
from ppe_lora.student.load import StudentModel
from ppe_lora.student.outputs import Outputs, unembedding_of
from ppe_lora.student.posterior import choice_logits, greedy_leaf, leaf_log_probs
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.trie import ScoreTrie, add_branches, add_slots_alone
from ppe_lora.tasks.scores import ScoresTask

_SLACK_TOKENS = 8
_COLUMNS_AT_ONCE = 256
"""Columns that get logits over the whole vocabulary at the same time: 134 MB in float32 for 131,072 tokens."""


class Decoded(NamedTuple):
    """What the model makes of one row."""

    ids: list[int]
    """The answer's tokens, cut after the first end token."""
    log_p_KV: torch.Tensor | None
    """Log-probability of every legal value of every score, float32, on the CPU; None without a trie."""
    nll: float
    """Negative log-likelihood (nats) of the row's own completion; 0 where the row has none."""
    head_K: np.ndarray | None = None
    """The head's scores, in task units, not rounded; None without a head."""

    @property
    def is_finite(self) -> bool:
        """Whether everything that was computed is a number."""
        posterior = self.log_p_KV is None or not self.log_p_KV.isnan().any()
        return posterior and math.isfinite(self.nll) and (self.head_K is None or bool(np.isfinite(self.head_K).all()))


def answer_token_limit(task: ScoresTask, tokenizer: StudentTokenizer) -> int:
    """Tokens a decode may take: the longest legal answer with its end token, and a few more to show a runaway."""
    longest = {key: max(task.low, task.high, key=lambda value: len(task.render_value(value))) for key in task.keys}
    messages = task.messages("x", "en")
    return len(tokenizer.completion_ids(messages, task.render(longest))) + _SLACK_TOKENS


class Decoder:
    """Decodes rows with a model as it is now: instructions stay encoded, so make a new one when weights change.

    Args:
        model: The bare model, without distributed wrappers.
        tokenizer: Gives the padding and end tokens.
        trie: The trie of the task and tokenizer; None where the model does not compute packs exactly
            (`collate.packs_exactly`): then `generate` writes the text, and there are no distributions.
        max_new_tokens: Tokens after which a free text that has not ended is cut.
        head: Reads scores from the hidden states of the same passes; needs a trie.
    """

    def __init__(
        self,
        model: StudentModel,
        tokenizer: StudentTokenizer,
        trie: ScoreTrie | None,
        max_new_tokens: int,
        head: Head | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.trie = trie
        self.max_new_tokens = max_new_tokens
        self.head = head
        self._unembedding = None if trie is None else unembedding_of(model)
        self._instructions: dict[tuple[int, ...], DynamicCache] = {}

    @torch.no_grad()
    def decode(
        self,
        rows: Sequence[EncodedRow],
        *,
        batch_rows: int,
        forced: bool = False,
        advance: Callable[[int], None] = lambda count: None,
    ) -> list[Decoded]:
        """Decode rows, in the order given, batched by instruction and length.

        The model's training mode and the random state are left as they were.

        Args:
            rows: Their completions, if any, are scored (`Decoded.nll`) and never seen by the decoding.
            batch_rows: Rows decoded together.
            forced: Whether the text may only be a valid answer.
            advance: Called with the number of rows after each batch.
        """
        if forced and self.trie is None:
            raise ValueError("forced decoding needs a trie")
        decoded: dict[int, Decoded] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in alike(rows, batch_rows):
                decoded.update(zip(batch, self._decode_batch([rows[index] for index in batch], forced), strict=True))
                advance(len(batch))
        finally:
            self.model.train(was_training)
        return [decoded[index] for index in range(len(rows))]

    def _decode_batch(self, rows: Sequence[EncodedRow], forced: bool) -> list[Decoded]:
        if self.trie is None:
            texts = self._generate(rows)
            return [Decoded(text, None, self._padded_nll(row)) for text, row in zip(texts, rows, strict=True)]
        prompts = PromptCache(self.model, self._instruction(rows[0]), len(rows), self._unembedding)
        batch = _SkeletonBatch(self.model, self.trie, rows, prompts, self.tokenizer.pad_id, self.head, not forced)
        if forced and self.trie.alone is not None:
            log_p_BKV = batch.read_all_alone()
        else:
            log_p_BKV = torch.stack([batch.read_score(key) for key in range(len(self.trie.leads))], dim=1)
        texts = [self.trie.completion([float(self.trie.values[leaf]) for leaf in leaves]) for leaves in batch.leaves]
        if not forced:
            log_p_BKV = batch.read_all_alone() if self.trie.alone is not None else log_p_BKV
            batch.check_tail()
            left = [index for index, agrees in enumerate(batch.agrees()) if not agrees]
            for index, text in zip(left, self._generate([rows[index] for index in left]), strict=True):
                texts[index] = text
        nll = batch.completion_nll(rows)
        return [Decoded(*one) for one in zip(texts, log_p_BKV, nll, batch.read_head(), strict=True)]

    def _instruction(self, row: EncodedRow) -> DynamicCache | None:
        ids = tuple(row.prompt_ids[: row.shared])
        if ids and ids not in self._instructions:
            self._instructions[ids] = encode_instruction(self.model, ids)
        return self._instructions.get(ids)

    def _generate(self, rows: Sequence[EncodedRow]) -> list[list[int]]:
        if not rows:
            return []
        return generate(self.model, [row.prompt_ids for row in rows], self.tokenizer, self.max_new_tokens)

    def _padded_nll(self, row: EncodedRow) -> float:
        if not row.completion_ids:
            return 0.0
        batch = PaddedCollator(self.tokenizer.pad_id)([row._asdict()])
        return float(completion_nll(self.model, {name: x.to(self.model.device) for name, x in batch.items()})[0])


class _SkeletonBatch:
    """A batch of rows on its way through the answer, a score a pass. B rows, W columns of a pass, V values, S slots, M
    choices.

    `drafts` are the tokens each row is fed next: the rest of a value behind its branches, and the fixed tokens up to
    the next score.
    """

    def __init__(
        self,
        model: StudentModel,
        trie: ScoreTrie,
        rows: Sequence[EncodedRow],
        prompts: PromptCache,
        pad_id: int,
        head: Head | None,
        free: bool,
    ) -> None:
        self.model = model
        self.head = head
        self.prompts = prompts
        self.trie = trie
        self.pad_id = pad_id
        self.requests = [row.prompt_ids[row.shared :] for row in rows]
        self.drafts = [[*request, *trie.leads[0]] for request in self.requests]
        self.leaves: list[list[int]] = [[] for _ in rows]
        """Per row the forced greedy answers so far, as indices of values."""
        self.free = free
        self.said: list[Outputs] = []
        """Where the text is free: the columns that predict its tokens so far, pass by pass."""
        self.said_rows: list[int] = []
        """Whose columns those are."""
        self.said_tokens: list[int] = []
        """What they predict."""

    def read_score(self, key: int) -> torch.Tensor:
        """Feed the drafts and the branches of a score; take its answer; log-probabilities (B, V), on the CPU."""
        runs = [Run([])]
        read_at = add_branches(runs, 0, self.trie)  # run 0 ends at the slot, and each of the others is a column
        outputs = self._feed(runs[1:])
        slot = outputs.states.shape[1] - len(runs)
        place_M = torch.tensor([slot + run for run in read_at])
        key_B = torch.full((len(self.drafts),), key, device=outputs.states.device)
        legal_BML = outputs.at((slice(None), place_M)).logits_of(self.trie.tokens)
        choice_BMC = choice_logits(legal_BML, key_B, self.trie)
        leaf_B = greedy_leaf(choice_BMC, self.trie).tolist()
        following = self.trie.leads[key + 1] if key + 1 < len(self.trie.leads) else self.trie.tail
        seen_BW = torch.zeros(len(leaf_B), len(runs) - 1, dtype=torch.bool)
        saying = []
        for row, leaf in enumerate(leaf_B):
            inside, expected = self.trie.inside(leaf), [*self.trie.paths[leaf], *following]
            columns = [slot, *(slot + 1 + branch for branch in inside)]
            saying += [(row, *one) for one in zip(columns, expected, strict=False)]
            seen_BW[row, inside] = True
            self.leaves[row].append(leaf)
            self.drafts[row] = expected[len(inside) :]
        self._say(outputs, saying)
        self.prompts.see(seen_BW)
        return leaf_log_probs(choice_BMC, self.trie).cpu()

    def read_all_alone(self) -> torch.Tensor:
        """Read all scores from the request alone in one pass, which is the first one or any later one; take them as
        answers if there are none yet; log-probabilities (B, K, V), on the CPU."""
        first = not self.leaves[0]
        runs = [Run([self.pad_id] if first else [])]  # the request, of which the last column is kept if it is fed here
        slots = add_slots_alone(runs, 0, self.trie)
        ends = torch.tensor([len(run.ids) for run in runs]).cumsum(0) - 1
        keep = int(ends[-1]) + 1
        chunk = chunk_of(self.requests if first else [[]] * len(self.requests), self.pad_id, runs[1:])
        with listening(self.model, self._heads_layers(first)) as heard:
            outputs = self.prompts.feed(chunk, keep, None if first else self.request_BC)
        if first:
            self._see_request(outputs, chunk, heard)
        place_SM = ends[torch.tensor([slot.runs for slot in slots])]
        rows, scores = len(self.requests), len(slots)
        ending_S = torch.tensor([slot.terminator_of for slot in slots] * rows, device=outputs.states.device)
        legal_SML = outputs.at((slice(None), place_SM)).logits_of(self.trie.tokens).flatten(0, 1)
        choice_SMC = choice_logits(legal_SML, ending_S, self.trie)
        if first:
            self.leaves = greedy_leaf(choice_SMC, self.trie).view(rows, scores).tolist()
        return leaf_log_probs(choice_SMC, self.trie).view(rows, scores, -1).cpu()

    def read_head(self) -> list[np.ndarray | None]:
        """The head's scores (K) of each row, in task units, not rounded; None without a head."""
        if self.head is None:
            return [None] * len(self.requests)
        low, high = float(self.trie.values[0]), float(self.trie.values[-1])
        return list(self.head.read(self.states_BLD, low, high))

    def _heads_layers(self, first: bool) -> list[int]:
        return list(self.head.layers) if first and self.head is not None else []

    def _see_request(self, outputs: Outputs, chunk: Chunk, heard: dict[int, torch.Tensor]) -> None:
        """Let what follows see the request, which the first chunk had in front; remember its last column, the first
        that was kept, and what the head reads."""
        width, behind = chunk.ids_BW.shape[1], outputs.states.shape[1] - 1
        if self.head is not None:
            lengths = list(map(len, self.requests))
            self.states_BLD = np.stack(
                [mean_states(heard[layer], lengths, behind) for layer in self.head.layers], axis=1
            )
        self.after_request = outputs.at((slice(None), 0))
        self.prompts.see(chunk.own_BW & (torch.arange(width) < width - behind))
        self.request_BC = self.prompts.seen_BC.clone()

    def check_tail(self) -> None:
        """Feed what follows the last score, whose tokens the model has to agree with down to the end token."""
        self._feed([])

    def agrees(self) -> list[bool]:
        """Per row, whether every token of the text is what the model says freely: the likeliest of all tokens."""
        said = Outputs(torch.cat([outputs.states for outputs in self.said]), self.said[0].unembedding)
        row_N, token_N = torch.tensor(self.said_rows), torch.tensor(self.said_tokens)
        agrees_B = torch.ones(len(self.requests), dtype=torch.bool)
        for part in torch.arange(len(row_N)).split(_COLUMNS_AT_ONCE):
            open_N = part[agrees_B[row_N[part]]]
            is_said_N = _is_argmax(said.at(open_N).logits(), token_N[open_N].to(said.states.device)).cpu()
            agrees_B[row_N[open_N[~is_said_N]]] = False
        return agrees_B.tolist()

    def completion_nll(self, rows: Sequence[EncodedRow]) -> list[float]:
        """Summed negative log-likelihood of each row's own completion behind its prompt; 0 where it has none."""
        if not any(row.completion_ids for row in rows):
            return [0.0] * len(rows)
        chunk = chunk_of([row.completion_ids[:-1] or [self.pad_id] for row in rows], self.pad_id)
        width = chunk.ids_BW.shape[1]
        fed = self.prompts.feed(chunk, width, self.request_BC)
        states = torch.cat([self.after_request.states[:, None], fed.states], dim=1)
        of_row = [(row, at) for row, one in enumerate(rows) for at in range(len(one.completion_ids))]
        row_N, at_N = torch.tensor(of_row).T
        length_N = torch.tensor([len(row.completion_ids) for row in rows])[row_N]
        outputs = Outputs(states, fed.unembedding).at((row_N, torch.where(at_N == 0, 0, width + 1 - length_N + at_N)))
        token_N = torch.tensor([token for row in rows for token in row.completion_ids], device=states.device)
        nll_B = torch.zeros(len(rows), dtype=torch.float64)
        for part in torch.arange(len(row_N)).split(_COLUMNS_AT_ONCE):
            nll_N = functional.cross_entropy(outputs.at(part).logits().float(), token_N[part], reduction="none")
            nll_B.index_add_(0, row_N[part], nll_N.double().cpu())
        return nll_B.tolist()

    def _feed(self, behind: Sequence[Run]) -> Outputs:
        """Feed each row its draft, and the branches of a score behind it; the draft's tokens become text. The columns
        from the one that predicts the first token of the answer on."""
        first = not self.leaves[0]
        chunk = chunk_of(self.drafts, self.pad_id, behind)
        keep = 1 + len(self.trie.leads[0]) + len(behind) if first else chunk.ids_BW.shape[1]
        with listening(self.model, self._heads_layers(first)) as heard:
            outputs = self.prompts.feed(chunk, keep)
        if first:
            self._see_request(outputs, chunk, heard)
        end = keep - len(behind)
        saying = []
        for row, draft in enumerate(self.drafts):
            text = draft[-end:]
            saying += [(row, end - len(text) + at, token) for at, token in enumerate(text[1:])]
        self._say(outputs, saying)
        self.prompts.see(chunk.own_BW)
        return outputs

    def _say(self, outputs: Outputs, saying: Sequence[tuple[int, int, int]]) -> None:
        """Note which token each row's text has behind a column: (row, column, token)."""
        if not self.free or not saying:
            return
        rows, columns, tokens = zip(*saying, strict=True)
        self.said.append(outputs.at((list(rows), list(columns))))
        self.said_rows += rows
        self.said_tokens += tokens


def _is_argmax(logits_NV: torch.Tensor, token_N: torch.Tensor) -> torch.Tensor:
    """Whether each token is the arg-max of its logits, which is the first where several are the largest, shape (N,).
    Maxima alone take a tenth of the time of `argmax` on a CPU. The logits are changed."""
    own_N = logits_NV.gather(1, token_N[:, None])[:, 0]
    other_N = logits_NV.scatter_(1, token_N[:, None], float("-inf")).amax(-1)
    is_N = own_N > other_N
    tied = own_N == other_N
    is_N[tied] = token_N[tied] < logits_NV[tied].argmax(-1)
    return is_N


def measure_latency_ms(decoder: Decoder, rows: Sequence[EncodedRow], *, forced: bool) -> list[float]:
    """Milliseconds from prompt ids to the answer of each row, one at a time, after one of each instruction that warms
    up: the instructions are encoded already, as they are in a server.
    """
    latencies = []
    first_of = {tuple(row.prompt_ids[: row.shared]): row for row in reversed(rows)}
    for row in [*first_of.values(), *rows]:
        asked = row._replace(completion_ids=[])
        started = time.perf_counter()
        decoder.decode([asked], batch_rows=1, forced=forced)
        latencies.append((time.perf_counter() - started) * 1000)
    return latencies[len(first_of) :]


def generate(
    model: StudentModel, prompts: Sequence[Sequence[int]], tokenizer: StudentTokenizer, max_new_tokens: int
) -> list[list[int]]:
    """The free greedy text of prompts by the model's own `generate`: what the draft has to agree with."""
    width = max(map(len, prompts))
    input_ids = torch.tensor([[tokenizer.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model_generate: Any = model.generate
    output = model_generate(
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
