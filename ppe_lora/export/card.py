"""The model card: what an exported model is, what it learned from, and how good it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, Literal

from ppe_lora.artifacts import read_json, write_text
from ppe_lora.evaluation.metrics import renamed
from ppe_lora.evaluation.selection import metric_of, selected_by
from ppe_lora.export.public import file_name, is_public, public_base, public_recipe
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import GenerateSource, ImportSource
from ppe_lora.tasks.scores import Language

# As their repositories state it. Anything else is "other", and the card sends the reader to the base model's page.
_BASE_LICENSES = {
    "smollm2-135m": "apache-2.0",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "apache-2.0",
    "mistralai/Mistral-7B-Instruct-v0.3": "apache-2.0",
    "mistralai/Ministral-3-3B-Instruct-2512-BF16": "apache-2.0",
    "mistralai/Ministral-3-8B-Instruct-2512-BF16": "apache-2.0",
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": "apache-2.0",
}

_CARD = Template("""\
---
$front_matter
---

# $name

Reads a request in a person's own words and answers with $count numbers as compact JSON, and nothing else:

```json
$example
```

Each is from $low to $high. Fine-tuned with LoRA (rank $rank, alpha $alpha$variants) from `$base`, then $made.

## Use

$use

$instructions

## Quality

`mse_norm` is the mean squared error with the range mapped to 0-1; `train_mean_mse_norm` is that of always answering
with the training rows' mean. Served is the read-out `$read_out`.

$metrics

## Data

$data

## How it was made

$facts

<details><summary>The resolved recipe</summary>

```yaml
$recipe
```

</details>

## License

The merged weights contain those of `$base` and come under its license ($license). The license of the data may bind
them too.
""")


def write_model_card(
    folder: Path,
    recipe: Recipe,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    made: str = "merged",
) -> Path:
    """Write `README.md` of an exported model. It says nothing of this machine: it is what `push` publishes.

    Args:
        folder: The merged model's folder.
        recipe: The resolved recipe.
        facts: What else a reader wants to know, from the manifests: dataset_version, epoch, rows, packages, ...
        metrics: Split name (valid, test, valid (merged), ...) to metric name to value. A metric missing from a split
            is left empty.
        made: What became of base and adapter: "merged", or "merged and quantized ...".

    Returns:
        The card's path.
    """
    task = recipe.task
    middle = task.round((task.low + task.high) / 2)
    lora = recipe.student.lora
    base = public_base(recipe)
    text = _CARD.substitute(
        front_matter=front_matter(recipe, "finetune", "transformers"),
        name=recipe.name,
        count=len(task.keys),
        example=task.render(dict.fromkeys(task.keys, middle)),
        low=task.low,
        high=task.high,
        rank=lora.rank,
        alpha=f"{lora.alpha:g}",
        variants=(", rsLoRA" if lora.rslora else "") + (", DoRA" if lora.dora else ""),
        base=base,
        made=made,
        use=_use(recipe, metrics),
        read_out=recipe.evaluate.read_out,
        instructions="\n>\n".join(f"> {lang}: {task.instruction_text(lang)}" for lang in _languages(recipe)),
        metrics=_metrics_table(recipe, metrics),
        data=_describe_data(recipe),
        facts="\n".join(f"- {name}: {_inline(value)}" for name, value in facts.items()) or "- no facts recorded",
        recipe=public_recipe(recipe).rstrip(),
        license=_license(recipe.student.model),
    )
    path = folder / "README.md"
    write_text(path, text)
    return path


def run_metrics(run_dir: Path) -> dict[str, dict[str, float]]:
    """The metrics of a run's selected epoch (`valid`), and of its test rows (`test`) where they were decoded."""
    places = {"valid": run_dir / "best", "test": run_dir / "test"}
    files = {split: folder / "eval_metrics.json" for split, folder in places.items()}
    return {split: read_json(path) for split, path in files.items() if path.is_file()}


