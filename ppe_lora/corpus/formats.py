"""One row in the formats other tools read, and back: chat messages, instruction, prompt and completion.

Beside the conversation, `messages`, `instruction` and `prompt_completion` carry the row's other fields (id, language,
style, ...), so they come back whole. `finetuning_api` has the conversation only, as hosted services ask for; language
and context are read from its texts, the rest is lost.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from pydantic import ValidationError

from ppe_lora.cells import id_of, is_blank, shown, text_of
from ppe_lora.corpus.filters import detect_language
from ppe_lora.corpus.rows import Row, problems_of, row_id
from ppe_lora.tasks.scores import Language, Rejected, ScoresTask

Format = Literal["rows", "messages", "instruction", "prompt_completion", "finetuning_api", "hf"]
FORMATS: tuple[Format, ...] = get_args(Format)
MOST_BYTES = 32_768
"""Longest conversation for a hosted service, in bytes: a token is a byte at least, so none counts more tokens."""
_FIELDS = tuple(name for name in Row.model_fields if name not in ("request", "target"))


class _Conversation(NamedTuple):
    instruction: str | None
    user: str
    answer: str
    system: bool = False
    """Whether the instruction is a message of its own, which is never read as another one."""


def record_of(row: Row, task: ScoresTask, to: Format) -> dict[str, Any]:
    """The JSON object of a row in a format. `hf` has the fields of the row and its messages."""
    fields = row.model_dump(mode="json", exclude_none=True)
    if to == "rows":
        return fields
    answer = task.render(row.target)
    prompt = task.messages(row.request, row.language, row.context)
    messages = [*prompt, {"role": "assistant", "content": answer}]
    if to == "finetuning_api":
        return {"messages": messages}
    if to == "hf":
        return {"messages": messages, **fields}
    other = {name: fields[name] for name in _FIELDS if name in fields}
    instruction, user = (message["content"] for message in prompt)
    if to == "messages":
        return {"messages": messages, **other}
    if to == "instruction":
        return {"instruction": instruction, "input": user, "output": answer, **other}
    return {"prompt": f"{instruction}\n\n{user}\n", "completion": answer, **other}


def row_of(record: Mapping[str, Any], task: ScoresTask) -> Row:
    """The row of a record in any of the formats, told by its keys.

    Args:
        record: `request` and `target`; or `messages`; or `instruction`, `input` and `output`; or `prompt` and
            `completion`. With them any other field of a row; other keys are ignored.
        task: What an answer is.

    Raises:
        ValueError: There is no such conversation, its answer is no answer of the task, or a field is not as a row has
            it. The message names the key and the remedy.
    """
    fields = {name: record[name] for name in _FIELDS if record.get(name) not in (None, "")}
    if "id" in fields:
        try:
            fields["id"] = id_of(fields["id"])
        except ValueError as error:
            raise ValueError(f"id: {error}") from None
    if "request" in record and "target" in record:
        fields |= {"request": record["request"], "target": record["target"]}
    else:
        fields = _read(_conversation(record, task), fields, task)
    if isinstance(fields["target"], Mapping):
        fields["target"] = {key: task.without_noise(value) for key, value in fields["target"].items()}
        task.check_target(fields["target"])
    try:
        row = Row.model_validate_json(json.dumps({"id": "", **fields}))
    except ValidationError as error:
        raise ValueError("; ".join(problems_of(error))) from None
    if row.id:
        return row
    return row.model_copy(update={"id": row_id(row.request, row.target, row.language, row.context)})


def own_instruction(record: Mapping[str, Any], task: ScoresTask) -> str | None:
    """The instruction of a record of `instruction`, `input` and `output` that is not the task's; a row has no place
    for it."""
    instruction = record.get("instruction") if record.get("input") and "output" in record else None
    return instruction if isinstance(instruction, str) and instruction not in _instructions(task) else None


def hosted_problems(record: Mapping[str, Any]) -> list[str]:
    """What a hosted fine-tuning service would refuse in a record; nothing if it would take it.

    Checked: `messages` is the only key; roles and their order; the last message is the assistant's; contents are texts
    with something in them; the length.
    """
    extra = [key for key in record if key != "messages"]
    problems = [f"expected the key messages only; got {', '.join(extra)}, too"] if extra else []
    try:
        _check_messages(record.get("messages"))
    except ValueError as error:
        return [*problems, str(error)]
    count = content_bytes(record)
    if count > MOST_BYTES:
        problems.append(f"messages: expected at most {MOST_BYTES} bytes of text; got {count}; shorten the request")
    return problems


def content_bytes(record: Mapping[str, Any]) -> int:
    """UTF-8 bytes of all message contents of a record."""
    return sum(len(str(message["content"]).encode()) for message in record["messages"])


def _read(conversation: _Conversation, fields: Mapping[str, Any], task: ScoresTask) -> dict[str, Any]:
    """The fields of a row from its conversation; language and context only where they are not given."""
    named = fields.get("language") or _language(conversation, task)
    if conversation.system and conversation.instruction not in _instructions(task):
        raise ValueError(
            f"messages.0: expected the recipe's instruction or no system message; got "
            f"{shown(conversation.instruction)}, for which a row has no place; write it as task.instruction.{named} in "
            "the recipe, or delete it"
        )
    language = next((known for known in get_args(Language) if known == named), None)
    if language is None:
        raise ValueError(f"language: expected {' or '.join(get_args(Language))}; got {named}; give every record one")
    request, context = conversation.user, fields.get("context")
    if isinstance(context, Mapping):
        request = request.removesuffix(task.messages("", language, context)[-1]["content"])
    elif "language" not in fields:  # a conversation and nothing else
        request, context = task.read_user_text(request, language)
    answer = task.parse(conversation.answer)
    if isinstance(answer, Rejected):
        raise ValueError(
            f"the answer is none of the task: {answer.reason}: {answer.detail}; expected {', '.join(task.keys)} from "
            f"{task.low} to {task.high}; is it the recipe of these data?"
        )
    target = {key: task.round(value) for key, value in zip(task.keys, answer.values, strict=True)}
    return {**fields, "request": request, "target": target, "language": language, "context": context}


def _language(conversation: _Conversation, task: ScoresTask) -> str:
    """The language of the task's instruction, or of the request where the instruction is another."""
    return _instructions(task).get(conversation.instruction or "") or detect_language(conversation.user)


