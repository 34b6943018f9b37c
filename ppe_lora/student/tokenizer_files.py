"""The tokenizer files of a model folder: which ones count, which one decides, and how they are copied."""

import re
import shutil
from pathlib import Path

from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Tokenizer

from ppe_lora.student.chat_template import pin_files

_FILES = re.compile(
    r"tekken\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json"
    r"|merges\.txt|chat_template\.(?:jinja|json)|[\w.-]+\.model(?:\.v\w+)?"
)
TOKENIZER_FILES = (
    "tekken.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What transformers and mistral-common read where it is there: one that appears changes the prompts."""
PROBE_TEXTS = (
    "雨上がりの夕方に合う、やわらかくて落ち着いた曲にしてほしい。",
    "「東京タワー」・ＡＢＣ１２３　全角とﾊﾝｶｸ\n😀 2024年12月31日",
    "Something warm and slow for a rainy evening, please -- it's late and I DON'T want drums!",
    'camelCase HTMLParser naïve ÉCOLE \t"quotes"\n\n  1234.5% {"a":42}',
)


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer files of a model folder worth keeping, sorted by name; without a `tokenizer.json` that disagrees
    with `tekken.json`."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and _FILES.fullmatch(file.name))
    if differing_text(folder) is not None:
        files = [file for file in files if file.name != "tokenizer.json"]
    return files


def save_tokenizer_files(source: Path, folder: Path) -> None:
    """Copy `tokenizer_files(source)` into `folder`, which is made when it is missing; dates in templates are pinned."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in tokenizer_files(source):
        shutil.copyfile(file, folder / file.name)
    pin_files(folder)


def mistral_file(folder: Path) -> Path | None:
    """The file that mistral-common reads: `tekken.json`, else the newest versioned SentencePiece file, else None."""
    if (folder / "tekken.json").is_file():
        return folder / "tekken.json"
    versioned = sorted(folder.glob("*.model.v[0-9]*"), key=lambda file: int(re.findall(r"\d+", file.suffix)[0]))
    return versioned[-1] if versioned else None


def differing_text(folder: Path) -> str | None:
    """The first probe text that `tokenizer.json` and `tekken.json` split differently, if both are there.

    Some Mistral repositories carry a `tokenizer.json` with the wrong splitting expression.
    """
    if not ((folder / "tekken.json").is_file() and (folder / "tokenizer.json").is_file()):
        return None
    tekken = Tekkenizer.from_file(folder / "tekken.json")
    other = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in PROBE_TEXTS:
        if tekken.encode(text, bos=False, eos=False) != other.encode(text, add_special_tokens=False).ids:
            return text
    return None
