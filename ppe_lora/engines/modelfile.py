"""Ollama's Modelfile, whose TEMPLATE renders the prompt that the student was trained on, byte for byte.

A template of two fields and fixed text, for the one turn that there is. Ollama's own templates for the same models
differ from the training prompt (a space, the place of the system message), and the model then answers worse without
any error. Ollama reads special tokens in the rendered text as what they are, and puts the token that begins every text
in front by itself; so the template leaves that one out.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ppe_lora.errors import ModelError
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.tokenizer_files import PROBE_TEXTS

_SYSTEM, _USER = "SYSTEMTEXT", "USERTEXT"
_QUOTES = '"""'


class PromptTemplate(NamedTuple):
    """The fixed text of a prompt around the instruction and the request."""

    before: str
    between: str
    behind: str

    def render(self, system: str, user: str) -> str:
        """The prompt of an instruction and a request."""
        return f"{self.before}{system}{self.between}{user}{self.behind}"


def prompt_template(tokenizer: StudentTokenizer) -> PromptTemplate:
    """The template of a tokenizer's prompts, without the token that begins every text.

    Raises:
        ModelError: Its prompts are not fixed text around the instruction and the request.
    """
    text = _text(tokenizer, _SYSTEM, _USER)
    before, _, rest = text.partition(_SYSTEM)
    between, _, behind = rest.partition(_USER)
    template = PromptTemplate(before, between, behind)
    for system in PROBE_TEXTS:
        for user in PROBE_TEXTS:
            expected = _text(tokenizer, system.strip(), user.strip())
            if template.render(system.strip(), user.strip()) != expected:
                raise ModelError(
                    f"{tokenizer.folder}: expected prompts of fixed text around instruction and request; got "
                    f"{expected!r}; no Modelfile can be made for it"
                )
    return template


def write_modelfile(
    weights: str, template: PromptTemplate, instructions: Mapping[str, str], stop: Sequence[str], max_tokens: int
) -> str:
    """The text of a Modelfile.

    Args:
        weights: File name of the GGUF beside it.
        template: From `prompt_template`.
        instructions: By language; the first one is the SYSTEM of requests that bring none.
        stop: Texts of the tokens that end an answer.
        max_tokens: Tokens after which an answer is cut.

    Raises:
        ModelError: An instruction or the template contains the quotes of a Modelfile.
    """
    (language, instruction), *others = instructions.items()
    rendered = template.render("{{ .System }}", "{{ .Prompt }}")
    for text in (rendered, instruction):
        if _QUOTES in text:
            raise ModelError(f"Modelfile: expected no {_QUOTES}; got {text[:80]!r}; change task.instruction")
    notes = [f"# For requests in {other!r} send this as the system message: {text}" for other, text in others]
    return "\n".join(
        [
            "# ollama create NAME -f Modelfile",
            f"# The system message is the instruction in {language!r}, word for word as in training.",
            *notes,
            f"FROM ./{weights}",
            f"TEMPLATE {_QUOTES}{rendered}{_QUOTES}",
            f"SYSTEM {_QUOTES}{instruction}{_QUOTES}",
            *(f'PARAMETER stop "{text}"' for text in stop),
            "PARAMETER temperature 0",
            f"PARAMETER num_predict {max_tokens}",
            "",
        ]
    )


def _text(tokenizer: StudentTokenizer, system: str, user: str) -> str:
    ids = tokenizer.prompt_ids([{"role": "system", "content": system}, {"role": "user", "content": user}])
    return tokenizer.text(ids[1:] if tokenizer.begin_id is not None and ids[0] == tokenizer.begin_id else ids)
