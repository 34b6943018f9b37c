"""Upload of a finished export to the Hugging Face Hub: never part of another step."""

import re
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ppe_lora import network
from ppe_lora.artifacts import read_json
from ppe_lora.console import console
from ppe_lora.errors import ModelError, RunError
from ppe_lora.export.parity import asked, check_files

_PLACE = re.compile(r"(?<![\w./:])(?:/[\w.~-]+){2,}")
"""An absolute path."""


def push_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Upload an export folder, whose files must be those its certificate names, as one commit.

    Args:
        folder: `merged/`, `adapter/` or another export.
        repository: `owner/name`; it is made where it does not exist.
        private: Whether a new repository is private.

    Returns:
        Where it can be seen.

    Raises:
        ModelError: The files are not the certified ones, or they name folders of this machine.
        NetworkError: The token, or the environment's proxy or certificates, cannot be used.
        RunError: The repository's name is not one, or the Hub cannot be reached or refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise RunError(f"{repository}: expected a Hub repository `owner/name`; got another form of name")
    network.check_environment(constants.ENDPOINT)
    network.read_key("HF_TOKEN", constants.ENDPOINT)
    check_files(folder)
    _check_base_is_public(folder)
    _check_no_places(folder)
    _say_what_goes(folder, repository)
    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message=f"Upload {folder.name}", ignore_patterns=[".*"]
        )
    except HfHubHTTPError as error:
        raise RunError(
            f"{repository}: expected the Hub to accept the upload; got {_first_line(error)}; set HF_TOKEN to a token "
            "that may write there"
        ) from error
    except HFValidationError as error:
        raise RunError(f"{repository}: expected a Hub repository `owner/name`; got {_first_line(error)}") from error
    except (OfflineModeIsEnabled, httpx2.HTTPError, OSError, RuntimeError) as error:
        raise RunError(
            f"{repository}: expected a reachable Hub; got {_first_line(error)}; nothing was published: upload where "
            "there is a network, with HF_HUB_OFFLINE unset"
        ) from error
    return str(made)


def _check_base_is_public(folder: Path) -> None:
    config = folder / "adapter_config.json"
    base = read_json(config)["base_model_name_or_path"] if config.is_file() else ""
    if Path(base).is_absolute():
        raise ModelError(
            f"{config}: expected the Hub repository of the base model; got a folder of this machine, {base}, which "
            "nobody else can load; push the merged model, or name the base as the others will find it"
        )


def _check_no_places(folder: Path) -> None:
    """Cards of earlier versions named folders; what is published can be read by anyone."""
    for path in (folder / name for name in ("README.md", "manifest.json", "client.json")):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = next((place for place in _PLACE.findall(text) if Path(place).exists()), None)
        if found is not None:
            raise ModelError(
                f"{path}: expected nothing of this machine in what is published; got the place {found}; export again "
                "with `ppe-lora export RECIPE`"
            )


def _say_what_goes(folder: Path, repository: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    size = sum(path.stat().st_size for path in files)
    names = ", ".join(path.relative_to(folder).as_posix() for path in files)
    console.print(f"{repository}: uploading {len(files)} files, {size / 1e6:,.1f} MB: {names}")
    if requests := len(asked(folder)):
        console.print(
            f"{repository}: with them go {requests:,} requests of validation rows and their answers, as people wrote "
            "them (parity.json)",
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
