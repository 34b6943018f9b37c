"""What stands behind a name: `[NAME=]RUN`, `[NAME=]FOLDER@URL[#ENGINE_MODEL]`, or a base model to be asked untuned.

demo, checkpoints/demo                    a run: its merged weights, or else its selected adapter
checkpoints/demo/merged                   an exported folder; nothing else of the run is needed
base=smollm2-135m                         a model without tuning, asked the task of the first one
fast=checkpoints/demo@http://host:8000/v1#demo    the task of the folder, answered by vLLM, llama.cpp or Ollama

vLLM and llama.cpp give the read-out that the recipe names, by the folder's tokenizer and calibration; others give text.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ppe_lora.console import console
from ppe_lora.errors import ServeError
from ppe_lora.evaluation.runs import check_measured, check_training, find_run, no_run
from ppe_lora.export.contract import FILE_NAME, Contract, check_exported, contract_of, read_contract, uncorrected
from ppe_lora.export.parity import check_files
from ppe_lora.recipe.load import load_recipe
from ppe_lora.redaction import address_problem
from ppe_lora.serving.backend import Backend
from ppe_lora.serving.settings import Settings

if TYPE_CHECKING:
    from ppe_lora.student.tokenizer import StudentTokenizer


class Source(NamedTuple):
    """One model to register, as the command line names it."""

    name: str | None
    place: str
    url: str | None
    engine_model: str | None


def parse_source(text: str) -> Source:
    """Read `[NAME=]PLACE[@URL[#ENGINE_MODEL]]`.

    Raises:
        ServeError: Nothing stands where a place is expected, or the address is none or holds a password.
    """
    front, at, url = text.partition("@http")
    name, equals, place = front.rpartition("=")
    if not place or (equals and not name):
        raise ServeError(
            f"{text!r}: expected [NAME=]FOLDER or [NAME=]FOLDER@URL; got no {'name' if place else 'folder'}"
        )
    address, _, engine_model = f"http{url}".partition("#")
    if at and (problem := address_problem(address)):
        raise ServeError(f"{front}@URL: {problem}")
    return Source(name or None, place, address if at else None, engine_model or None)


class Named(NamedTuple):
    """A source under its name, with what it is asked."""

    source: Source
    contract: Contract | None
    """Its own; None for a base model."""
    asked: Contract
    """Its own, or that of the first model."""


def name_models(sources: Sequence[Source], settings: Settings) -> dict[str, Named]:
    """Everything that can be said about the models without loading them, which may take minutes.

    Raises:
        PpeError: The first is no folder with a task, two have the same name, or the default or the shadow model is
            none of them.
    """
    models: dict[str, Named] = {}
    first: Contract | None = None
    for named in sources:
        source = named._replace(place=str(find_run(named.place) or named.place))
        contract = _contract(Path(source.place))
        first = first or contract
        if first is None:
            whose = " as the first model, whose task the others are asked" if len(sources) > 1 else ""
            raise no_run(source.place, f"a run or an export{whose}", "neither")
        name = source.name or (contract.name if contract else Path(source.place).name)
        if name in models:
            raise ServeError(f"{name}: expected a name of its own for each model; got two; use NAME={source.place}")
        models[name] = Named(source, contract, contract or first)
    for option, role in (("--default", settings.default), ("--shadow", settings.shadow)):
        if role is not None and role not in models:
            raise ServeError(f"{option}: expected one of {', '.join(models)}; got {role!r}")
    if settings.shadow is not None and settings.shadow == (settings.default or next(iter(models))):
        raise ServeError(f"--shadow: expected another model than the default one; got {settings.shadow!r} for both")
    return models


def open_models(
    named: Mapping[str, Named], settings: Settings, observe: Callable[[str, int], None]
) -> dict[str, Backend]:
    """Load every model.

    Args:
        named: From `name_models`.
        settings: Batches, queues and timeouts.
        observe: Called with a model's name and the size of each batch it decodes.

    Raises:
        PpeError: A model cannot be used, or an engine does not answer.
    """
    return {name: _open(one, settings, partial(observe, name)) for name, one in named.items()}


def _contract(place: Path) -> Contract | None:
    """The contract of a run or of an exported folder; None for anything else."""
    if (exported := _exported(place)) is not None:
        return read_contract(exported)
    if (place / "config.yaml").is_file():
        return contract_of(load_recipe(place / "config.yaml"))
    return None


def _exported(place: Path) -> Path | None:
    """The folder of a place that has a contract: itself, or a run's merged weights."""
    return next((folder for folder in (place, place / "merged") if (folder / FILE_NAME).is_file()), None)


