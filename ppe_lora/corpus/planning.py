"""Asking a teacher without making a data set: what it would cost, and one shard's part of the questions."""

from pathlib import Path

from ppe_lora.corpus.asks import make_asks
from ppe_lora.corpus.build import raw_dir
from ppe_lora.corpus.teachers import Ask, LlmTeacher
from ppe_lora.corpus.teachers.llm.fetch import Plan
from ppe_lora.corpus.teachers.llm.raw_log import Shard
from ppe_lora.corpus.teachers.llm.teacher import Asked
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import GenerateSource, Recipe
from ppe_lora.recipe.teachers import ScriptedTeacher


def parse_shard(text: str) -> Shard:
    """A shard as people write it.

    Raises:
        DataError: It is not of the form i/n with 1 <= i <= n.

    Example:
        >>> parse_shard("2/4")
        Shard(number=2, of=4)
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise DataError(f"--shard: expected i/n, from 1/n to n/n, such as 1/4; got {text}")
    return Shard(int(number), int(count))


def plan_asking(recipe: Recipe, folder: Path, shard: Shard | None = None, *, skip_corrupt: bool = False) -> Plan | None:
    """What asking would take beyond the raw replies there are; None where no language model is asked at all.

    Args:
        recipe: Names the teacher.
        folder: The data set's.
        shard: Only this part of the questions.
        skip_corrupt: Pass over corrupt lines of the raw replies.

    Raises:
        DataError: A raw file is corrupt.
    """
    source = recipe.data.source
    if not isinstance(source, GenerateSource) or isinstance(source.teacher, ScriptedTeacher):
        return None
    teacher, asks = _llm_teacher(recipe, folder, skip_corrupt)
    return teacher.plan(asks, shard)


def ask_shard(recipe: Recipe, folder: Path, shard: Shard, *, skip_corrupt: bool = False) -> Asked:
    """Ask one shard's part of the questions, and make no data set. Arguments as for `plan_asking`.

    Raises:
        DataError: The source is no language model, or a raw file is corrupt.
        PpeError: As `LlmTeacher.phrase`.
    """
    teacher, asks = _llm_teacher(recipe, folder, skip_corrupt)
    return teacher.ask_shard(asks, shard)


def _llm_teacher(recipe: Recipe, folder: Path, skip_corrupt: bool) -> tuple[LlmTeacher, list[Ask]]:
    source = recipe.data.source
    kind = source.teacher.kind if isinstance(source, GenerateSource) else source.kind
    if not isinstance(source, GenerateSource) or isinstance(source.teacher, ScriptedTeacher):
        raise DataError(f"--shard: expected a teacher that is a language model; got {kind}; build without --shard")
    teacher = LlmTeacher(source.teacher, recipe.task, recipe.seed, raw_dir(folder), skip_corrupt=skip_corrupt)
    return teacher, [ask for ask, _ in make_asks(recipe.task, source, recipe.seed)]
