"""The exact prompts a teacher gets, in both languages, for the music profile and for scores without examples.

A change here makes other questions of every data set: raw answers that were paid for no longer fit. If that is meant
and answers exist, write a new version of the prompt instead of changing this one.

To write the values anew: `python -m tests.golden.test_teacher_prompts --write`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ppe_lora.corpus.teachers import Ask
from ppe_lora.corpus.teachers.llm.prompt import PROMPT, Prompter
from ppe_lora.tasks.scores import ScoresTask

GOLDEN = Path(__file__).with_name("teacher_prompts.json")
PROFILE = ScoresTask(aliases={"warmth": {"ja": ("温かさ",), "en": ("coziness",)}})
PROFILE_TARGET = dict(zip(PROFILE.keys, (20, 80, 35, 90, 0, 100), strict=True))
EMOTION = ScoresTask(
    keys=("valence", "inner_tension"),
    low=1,
    high=5,
    decimals=1,
    instruction={"en": "Score the message from {low} to {high}. JSON with {keys}."},
)
CASES = {
    "profile ja": (PROFILE, Ask(3, PROFILE_TARGET, "ja", "polite", {"weather": "雨", "time": "夕方"})),
    "profile en": (PROFILE, Ask(4, PROFILE_TARGET, "en", "long", {"weather": "rain"})),
    "emotion ja": (EMOTION, Ask(0, {"valence": 1.0, "inner_tension": 4.6}, "ja", "short", None)),
    "emotion en": (EMOTION, Ask(1, {"valence": 3.0, "inner_tension": 5.0}, "en", "casual", None)),
}


def _record() -> dict[str, Any]:
    record: dict[str, Any] = {"version": PROMPT}
    for name, (task, ask) in CASES.items():
        brief = Prompter(task, seed=7).brief(ask)
        turns = [{"role": turn["role"], "content": turn["content"].split("\n")} for turn in brief.messages]
        record[name] = {"turns": turns, "scenario": list(brief.scenario), "seed": brief.seed}
    return record


def test_prompts_are_the_ones_that_raw_answers_belong_to() -> None:
    """A word changed in a prompt would silently ask, and pay for, a whole data set again."""
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == _record()


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.golden.test_teacher_prompts --write")
    GOLDEN.write_text(json.dumps(_record(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