def _open(named: Named, settings: Settings, observe: Callable[[int], None]) -> Backend:
    source, contract, asked = named
    if source.url:
        return _open_engine(source, source.url, contract, asked, settings)

    from ppe_lora.serving import local

    place = Path(source.place)
    merged = _exported(place)
    if merged is not None and merged != place:
        check_exported(place, merged)
    _tell_if_uncorrected(contract, merged or place)
    if contract is None:
        loaded = local.load_untuned(source.place, asked)
    elif merged is not None:
        loaded = local.load_merged(merged, contract)
    else:
        loaded = local.load_run(place, load_recipe(place / "config.yaml"), contract)
    return local.LocalBackend(loaded, settings, observe)


def _tell_if_uncorrected(contract: Contract | None, folder: Path) -> None:
    if contract is not None and (told := uncorrected(contract, folder)):
        console.print(told)


def _open_engine(source: Source, url: str, contract: Contract | None, asked: Contract, settings: Settings) -> Backend:
    """A model behind an address, and a word on what it answers with where that is not what the recipe names."""
    from ppe_lora.serving.chat import ChatBackend, check_engine
    from ppe_lora.serving.engine import EngineBackend, find_engine

    model = source.engine_model or asked.name
    check_engine(url, model)
    engine = find_engine(url, model) if contract is not None else None
    if contract is None or engine is None:
        if asked.read_out != "greedy":
            console.print(
                f"{url}: {model} answers with greedy text, not the {asked.read_out} of {asked.name}: neither vLLM nor "
                "llama.cpp at an address that ends in /v1, or no folder with its tokenizer",
            )
        return ChatBackend(asked, url, model, settings)

    from ppe_lora.serving.reading import Reader, find_calibration

    place = Path(source.place)
    exported = _exported(place)
    if exported is not None:
        check_files(exported, weights=False)
        if exported != place:
            check_exported(place, exported)
    else:
        check_training(place)
        check_measured(place)
    folder = exported or place
    _tell_if_uncorrected(contract, folder)
    calibration = find_calibration(folder, contract.task, with_head=False)
    if calibration is not None and contract.read_out == "calibrated":
        own = find_calibration(folder, contract.task)
        if own is not None and own.uses_head:
            found = calibration.cv_mse_norm[calibration.kind], own.cv_mse_norm[own.kind]
            console.print(
                f"{url}: {model} answers without the head, which only our own decoder reads: mse_norm on validation "
                f"rows {found[0]:.4f}, with the head {found[1]:.4f}",
            )
    reader = Reader(contract, _tokenizer(place), calibration)
    return EngineBackend(contract.task, reader, engine, url, model, settings)


def _tokenizer(place: Path) -> "StudentTokenizer":
    from ppe_lora.student.base import resolve_trained_base
    from ppe_lora.student.tokenizer import load_tokenizer
    from ppe_lora.student.tokenizer_files import tokenizer_files

    exported = _exported(place)
    if exported is None:
        return load_tokenizer(resolve_trained_base(load_recipe(place / "config.yaml").student, place, weights=False))
    if not tokenizer_files(exported):
        raise ServeError(f"{place}: expected the model's tokenizer; got none; name the run, or its merged/ folder")
    return load_tokenizer(exported)