def _instructions(task: ScoresTask) -> dict[str, Language]:
    """The language of every wording of the task's instruction."""
    return {task.instruction_text(language): language for language in reversed(task.instruction)}


def _conversation(record: Mapping[str, Any], task: ScoresTask) -> _Conversation:
    if "messages" in record:
        messages = _check_messages(record["messages"])
        roles = [message["role"] for message in messages]
        if roles[-2:] != ["user", "assistant"] or len(roles) - (roles[0] == "system") != 2:
            raise ValueError(f"messages: expected one request and one answer; got {', '.join(roles)}")
        instruction = messages[0]["content"] if roles[0] == "system" else None
        return _Conversation(instruction, messages[-2]["content"], messages[-1]["content"], roles[0] == "system")
    if "output" in record:
        user = _text(record, "input") if record.get("input") else _text(record, "instruction")
        instruction = _text(record, "instruction") if record.get("input") else None
        return _Conversation(instruction, user, _text(record, "output"))
    if "prompt" in record:
        prompt, answer = _text(record, "prompt"), _text(record, "completion")
        for language in task.instruction:
            instruction = task.instruction_text(language)
            if prompt.startswith(f"{instruction}\n\n"):
                user = prompt.removeprefix(f"{instruction}\n\n")
                return _Conversation(instruction, user.removesuffix("\n"), answer)
        return _Conversation(None, prompt.strip(), answer)
    raise ValueError(
        "expected request and target, or messages, or instruction, input and output, or prompt and completion; "
        f"got {', '.join(record) or 'no key'}"
    )


def _text(record: Mapping[str, Any], key: str) -> str:
    return _shown_text(record.get(key), key)


def _shown_text(value: Any, where: str) -> str:
    if not isinstance(value, str) or is_blank(value):
        raise ValueError(f"{where}: expected a text; got {shown(value)}")
    try:
        return text_of(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages: expected a list of messages; got {messages!r}")
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        if not isinstance(message, Mapping):
            raise ValueError(f"{where}: expected an object with role and content; got {message!r}")
        role, content = message.get("role"), message.get("content")
        follows = messages[number - 1]["role"] if number else None
        expected = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
        if role not in expected[follows]:
            raise ValueError(f"{where}.role: expected {' or '.join(expected[follows])}; got {role!r}")
        _shown_text(content, f"{where}.content")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"messages: expected the assistant's answer last; got a message of the {messages[-1]['role']}")
    return messages
