"""The exact prompts by which texts are read back, in both languages, for the music profile and for other scores.

A change here makes other questions: readings that were paid for no longer fit. If that is meant and readings exist,
write a new version of the prompt instead of changing this one.

To write the values anew: `python -m tests.golden.test_reading_prompts --write`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ppe_lora.corpus.rows import Row
from ppe_lora.corpus.teachers import Reader
from ppe_lora.corpus.teachers.llm.reader import READING_PROMPT
from ppe_lora.recipe.teachers import MistralTeacher
from tests.golden.test_teacher_prompts import EMOTION, PROFILE, PROFILE_TARGET

GOLDEN = Path(__file__).with_name("reading_prompts.json")
SETTINGS = MistralTeacher(kind="mistral", model="m", temperature=0.0)
PROFILE_JA = Row(id="a", request="雨の夕方に、静かな弦の曲を", target=PROFILE_TARGET, language="ja",
                 context={"weather": "雨", "time": "夕方"})  # fmt: skip
PROFILE_EN = Row(id="b", request="Slow strings for a grey evening", target=PROFILE_TARGET, language="en")
EMOTION_EN = Row(
    id="c", request="leave me be", target={"valence": 1.5, "inner_tension": 4.0}, language="en", style="short"
)
CASES = {"profile ja": (PROFILE, PROFILE_JA), "profile en": (PROFILE, PROFILE_EN), "emotion en": (EMOTION, EMOTION_EN)}


def _record() -> dict[str, Any]:
    record: dict[str, Any] = {"version": READING_PROMPT}
    for name, (task, row) in CASES.items():
        model, messages, sampling, schema = Reader(SETTINGS, task, Path()).question(row)
        turns = [{"role": turn["role"], "content": turn["content"].split("\n")} for turn in messages]
        record[name] = {"model": model, "turns": turns, "sampling": sampling, "schema": schema}
    return record


def test_prompts_are_the_ones_that_raw_readings_belong_to() -> None:
    """A word changed in a prompt would silently ask, and pay for, every reading again."""
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == _record()


def test_the_reader_sees_nothing_of_the_target() -> None:
    """A reading that knows what was asked agrees with it, and finds nothing."""
    reader = Reader(SETTINGS, PROFILE, Path())
    other = PROFILE_JA.model_copy(
        update={"id": "z", "target": dict.fromkeys(PROFILE.keys, 50), "style": "long", "scenario": ("low_energy",)}
    )
    assert reader.question(other) == reader.question(PROFILE_JA)


def test_the_examples_answer_as_the_task_wants_it() -> None:
    """An example that our own parser refuses teaches the reader to be unreadable."""
    for task, row, examples in ((PROFILE, PROFILE_JA, 4), (PROFILE, PROFILE_EN, 4), (EMOTION, EMOTION_EN, 0)):
        turns = Reader(SETTINGS, task, Path()).question(row).messages
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        assert [task.render(dict(zip(task.keys, task.parse(text).values, strict=True))) for text in answers] == answers
        assert len(answers) == examples


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.golden.test_reading_prompts --write")
    GOLDEN.write_text(json.dumps(_record(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
