"""Every legal rendering of a score as token paths, built from the tokenizer itself and checked.

    {"energy":  ->  4 -> 2 -> ,"     the value 42, ended by the terminator
                    |    `-> 0..9    41, 43, ...
                    `-> ,"           the value 4

A node where several tokens are legal is a choice. The probability of a value is the product, over the choices on its
path, of a softmax restricted to the legal tokens there: these sum to 1 over all values. For whole numbers from 0 to 100
there are 11 choices: the start, after each of 1 to 9, and after 10.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from ppe_lora.errors import ModelError
from ppe_lora.student.layout import Run
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.tasks.scores import ScoresTask

_PROBE = [{"role": "system", "content": "Answer with JSON."}, {"role": "user", "content": "x"}]


class Branch(NamedTuple):
    """A token to lay out behind a slot so that the choices below the first one can be read."""

    token: int
    parent: int | None
    """Index of the branch it follows; None behind the slot itself."""
    choice: int | None
    """Which choice is read at this token; None where only one token may follow."""


class ScoreTrie(NamedTuple):
    """The trie of a task's scores for one tokenizer. K keys, V values, M choices, C children at most, D choices a path.

    Paths and branches are the same for every key but for the terminator, which is the last key's own.
    """

    values: torch.Tensor
    """(V,) the legal values in ascending order, in task units, float32."""
    leads: tuple[tuple[int, ...], ...]
    """Per key, the fixed tokens in front of its value, from the end of the value before it."""
    tail: tuple[int, ...]
    """The fixed tokens behind the last value, the end token included."""
    alone: tuple[tuple[int, ...], ...] | None
    """Per key, the fixed tokens in front of its value in an answer of that key only; None where the scores are not read
    from the request alone but behind the answers before them (recipe key `train.objective.slots`)."""
    paths: tuple[tuple[int, ...], ...]
    """Per value its tokens, without the terminator."""
    branches: tuple[Branch, ...]
    children: torch.Tensor
    """(K, M, C) token ids; where fewer than C are legal, any id fills the rest."""
    tokens: torch.Tensor
    """(L,) the ids among `children`, ascending: all that is ever read of the logits at a choice."""
    legal: torch.Tensor
    """(M, C) boolean: which children there are."""
    step_choice: torch.Tensor
    """(V, D) the choices on a value's path."""
    step_child: torch.Tensor
    """(V, D) the child taken at each."""
    steps: torch.Tensor
    """(V, D) boolean: which steps there are; shorter paths fill the rest."""

    def leaf_of(self, value: float) -> int:
        """Index of a legal value among `values`."""
        return int(torch.argmin((self.values - value).abs()))

    def completion(self, values: Sequence[float]) -> list[int]:
        """The whole completion of an answer, as the tokenizer writes it."""
        return self.completion_of([self.leaf_of(value) for value in values])

    def completion_of(self, leaves: Sequence[int]) -> list[int]:
        """The same for values given as indices among `values`."""
        parts: list[int] = []
        for lead, leaf in zip(self.leads, leaves, strict=True):
            parts += lead
            parts += self.paths[leaf]
        return [*parts, *self.tail]

    def inside(self, leaf: int) -> list[int]:
        """The branches on a value's path, in order: the tokens of it that `add_branches` lays out."""
        path: list[int] = []
        for token in self.paths[leaf]:
            parent = path[-1] if path else None
            found = [at for at, branch in enumerate(self.branches) if branch[:2] == (token, parent)]
            if not found:
                break
            path += found
        return path


def add_branches(runs: list[Run], slot: int, trie: ScoreTrie) -> list[int]:
    """Append the branches of a score behind `runs[slot]`, each a run that nobody else sees; return, per choice, the
    run at whose last token it is read."""
    first = len(runs)
    where = {0: slot}
    for branch in trie.branches:
        if branch.choice is not None:
            where[branch.choice] = len(runs)
        runs.append(Run([branch.token], slot if branch.parent is None else first + branch.parent))
    return [where[choice] for choice in range(len(where))]


class Slot(NamedTuple):
    """A score whose distribution is read from a layout of runs."""

    runs: list[int]
    """Per choice, the run at whose last token it is read."""
    terminator_of: int
    """The key whose terminator ends the value here."""


def add_slots_alone(runs: list[Run], parent: int | None, trie: ScoreTrie) -> list[Slot]:
    """Append every score as the one key of an answer of its own, with its branches, behind `runs[parent]`; one slot
    per key. Their values end as the last key's does, with the answer."""
    assert trie.alone is not None
    slots = []
    for lead in trie.alone:
        runs.append(Run(lead, parent))
        slots.append(Slot(add_branches(runs, len(runs) - 1, trie), len(trie.leads) - 1))
    return slots


