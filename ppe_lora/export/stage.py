"""The export stage of a run: what a server needs, and the proof that it answers as the selected adapter did.

    merged/      base and adapter as plain weights, reloaded without our code
    adapter/     the adapter alone, for engines that put LoRA on a base at run time
    quantized/   the merged weights in 8 or 4 bits, where the recipe asks for them

Each has a model card and a parity certificate. What is complete and unchanged is not made again.
"""

import importlib.metadata
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ppe_lora.artifacts import hash_file, is_current, new_folder, read_json, write_manifest
from ppe_lora.console import console
from ppe_lora.corpus.rows import dataset_version, read_rows, split_path, targets_matrix
from ppe_lora.errors import ModelError
from ppe_lora.evaluation.metrics import score
from ppe_lora.evaluation.runs import check_measured
from ppe_lora.evaluation.selection import metric_of
from ppe_lora.evaluation.stored import check_made_from
from ppe_lora.export.adapter import write_adapter
from ppe_lora.export.answers import Answers, answer_rows, read_correction
from ppe_lora.export.card import run_metrics, write_model_card
from ppe_lora.export.contract import contract_of, uncorrected, write_contract
from ppe_lora.export.merge import MergeReport, merge_adapter, merge_inputs
from ppe_lora.export.model_files import write_generation_config, write_tokenizer
from ppe_lora.export.parity import (
    Reading,
    add_entry,
    asked,
    certified_files,
    compare,
    copy_certificate,
    told_difference,
    write_certificate,
)
from ppe_lora.export.quantize import CALIBRATION_ROWS, check_loss, write_quantized
from ppe_lora.export.verify import reload_and_decode
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import Student
from ppe_lora.student.base import resolve_trained_base
from ppe_lora.student.decode import answer_token_limit
from ppe_lora.student.evaluate import EncodedSplit, encode_for
from ppe_lora.student.head import FILE as HEAD_FILE
from ppe_lora.student.processes import processes
from ppe_lora.student.tokenizer import StudentTokenizer, load_tokenizer
from ppe_lora.student.tokenizer_files import PROBE_TEXTS, save_tokenizer_files
from ppe_lora.tasks.scores import ScoresTask

LOWEST_IDENTICAL_RATE = 0.9
"""Below this share of identical answers a float32 merge of an unquantized student is broken, not rounded."""
PARITY_ROWS = 20
"""Most requests of a certificate."""
MOST_OFF = 0.002
"""Largest difference of a score, as a share of the range, that a float32 merge may make where the text is the same."""
_FORMAT = 3  # of the exported folders; raise it when what is written into them changes


class _Run(NamedTuple):
    """A finished run and what its exports are made with."""

    recipe: Recipe
    data_dir: Path
    folder: Path
    base: Path
    tokenizer: StudentTokenizer
    device: torch.device

    @property
    def best(self) -> Path:
        return self.folder / "best"

    def rows(self, name: Literal["train", "valid"], count: int | None = None) -> EncodedSplit:
        """The first rows of a split, by default as many as prove an export."""
        rows = read_rows(split_path(self.data_dir, name), self.recipe.task)
        count = count or self.recipe.export.verify_rows
        split = encode_for(self.recipe, rows, self.tokenizer)
        return split._replace(rows=split.rows[:count], encoded=split.encoded[:count])

    def answers(self, student: Student, folder: Path, split: EncodedSplit, adapter: Path | None = None) -> Answers:
        correction = read_correction(self.recipe, self.folder)
        return answer_rows(student, folder, split, self.recipe, self.tokenizer, self.device, correction, adapter)


_Export = Callable[[_Run, Path, Mapping[str, Any]], str]
"""Writes a folder, given what its manifest says it was made from; returns a word on it for the console."""


def export_run(recipe: Recipe, data_dir: Path, run_dir: Path) -> None:
    """Write `merged/`, `adapter/` and `quantized/` of a finished run, or find them up to date. Only the first process
    works.

    Raises:
        RunError: The run is not finished, or is of another recipe or data set.
        FileError: Somebody has changed its files.
        ModelError: The base is no longer the one it was trained on, the merged model cannot be reloaded, or does not
            answer as the adapter did, or the quantized one loses more than the recipe allows.
    """
    check_made_from(recipe, data_dir, run_dir)
    check_measured(run_dir)
    state = processes()
    if state.is_main_process:
        if told := uncorrected(contract_of(recipe), run_dir):
            console.print(told)
        base = resolve_trained_base(recipe.student, run_dir)
        run = _Run(recipe, data_dir, run_dir, base, load_tokenizer(base), state.device)
        inputs = _inputs(run)
        wanted: dict[str, tuple[_Export, dict[str, Any]]] = {
            "merged": (_export_merged, {}),
            "adapter": (_export_adapter, {}),
        }
        if recipe.export.quantize != "none":
            judged_by = {"quantize": recipe.export.quantize, "max_loss": recipe.export.max_loss}
            wanted["quantized"] = (_export_quantized, judged_by | {"read_out": recipe.evaluate.read_out})
        for name, (export, settings) in wanted.items():
            out, made_from = run_dir / name, {**inputs, "export": name, **settings}
            if is_current(out, made_from):
                console.print(f"{out}: complete and unchanged")
            else:
                console.print(export(run, out, made_from))
    state.wait_for_everyone()


