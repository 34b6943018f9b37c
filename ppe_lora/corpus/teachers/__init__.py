"""Teachers: they phrase target vectors as requests."""

from ppe_lora.corpus.teachers.base import Ask, Phrased, Teacher
from ppe_lora.corpus.teachers.scripted import ScriptedTeacher
from ppe_lora.recipe.teachers import ScriptedTeacher as ScriptedSettings
from ppe_lora.tasks.scores import ScoresTask

__all__ = ["Ask", "Phrased", "Teacher", "make_teacher"]


def make_teacher(settings: ScriptedSettings, task: ScoresTask, seed: int) -> Teacher:
    """The teacher the recipe names.

    Raises:
        DataError: The teacher cannot phrase this task.
    """
    return ScriptedTeacher(task, settings.noise, seed)
