"""Asking a teacher without making a data set: what it would cost, one shard's part, or by somebody else's machine."""

from collections.abc import Sequence
from pathlib import Path

from ppe_lora.corpus.asks import make_asks
from ppe_lora.corpus.build import generated_rows, make_reader, raw_dir
from ppe_lora.corpus.filters import filter_rows
from ppe_lora.corpus.teachers import Ask, LlmTeacher, Phrased, make_teacher
from ppe_lora.corpus.teachers.llm.batch import BatchAnswers, BatchFile, read_batch_results, write_batch_files
from ppe_lora.corpus.teachers.llm.fetch import Plan
from ppe_lora.corpus.teachers.llm.prompt import load_prompt
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, Shard, read_replies
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
    teacher, asks = _llm_teacher(recipe, folder, "--dry-run", skip_corrupt)
    return teacher.plan(asks, shard)


def plan_reading(recipe: Recipe, folder: Path, *, skip_corrupt: bool = False) -> Plan | None:
    """What reading the texts back would take beyond the raw readings there are; None where nobody reads them.

    Texts that are there count where the filters keep them. In place of each one that is still to be written stands a
    long example of its style, as if the filters dropped none. Arguments as for `plan_asking`.

    Raises:
        DataError: A raw file is corrupt.
    """
    source, reader = recipe.data.source, make_reader(recipe, folder, skip_corrupt=skip_corrupt)
    if reader is None or not isinstance(source, GenerateSource):
        return None
    asks = make_asks(recipe.task, source, recipe.seed)
    teacher = make_teacher(source.teacher, recipe.task, recipe.seed, raw_dir(folder), skip_corrupt=skip_corrupt)
    plain = [ask for ask, _ in asks]
    phrased = teacher.phrased(plain) if isinstance(teacher, LlmTeacher) else teacher.phrase(plain)
    known = [(ask, said) for ask, said in zip(asks, phrased, strict=True) if said]
    rows, _ = generated_rows([ask for ask, _ in known], [said for _, said in known], teacher.name)
    kept = filter_rows(rows, recipe.task, recipe.data.filters).kept
    unwritten = [
        (ask, Phrased(f"{_long_example(ask[0])} {ask[0].number}", ()))  # the number makes it a question of its own
        for ask, said in zip(asks, phrased, strict=True)
        if said is None
    ]
    stand_ins, _ = generated_rows([ask for ask, _ in unwritten], [said for _, said in unwritten], teacher.name)
    return reader.plan(kept + stand_ins)


def _long_example(ask: Ask) -> str:
    return max((example.request for example in load_prompt(ask.language).examples[ask.style]), key=len)


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