def _inputs(run: _Run) -> dict[str, Any]:
    reading = {
        name: hash_file(run.folder / name) if (run.folder / name).is_file() else None
        for name in ("calibration.json", HEAD_FILE)
    }
    return {**merge_inputs(run.base, run.best, run.recipe.export.dtype), "format": _FORMAT, **reading}


def _export_merged(run: _Run, out: Path, inputs: Mapping[str, Any]) -> str:
    task = run.recipe.task
    console.print(f"{out}: merging, then decoding {run.recipe.export.verify_rows} rows with plain transformers")

    def finish(folder: Path, report: MergeReport) -> Mapping[str, Any]:
        write_generation_config(folder, run.tokenizer, answer_token_limit(task, run.tokenizer))
        return _prove(run, folder, report)

    conversations = [task.messages(row.request, row.language, row.context) for row in run.rows("valid").rows]
    conversations += [task.messages(text, language) for language in task.instruction for text in PROBE_TEXTS]
    merge_adapter(
        run.base,
        run.best,
        out,
        run.recipe.export.dtype,
        inputs=inputs,
        save_tokenizer=lambda folder: write_tokenizer(run.tokenizer, folder, conversations),
        finish=finish,
    )
    return str(read_json(out / "manifest.json")["verdict"])


def _prove(run: _Run, folder: Path, report: MergeReport) -> Mapping[str, Any]:
    """Ask adapter, merged model and plain transformers the same rows; write card and certificate."""
    recipe, task, split = run.recipe, run.recipe.task, run.rows("valid")
    adapter = run.answers(recipe.student, run.base, split, run.best)
    merged = run.answers(recipe.student.model_copy(update={"quantization": "none"}), folder, split)
    new_ids = reload_and_decode(
        folder,
        [row.prompt_ids for row in split.encoded],
        end_ids=run.tokenizer.end_ids,
        pad_id=run.tokenizer.pad_id,
        max_new_tokens=answer_token_limit(task, run.tokenizer),
        batch_rows=recipe.evaluate.batch_rows,
    )
    plain = [Reading(run.tokenizer.decode(ids)) for ids in new_ids]
    # Read by plain transformers, so that nothing of ours makes them the adapter's; distributions are only ours to read.
    shown = [one._replace(text=other.text) for one, other in zip(merged.readings, plain, strict=True)]
    found = compare(adapter.readings, shown, task)
    verdict = _verdict(recipe, report, found, adapter.metrics, _judged_as_served(recipe, plain, merged.metrics, split))
    exact = recipe.student.quantization == "none" and report.dtype == "float32"
    if exact and not _is_equal(adapter.readings, shown, task):
        raise ModelError(f"{run.folder / 'merged'}: the merged model does not answer as the adapter did: {verdict}")
    _write_reading(run, folder)
    _write_card(run, folder, {"export": verdict}, {}, "merged")
    write_certificate(folder, split.rows[:PARITY_ROWS], adapter.readings[:PARITY_ROWS])
    version = importlib.metadata.version("transformers")
    add_entry(folder, task, f"merged in {report.dtype}, ppe_lora", merged.readings[:PARITY_ROWS])
    add_entry(folder, task, f"merged in {report.dtype}, transformers {version} generate", plain[:PARITY_ROWS])
    return {
        "verdict": verdict,
        "identical": found["identical"],
        "verified_rows": found["answers"],
        "largest_difference": found["largest_difference"],
        "adapter": adapter.metrics,
        "merged": merged.metrics,
        "files": certified_files(folder),
    }


def _export_adapter(run: _Run, out: Path, inputs: Mapping[str, Any]) -> str:
    with new_folder(out) as folder:
        write_adapter(run.recipe, run.base, run.folder, folder)
        _write_reading(run, folder)
        copy_certificate(run.folder / "merged", folder)
        write_manifest(folder, inputs, files=certified_files(folder))
    return f"{out}: the adapter alone, for {read_json(out / 'adapter_config.json')['base_model_name_or_path']}"


