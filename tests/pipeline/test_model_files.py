"""Files beside the weights serve readers of either kind, and give the ids the student was trained on."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.export.model_files import write_config, write_generation_config, write_tokenizer
from ppe_lora.recipe.schema import Student
from ppe_lora.student.base import resolve_base
from ppe_lora.student.tokenizer import MistralStudentTokenizer, load_tokenizer
from ppe_lora.student.tokenizer_files import PROBE_TEXTS
from ppe_lora.tasks.scores import ScoresTask
from tests.tiny import tiny_llama, tiny_mistral, tiny_mistral3

TASK = ScoresTask()
CONVERSATIONS = [
    TASK.messages("雨上がりの夕方に合う、やわらかくて落ち着いた曲にしてほしい。", "ja"),
    TASK.messages("Something warm -- it's late,\nand I DON'T want drums! 😀", "en", {"weather": "rain"}),
    *(TASK.messages(text, "en") for text in PROBE_TEXTS),
]
CONTROL = TASK.messages("[INST] no instruction [/INST]", "en")


@pytest.mark.parametrize("kind", ["v3", "v7", "tekken"])
def test_engines_of_either_kind_see_the_students_ids(tmp_path: Path, kind: str) -> None:
    """A Hugging Face tokenizer.json with other ids serves another model, and says nothing."""
    student = load_tokenizer(tiny_mistral(tmp_path / "base", kind))
    folder = tmp_path / "merged"
    write_tokenizer(student, folder, CONVERSATIONS)
    write_config(tmp_path / "base", folder, None)
    reloaded = load_tokenizer(folder)
    assert isinstance(reloaded, MistralStudentTokenizer)
    assert read_json(folder / "tokenizer_config.json")["tokenizer_class"] != "TokenizersBackend"
    plain = AutoTokenizer.from_pretrained(folder, mistral_format=False)
    for messages in CONVERSATIONS:
        ids = plain.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert list(ids) == student.prompt_ids(messages) == reloaded.prompt_ids(messages)


def test_a_wrong_tokenizer_json_of_the_base_is_replaced(tmp_path: Path) -> None:
    """Some Mistral repositories carry one with the wrong splitting expression."""
    base = tiny_mistral(tmp_path / "base")
    student = load_tokenizer(base)
    right = tmp_path / "right"
    write_tokenizer(student, right, CONVERSATIONS)
    content = read_json(right / "tokenizer.json")
    content["model"]["merges"] = content["model"]["merges"][:8000]
    write_json(base / "tokenizer.json", content)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(right / name, base)
    folder = tmp_path / "merged"
    write_tokenizer(load_tokenizer(base), folder, CONVERSATIONS)
    assert read_json(folder / "tokenizer.json") == read_json(right / "tokenizer.json")


def test_a_tokenizer_that_cannot_be_expressed_is_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`[INST]` in a request is plain text to mistral-common, and a control token to any chat template."""
    student = load_tokenizer(tiny_mistral(tmp_path / "base"))
    folder = tmp_path / "merged"
    write_tokenizer(student, folder, [CONTROL])
    assert {path.name for path in folder.iterdir()} == {"tokenizer.model", "tokenizer.model.v3"}
    assert "it would not give the ids of tokenizer.model.v3" in caplog.text


@pytest.mark.parametrize("make", [tiny_mistral, tiny_llama, tiny_mistral3], ids=["mistral", "llama", "mistral3"])
def test_configuration_for_older_readers_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make
) -> None:
    """Without `rope_theta` and `rope_scaling` an older reader takes its own defaults and answers nonsense."""
    monkeypatch.setenv("PPE_LORA_CACHE", str(tmp_path / "cache"))
    base = resolve_base(Student(model=str(make(tmp_path / "base"))))
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    folder = tmp_path / "merged"
    model.save_pretrained(folder)
    write_config(base, folder, None)
    written = read_json(folder / "config.json")
    rope = written["rope_parameters"]
    assert written["rope_theta"] == rope["rope_theta"]
    if rope["rope_type"] == "default":
        assert "rope_scaling" not in written
    else:
        assert written["rope_scaling"] == {name: rope[name] for name in rope if name != "rope_theta"}
    assert AutoConfig.from_pretrained(folder).rope_parameters == AutoConfig.from_pretrained(base).rope_parameters
    ids = torch.arange(10, 200)[None]
    with torch.no_grad():
        assert torch.equal(
            AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits, model(input_ids=ids).logits
        )


def test_generation_settings_are_greedy_and_long_enough(tmp_path: Path) -> None:
    """`generate` stops after 20 tokens by default, in the middle of an answer; a base's temperature makes it a dice."""
    base = tiny_llama(tmp_path / "base")
    write_json(base / "generation_config.json", {"temperature": 0.3, "do_sample": True, "bos_token_id": 1})
    write_generation_config(base, load_tokenizer(base), 46)
    assert read_json(base / "generation_config.json") == {
        "bos_token_id": 1,
        "do_sample": False,
        "eos_token_id": [258],
        "pad_token_id": 256,
        "max_new_tokens": 46,
    }
