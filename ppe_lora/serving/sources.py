"""What stands behind a name: `[NAME=]FOLDER`, `[NAME=]FOLDER@URL[#ENGINE_MODEL]`, or a base model to be asked untuned.

checkpoints/demo                          a run: its merged weights, or else its selected adapter
checkpoints/demo/merged                   an exported folder; nothing else of the run is needed
base=smollm2-135m                         a model without tuning, asked the task of the first one
fast=checkpoints/demo@http://host:8000/v1#demo    the task of the folder, answered by vLLM, llama.cpp or Ollama
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ppe_lora.errors import ServeError
from ppe_lora.export.contract import FILE_NAME, Contract, contract_of, read_contract
from ppe_lora.recipe.load import load_recipe
from ppe_lora.serving.backend import Backend
from ppe_lora.serving.settings import Settings


class Source(NamedTuple):
    """One model to register, as the command line names it."""

    name: str | None
    place: str
    url: str | None
    engine_model: str | None


def parse_source(text: str) -> Source:
    """Read `[NAME=]PLACE[@URL[#ENGINE_MODEL]]`.

    Raises:
        ServeError: Nothing stands where a place is expected.
    """
    front, at, url = text.partition("@http")
    name, equals, place = front.rpartition("=")
    if not place or (equals and not name):
        raise ServeError(
            f"{text!r}: expected [NAME=]FOLDER or [NAME=]FOLDER@URL; got no {'name' if place else 'folder'}"
        )
    address, _, engine_model = f"http{url}".partition("#")
    return Source(name or None, place, address if at else None, engine_model or None)


def open_models(
    sources: Sequence[Source], settings: Settings, observe: Callable[[str, int], None]
) -> dict[str, Backend]:
    """Load every source; the first must have a task of its own.

    Args:
        sources: What to register.
        settings: Batches, queues and timeouts.
        observe: Called with a model's name and the size of each batch it decodes.

    Raises:
        PpeError: A folder is no model, a model cannot be used, an engine does not answer, or two have the same name.
    """
    models: dict[str, Backend] = {}
    first: Contract | None = None
    for source in sources:
        contract = _contract(Path(source.place))
        name = source.name or (contract.name if contract else Path(source.place).name)
        if name in models:
            raise ServeError(f"{name}: expected a name of its own for each model; got two; use NAME={source.place}")
        if contract is None and first is None:
            raise ServeError(
                f"{source.place}: expected a run or an exported folder ({FILE_NAME} in it), whose task the others are "
                "asked; got neither; name one first"
            )
        first = first or contract
        assert first is not None
        models[name] = _open(source, contract, first, settings, partial(observe, name))
    return models


def _contract(place: Path) -> Contract | None:
    """The contract of a run or of an exported folder; None for anything else."""
    if (place / FILE_NAME).is_file():
        return read_contract(place)
    if (place / "merged" / FILE_NAME).is_file():
        return read_contract(place / "merged")
    if (place / "config.yaml").is_file():
        return contract_of(load_recipe(place / "config.yaml"))
    return None


def _open(
    source: Source, contract: Contract | None, first: Contract, settings: Settings, observe: Callable[[int], None]
) -> Backend:
    if source.url:
        from ppe_lora.serving.engine import EngineBackend, check_engine

        asked = contract or first
        model = source.engine_model or asked.name
        check_engine(source.url, model)
        return EngineBackend(asked, source.url, model, settings)

    from ppe_lora.serving import local

    place = Path(source.place)
    merged = next((folder for folder in (place, place / "merged") if (folder / FILE_NAME).is_file()), None)
    if merged is not None and contract is not None:
        loaded = local.load_merged(merged, contract)
    elif contract is not None:
        loaded = local.load_run(place, load_recipe(place / "config.yaml"), contract)
    else:
        loaded = local.load_untuned(source.place, first)
    return local.LocalBackend(loaded, settings, observe)
