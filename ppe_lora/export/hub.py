"""Upload of a finished export to the Hugging Face Hub: never part of another step."""

import re
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ppe_lora.artifacts import read_json
from ppe_lora.errors import ModelError, RunError
from ppe_lora.export.parity import check_files


def push_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Upload an export folder, whose files must be those its certificate names, as one commit.

    Args:
        folder: `merged/`, `adapter/` or another export.
        repository: `owner/name`; it is made where it does not exist.
        private: Whether a new repository is private.

    Returns:
        Where it can be seen.

    Raises:
        ModelError: The files are not the certified ones, or an adapter names a folder of this machine as its base.
        RunError: The repository's name is not one, or the Hub cannot be reached or refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise RunError(f"{repository}: expected a Hub repository `owner/name`; got another form of name")
    check_files(folder)
    _check_base_is_public(folder)
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


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
