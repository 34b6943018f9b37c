"""Teachers: they phrase target vectors as requests."""

from pathlib import Path

from ppe_lora.corpus.sampling import check_spread
from ppe_lora.corpus.teachers.base import Ask, Phrased, Teacher
from ppe_lora.corpus.teachers.llm.reader import Reader
from ppe_lora.corpus.teachers.llm.teacher import LlmTeacher
from ppe_lora.corpus.teachers.scripted import ScriptedTeacher
from ppe_lora.recipe.teachers import ScriptedTeacher as ScriptedSettings
from ppe_lora.recipe.teachers import Teacher as Settings
from ppe_lora.tasks.scores import ScoresTask

__all__ = ["Ask", "LlmTeacher", "Phrased", "Reader", "Teacher", "make_teacher"]


def make_teacher(
    settings: Settings, task: ScoresTask, seed: int, raw_dir: Path, *, skip_corrupt: bool = False
) -> Teacher:
    """The teacher the recipe names.

    Args:
        settings: The recipe's section.
        task: Whose scores the requests imply.
        seed: The recipe's seed.
        raw_dir: Where a language model's replies are kept.
        skip_corrupt: Pass over corrupt lines there.

    Raises:
        DataError: The teacher cannot phrase this task, or misreads its scores beyond recognition.
    """
    if isinstance(settings, ScriptedSettings):
        check_spread("data.source.teacher.noise", settings.noise, task)
        return ScriptedTeacher(task, settings.noise, seed)
    return LlmTeacher(settings, task, seed, raw_dir, skip_corrupt=skip_corrupt)
