"""Asking a teacher without making a data set: what it would cost, one shard's part, or by somebody else's machine."""

from collections.abc import Sequence
from pathlib import Path

from ppe_lora.corpus.asks import make_asks
from ppe_lora.corpus.build import raw_dir
from ppe_lora.corpus.teachers import Ask, LlmTeacher
from ppe_lora.corpus.teachers.llm.batch import BatchAnswers, BatchFile, read_batch_results, write_batch_files
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, Shard, read_replies
from ppe_lora.corpus.teachers.llm.teacher import Asked, Plan
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
    teacher, asks = _llm_teacher(recipe, folder, "--dry-run", skip_corrupt)
    return teacher.plan(asks, shard)


def ask_shard(recipe: Recipe, folder: Path, shard: Shard, *, skip_corrupt: bool = False) -> Asked:
    """Ask one shard's part of the questions, and make no data set. Arguments as for `plan_asking`.

    Raises:
        DataError: The source is no language model, or a raw file is corrupt.
        PpeError: As `LlmTeacher.phrase`.
    """
    teacher, asks = _llm_teacher(recipe, folder, "--shard", skip_corrupt)
    return teacher.ask_shard(asks, shard)


def write_questions(recipe: Recipe, folder: Path, out: Path) -> list[BatchFile]:
    """Write the questions that no raw reply answers as batch files in the OpenAI format, for any batch engine.

    Args:
        recipe: Names the teacher.
        folder: The data set's.
        out: New folder, or one without such files; old ones would be asked again along with the new ones.

    Raises:
        DataError: The source is no language model, a raw file is corrupt, or `out` has such files.
    """
    if next(out.glob("requests-*.jsonl"), None):
        raise DataError(f"{out}: expected no requests-*.jsonl; got earlier ones; name another folder or delete them")
    teacher, asks = _llm_teacher(recipe, folder, "data questions")
    answered = read_replies(raw_dir(folder))
    return write_batch_files([one for one in teacher.questions(asks) if one.key not in answered], out, "openai")


def read_answers(recipe: Recipe, folder: Path, results: Sequence[Path]) -> BatchAnswers:
    """Keep what a batch engine answered to the questions of a recipe as raw replies.

    Args:
        recipe: The one whose questions were written.
        folder: The data set's.
        results: Files in the OpenAI batch output format, whole or cut off.

    Returns:
        The new replies, and the questions that still have none.

    Raises:
        DataError: The source is no language model, a raw file is corrupt, or a file of results is missing.
        RunError: Another process appends to the raw replies.
    """
    missing = [str(path) for path in results if not path.is_file()]
    if missing:
        raise DataError(f"{', '.join(missing)}: expected a file of batch results; got none")
    teacher, asks = _llm_teacher(recipe, folder, "data answers")
    with RawLog(raw_dir(folder)) as log:
        answers = read_batch_results(results, [one for one in teacher.questions(asks) if one.key not in log.replies])
        log.write(answers.replies, "batch file")
    return answers


def _llm_teacher(recipe: Recipe, folder: Path, what: str, skip_corrupt: bool = False) -> tuple[LlmTeacher, list[Ask]]:
    source = recipe.data.source
    kind = source.teacher.kind if isinstance(source, GenerateSource) else source.kind
    if not isinstance(source, GenerateSource) or isinstance(source.teacher, ScriptedTeacher):
        raise DataError(f"{what}: expected a teacher that is a language model; got {kind}; `data build` needs no more")
    teacher = LlmTeacher(source.teacher, recipe.task, recipe.seed, raw_dir(folder), skip_corrupt=skip_corrupt)
    return teacher, [ask for ask, _ in make_asks(recipe.task, source, recipe.seed)]