def _export_quantized(run: _Run, out: Path, inputs: Mapping[str, Any]) -> str:
    kind, merged, split = run.recipe.export.quantize, run.folder / "merged", run.rows("valid")
    if kind == "none":
        raise ValueError("expected a kind of quantization; got none")
    console.print(f"{out}: quantizing to {kind}, then decoding {len(split.rows)} rows")
    unquantized = run.recipe.student.model_copy(update={"quantization": "none"})
    with new_folder(out) as folder:
        rows = run.rows("train", CALIBRATION_ROWS).encoded if kind == "gptq" else []
        write_quantized(unquantized, kind, merged, folder, run.device, rows)
        save_tokenizer_files(merged, folder)
        shutil.copy(merged / "generation_config.json", folder)
        _write_reading(run, folder)
        answers = run.answers(unquantized, folder, split)
        before = read_json(merged / "manifest.json")["merged"]
        told = check_loss(run.recipe, before, answers.metrics)
        told += f", {told_difference(_beside_merged(merged, run.recipe.task, answers), run.recipe.evaluate.read_out)}"
        sizes = [sum(one.stat().st_size for one in made.glob("*.safetensors")) / 1e6 for made in (merged, folder)]
        verdict = f"{kind} weights of {sizes[1]:.0f} MB instead of {sizes[0]:.0f} MB: {told} on {len(split.rows)} rows"
        table = {f"merged, {len(split.rows)} valid rows": before, f"{kind}, the same rows": answers.metrics}
        _write_card(run, folder, {"quantization": verdict}, table, f"merged and quantized to {kind}")
        copy_certificate(merged, folder)
        add_entry(folder, run.recipe.task, f"quantized to {kind}, ppe_lora", answers.readings[:PARITY_ROWS])
        files = certified_files(folder)
        write_manifest(folder, inputs, files=files, verdict=verdict, merged=before, quantized=answers.metrics)
    return f"{out}: {verdict}"


def _beside_merged(merged: Path, task: ScoresTask, answers: Answers) -> dict[str, Any]:
    """The requests of the certificate, answered by other weights, against the adapter's answers."""
    references = [one.reference for one in asked(merged)]
    return compare(references, answers.readings[: len(references)], task)


def _write_reading(run: _Run, folder: Path) -> None:
    """What makes answers of weights: the task and its read-out, the calibration, and the head that it uses."""
    write_contract(folder, contract_of(run.recipe))
    for name in ("calibration.json", HEAD_FILE):
        if (run.folder / name).is_file():
            shutil.copy(run.folder / name, folder)


def _write_card(
    run: _Run, folder: Path, facts: Mapping[str, str], table: Mapping[str, Mapping[str, float]], made: str
) -> None:
    """Write the model card: the metrics of the run, and those in `table` beside them."""
    manifest = read_json(run.folder / "manifest.json")
    known = {
        "dataset_version": dataset_version(run.data_dir),
        "selected epoch": manifest["selected_epoch"],
        **facts,
        "packages": manifest["packages"],
    }
    write_model_card(folder, run.recipe, known, {**run_metrics(run.folder), **table}, made)


def _judged_as_served(
    recipe: Recipe, plain: Sequence[Reading], merged: Mapping[str, float], split: EncodedSplit
) -> Mapping[str, float]:
    """The metrics of what is served: of the text as plain transformers write it, or else of our own decoder's."""
    if recipe.evaluate.read_out != "greedy":
        return merged
    return score([recipe.task.parse(one.text) for one in plain], targets_matrix(split.rows, recipe.task), recipe.task)


def _is_equal(one: Sequence[Reading], other: Sequence[Reading], task: ScoresTask) -> bool:
    """Whether nearly all texts are identical, and on those rows every read-out differs by rounding only. Behind another
    text a score may well have another distribution, which depends on the scores before it."""
    same = [pair for pair in zip(one, other, strict=True) if pair[0].text == pair[1].text]
    if len(same) < LOWEST_IDENTICAL_RATE * len(one):
        return False
    off = compare([pair[0] for pair in same], [pair[1] for pair in same], task)["largest_difference"]
    return all(most <= MOST_OFF * task.span for by_key in off.values() for most in by_key.values())


def _verdict(
    recipe: Recipe,
    report: MergeReport,
    found: Mapping[str, Any],
    adapter: Mapping[str, float],
    merged: Mapping[str, float],
) -> str:
    """What the proof shows: of the text, and of the read-out that is served."""
    held, read_out = recipe.student.quantization, recipe.evaluate.read_out
    trained = "the adapter" if held == "none" else f"the adapter on its {held} base"
    texts = f"{found['identical']} of {found['answers']} greedy texts identical to those of {trained}"
    name = metric_of(read_out)
    if name not in adapter or name not in merged:
        return f"merged in {report.dtype}: {texts}; no served answer ({read_out}) was accepted"
    change = merged[name] - adapter[name]
    return (
        f"merged in {report.dtype}, reloaded by plain transformers: {texts}; served, {read_out}: mse_norm "
        f"{adapter[name]:.5f} -> {merged[name]:.5f} ({change:+.5f}), {told_difference(found, read_out)}"
    )
