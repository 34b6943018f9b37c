"""The export stage of a run: merge the selected adapter, reload it without our code, compare, describe."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppe_lora.artifacts import is_current, read_json, read_jsonl
from ppe_lora.console import console
from ppe_lora.corpus.rows import read_rows, split_path, targets_matrix
from ppe_lora.errors import ModelError, RunError
from ppe_lora.evaluation.metrics import score
from ppe_lora.export.card import write_model_card
from ppe_lora.export.contract import contract_of, write_contract
from ppe_lora.export.merge import MergeReport, merge_adapter, merge_inputs
from ppe_lora.export.verify import reload_and_decode
from ppe_lora.recipe import Recipe
from ppe_lora.student.base import resolve_base
from ppe_lora.student.decode import answer_token_limit
from ppe_lora.student.evaluate import encode_split
from ppe_lora.student.processes import processes
from ppe_lora.student.tokenizer import StudentTokenizer, load_tokenizer

LOWEST_IDENTICAL_RATE = 0.9
"""Below this share of identical answers a float32 merge of an unquantized student is broken, not rounded."""


def export_run(recipe: Recipe, data_dir: Path, run_dir: Path) -> None:
    """Write `merged/` of a finished run, or find it up to date. Only the first process works.

    Raises:
        RunError: The run is not finished.
        ModelError: The merged model cannot be reloaded, or does not answer as the adapter did.
    """
    if not (run_dir / "manifest.json").is_file():
        raise RunError(f"{run_dir}: the training is not finished; run `ppe-lora train RECIPE --resume`")
    state = processes()
    if state.is_main_process:
        base, out = resolve_base(recipe.student), run_dir / "merged"
        if is_current(out, merge_inputs(base, run_dir / "best", recipe.export.dtype)):
            console.print(f"{out}: complete and unchanged")
        else:
            console.print(f"{out}: merging, then decoding {recipe.export.verify_rows} rows with plain transformers")
            tokenizer = load_tokenizer(base)

            def prove(folder: Path, report: MergeReport) -> Mapping[str, Any]:
                return _prove(folder, report, recipe, data_dir, run_dir, tokenizer)

            merge_adapter(
                base,
                run_dir / "best",
                out,
                recipe.export.dtype,
                save_tokenizer=tokenizer.save,
                finish=prove,
            )
            console.print(read_json(out / "manifest.json")["verdict"])
    state.wait_for_everyone()


def _prove(
    folder: Path, report: MergeReport, recipe: Recipe, data_dir: Path, run_dir: Path, tokenizer: StudentTokenizer
) -> Mapping[str, Any]:
    """Compare the merged model's answers with those the adapter gave on the same validation rows."""
    task = recipe.task
    run = read_json(run_dir / "manifest.json")
    rows = read_rows(split_path(data_dir, "valid"), task)
    split = encode_split(rows, task, tokenizer, recipe.student.max_tokens)
    count = min(recipe.export.verify_rows, len(split.rows))
    predictions = run_dir / "epochs" / f"{run['selected_epoch']:03d}" / "eval_predictions.jsonl"
    text_of = {row["id"]: row["text"] for row in read_jsonl(predictions)}
    adapter_texts = [text_of[row.id] for row in split.rows[:count]]
    new_ids = reload_and_decode(
        folder,
        [row.prompt_ids for row in split.encoded[:count]],
        end_ids=tokenizer.end_ids,
        pad_id=tokenizer.pad_id,
        max_new_tokens=answer_token_limit(task, tokenizer),
        batch_rows=recipe.evaluate.batch_rows,
    )
    merged_texts = [tokenizer.decode(ids) for ids in new_ids]
    identical = sum(one == other for one, other in zip(adapter_texts, merged_texts, strict=True))
    target_NK = targets_matrix(split.rows[:count], task)
    adapter, merged = (
        score([task.parse(text) for text in texts], target_NK, task) for texts in (adapter_texts, merged_texts)
    )
    verdict = _verdict(recipe, report, identical, count, adapter, merged)
    exact = recipe.student.quantization == "none" and report.dtype == "float32"
    if exact and identical < LOWEST_IDENTICAL_RATE * count:
        raise ModelError(f"{run_dir / 'merged'}: the merged model does not answer as the adapter did: {verdict}")
    test = run_dir / "test" / "eval_metrics.json"
    metrics = {"valid": read_json(run_dir / "best" / "eval_metrics.json")}
    metrics |= {"test": read_json(test)} if test.is_file() else {}
    facts = {
        "dataset_version": read_json(data_dir / "manifest.json")["dataset_version"],
        "selected epoch": run["selected_epoch"],
        "export": verdict,
        "packages": run["packages"],
    }
    calibration = run_dir / "calibration.json"
    if calibration.is_file():
        shutil.copy(calibration, folder / calibration.name)
    write_contract(folder, contract_of(recipe))
    write_model_card(folder, recipe, facts, metrics)
    return {"verdict": verdict, "identical": identical, "verified_rows": count, "adapter": adapter, "merged": merged}


def _verdict(
    recipe: Recipe,
    report: MergeReport,
    identical: int,
    count: int,
    adapter: Mapping[str, float],
    merged: Mapping[str, float],
) -> str:
    held = recipe.student.quantization
    trained = "the adapter" if held == "none" else f"the adapter on its {held} base"
    if "mse_norm" not in adapter or "mse_norm" not in merged:
        return f"merged in {report.dtype}: {identical} of {count} answers identical to those of {trained}"
    change = merged["mse_norm"] - adapter["mse_norm"]
    return (
        f"merged in {report.dtype}, reloaded by plain transformers: {identical} of {count} answers identical to those "
        f"of {trained}; mse_norm {adapter['mse_norm']:.5f} -> {merged['mse_norm']:.5f} ({change:+.5f})"
    )