def weights_note(recipe: Recipe, metrics: Mapping[str, Mapping[str, float]]) -> str | None:
    """What the weights answer by themselves, beside what is served; None where the text is what is served, or nothing
    is known of it.

    Args:
        recipe: Names the served read-out.
        metrics: From `run_metrics`.
    """
    read_out = recipe.evaluate.read_out
    names = dict.fromkeys([metric_of(read_out), selected_by(read_out)])
    known = [
        (split, found, name)
        for split in ("test", "valid")
        for found in [metrics.get(split, {})]
        for name in names
        if {name, "mse_norm", "train_mean_mse_norm"} <= found.keys()
    ]
    if read_out == "greedy" or not known:
        return None
    split, found, name = known[0]
    text, trivial = found["mse_norm"], found["train_mean_mse_norm"]
    told = (
        f"What was measured and selected is the read-out `{read_out}`, which `ppe-lora serve` gives: {name} "
        f"{found[name]:.4f} on the {split} rows. Decoded by anything else, the same weights answer with greedy text: "
        f"mse_norm {text:.4f}, where always answering the train mean has {trivial:.4f}."
    )
    return f"{told} **Do not use the text: it is no better than not reading the request.**" if text >= trivial else told


def _use(recipe: Recipe, metrics: Mapping[str, Mapping[str, float]]) -> str:
    how = (
        "Send the instruction as the system message and the request as the user message, decode greedily, parse the "
        "JSON:"
    )
    if recipe.evaluate.read_out == "greedy":
        return how
    note = weights_note(recipe, metrics) or f"Served is the read-out `{recipe.evaluate.read_out}`: `ppe-lora serve`."
    return f"`ppe-lora serve FOLDER`, with this folder. {note}\n\nFor the text alone: {how[0].lower()}{how[1:]}"


def front_matter(recipe: Recipe, relation: Literal["finetune", "adapter"], library: str) -> str:
    """The YAML at the head of a card, by which the Hub finds and shows a model; no base that is only a folder here."""
    known = is_public(recipe.student.model)
    fields: dict[str, Any] = {
        **({"base_model": public_base(recipe), "base_model_relation": relation} if known else {}),
        "library_name": library,
        "pipeline_tag": "text-generation",
        "language": _languages(recipe),
        "license": _license(recipe.student.model),
        "tags": ["ppe-lora", "lora", "trl", "prompt-to-parameter"],
    }
    # JSON scalars and lists are YAML, quoted
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())


def _languages(recipe: Recipe) -> list[Language]:
    source = recipe.data.source
    if isinstance(source, GenerateSource):
        return sorted(language for language, weight in source.languages.items() if weight > 0)
    return [source.language]


def _license(model: str) -> str:
    return _BASE_LICENSES.get(model, "other")


def _describe_data(recipe: Recipe) -> str:
    source = recipe.data.source
    if isinstance(source, ImportSource):
        files = ", ".join(f"`{file_name(file.path)}`" for file in source.files.values())
        return f"`{recipe.data.name}`: imported from {files}."
    return (
        f"`{recipe.data.name}`: {source.rows} sampled vectors phrased by the {source.teacher.kind} teacher. The "
        "requests are machine-made; expect a wider spread of wording from people."
    )


def _metrics_table(recipe: Recipe, metrics: Mapping[str, Mapping[str, float]]) -> str:
    """The served read-out's errors first; names without a read-out are those of the greedy text."""
    read_out, known = recipe.evaluate.read_out, dict.fromkeys(name for split in metrics.values() for name in split)
    errors = ("mse_norm", "mae_raw", "r2", "within_tolerance@5")
    served = [
        name for name in (one if read_out == "greedy" else renamed(one, read_out) for one in errors) if name in known
    ]
    labels = dict.fromkeys((*errors, "mse_raw", "mse_norm_strict"), " (greedy text)")
    labels |= dict.fromkeys(served, " (served)")
    names = list(dict.fromkeys([*served, *known]))
    if not names:
        return "Not evaluated."
    lines = ["| metric | " + " | ".join(metrics) + " |", "|---|" + "---:|" * len(metrics)]
    for name in names:
        cells = [f"{split[name]:.4g}" if name in split else "" for split in metrics.values()]
        lines.append(f"| `{name}`{labels.get(name.partition('/')[0], '')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_inline(inner)}" for name, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