def build_trie(
    task: ScoresTask, tokenizer: StudentTokenizer, slots: Literal["answers", "request"] = "answers"
) -> ScoreTrie:
    """Build the trie of a task's scores from a tokenizer.

    Args:
        task: Keys and legal values.
        tokenizer: Writes them.
        slots: What the scores are conditioned on (recipe key `train.objective.slots`).

    Raises:
        ModelError: The tokenizer's boundaries depend on the value (a token joins part of a value with its neighbours),
            values have no single terminator, or two values have the same tokens.
    """
    factor = 10**task.decimals
    values = [step / factor for step in range(task.low * factor, task.high * factor + 1)]
    middle = dict.fromkeys(task.keys, task.round((task.low + task.high) / 2))
    leads: list[tuple[int, ...]] = []
    terminators: list[int] = []
    paths: list[tuple[int, ...]] = []
    for place, key in enumerate(task.keys):
        written = [tokenizer.completion_ids(_PROBE, task.render({**middle, key: value})) for value in values]
        front, back = _common(written, 1), _common(written, -1)
        own = [tuple(ids[front : len(ids) - back]) for ids in written]
        if back == 0 or len(set(own)) != len(values) or not all(own) or (paths and own != paths):
            raise ModelError(
                f"{tokenizer.folder}: expected the same tokens for a value behind every key; not so behind {key!r}; "
                "this tokenizer joins digits with what surrounds them"
            )
        paths, ids = own, written[0]
        before = sum(map(len, leads)) + place * len(paths[values.index(middle[key])])
        leads.append(tuple(ids[before:front]))
        terminators.append(ids[len(ids) - back])
        tail = tuple(ids[len(ids) - back :])
    inside = {token for path in paths for token in path}
    for key, end in zip(task.keys, terminators, strict=True):
        if end in inside:
            raise ModelError(
                f"{tokenizer.folder}: expected a token that ends the value behind {key!r} and is no part of any; got "
                f"{tokenizer.piece(end)!r}"
            )
    trie = _trie(values, leads, tail, paths, terminators)
    if slots == "request":
        tries = [build_trie(task.model_copy(update={"keys": (key,)}), tokenizer) for key in task.keys]
        if any((one.paths, one.tail) != (trie.paths, trie.tail) for one in tries):
            raise ModelError(
                f"{tokenizer.folder}: expected values written alike in answers of one key; got other tokens"
            )
        trie = trie._replace(alone=tuple(one.leads[0] for one in tries))
    expected = tokenizer.completion_ids(_PROBE, task.render(middle))
    if trie.completion([middle[key] for key in task.keys]) != expected:
        raise ModelError(f"{tokenizer.folder}: expected the answer's parts to make up the answer; got other tokens")
    return trie


def _trie(
    values: Sequence[float],
    leads: Sequence[tuple[int, ...]],
    tail: tuple[int, ...],
    paths: Sequence[tuple[int, ...]],
    terminators: Sequence[int],
) -> ScoreTrie:
    end = -1  # stands for the terminator, which differs between keys
    children: dict[tuple[int, ...], list[int]] = {(): []}
    for path in paths:
        for depth, token in enumerate([*path, end]):
            following = children.setdefault(path[:depth], [])
            if token not in following:
                following.append(token)
    choices = [prefix for prefix, following in children.items() if len(following) > 1]
    needed = {prefix[:depth] for prefix in choices for depth in range(1, len(prefix) + 1)}
    order = sorted(needed, key=lambda prefix: (len(prefix), prefix))
    branches = tuple(
        Branch(
            prefix[-1],
            order.index(prefix[:-1]) if len(prefix) > 1 else None,
            choices.index(prefix) if prefix in choices else None,
        )
        for prefix in order
    )
    width = max(len(children[prefix]) for prefix in choices)
    ids = torch.zeros(len(terminators), len(choices), width, dtype=torch.long)
    legal = torch.zeros(len(choices), width, dtype=torch.bool)
    for choice, prefix in enumerate(choices):
        for child, token in enumerate(children[prefix]):
            legal[choice, child] = True
            ids[:, choice, child] = torch.tensor(terminators) if token == end else token
    return ScoreTrie(
        torch.tensor(values),
        tuple(leads),
        tail,
        None,
        tuple(paths),
        branches,
        ids,
        ids.unique(),
        legal,
        *_steps(paths, children, choices),
    )


def _steps(
    paths: Sequence[tuple[int, ...]], children: Mapping[tuple[int, ...], list[int]], choices: list[tuple[int, ...]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    taken = []
    for path in paths:
        tokens = [*path, -1]
        taken.append(
            [
                (choices.index(path[:depth]), children[path[:depth]].index(token))
                for depth, token in enumerate(tokens)
                if len(children[path[:depth]]) > 1
            ]
        )
    depth = max(map(len, taken))
    steps = torch.tensor([[place < len(one) for place in range(depth)] for one in taken])
    filled = torch.tensor([[*one, *[(0, 0)] * (depth - len(one))] for one in taken])
    return filled[..., 0], filled[..., 1], steps


def _common(sequences: Sequence[Sequence[int]], direction: int) -> int:
    """Length of the longest common beginning (1) or end (-1) of sequences."""
    shortest = min(map(len, sequences))
    for length in range(shortest):
        place = length if direction == 1 else -1 - length
        if any(one[place] != sequences[0][place] for one in sequences):
            return length
    return shortest
