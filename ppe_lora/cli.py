"""The command line: thin, and without torch until a stage needs it."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ppe_lora import __version__
from ppe_lora.boundary import in_words, run_to_status
from ppe_lora.console import console
from ppe_lora.interruption import interruptible
from ppe_lora.proxies import spare_local_servers


class _Commands(TyperGroup):
    """Commands inside the boundary: typer itself would end without a word on Ctrl-C or a cut file."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with in_words(), interruptible("what was finished is kept, and the same command goes on from there"):
            returned = super().invoke(ctx)
            if console.lost is not None:
                raise console.lost
            return returned


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(no_args_is_help=True, help="Make and look at training data.")
app.add_typer(data_app, name="data")
track_app = typer.Typer(no_args_is_help=True, help="Show runs in W&B and Weave.")
app.add_typer(track_app, name="track")

RecipePath = Annotated[Path, typer.Argument(help="Recipe file, for example recipes/demo.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides such as train.epochs=5, read as YAML.", show_default=False)
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what an earlier run of that name left, and start over.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run from its newest checkpoint.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Prompt-to-parameter estimation: tune a small local model to answer requests with numbers."""


@data_app.command("build")
def data_build(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print requests, tokens, money and time still to spend; ask nothing.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Ask only this part of the questions, into a raw file of its own, and make no data set. A later build "
            "without --shard reads the raw files of all shards and asks only what is missing.",
            show_default=False,
        ),
    ] = None,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Pass over corrupt lines of raw files; ask their questions again.")
    ] = False,
) -> None:
    """Generate or import the rows, filter them, split them.

    A teacher's raw answers are kept in data/raw/: after an interruption, or with a larger budget, the same command
    continues.
    """
    from ppe_lora import commands, pipeline
    from ppe_lora.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if dry_run:
        commands.plan_data(loaded, shard, skip_corrupt=skip_corrupt)
    elif shard:
        pipeline.ask_teacher(loaded, shard, skip_corrupt=skip_corrupt)
    else:
        pipeline.build_data(loaded, skip_corrupt=skip_corrupt, wait=None)


@data_app.command("questions")
def data_questions(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for requests-000.jsonl, ...")] = Path("questions"),
) -> None:
    """Write what is still to ask as batch files for `vllm run-batch`, Ray or any engine of the OpenAI batch format."""
    from ppe_lora import commands
    from ppe_lora.recipe import load_recipe

    commands.write_questions(load_recipe(recipe, overrides or ()), out)


@data_app.command("answers")
def data_answers(
    recipe: RecipePath,
    results: Annotated[list[Path], typer.Option("--results", help="File of results; may be given several times.")],
    overrides: Overrides = None,
) -> None:
    """Keep such an engine's results as raw answers; `data build` then asks only what they lack."""
    from ppe_lora import commands
    from ppe_lora.recipe import load_recipe

    commands.read_answers(load_recipe(recipe, overrides or ()), results)


@data_app.command("stats")
def data_stats(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Describe the rows: stats.json, and a page to look at (data_report.html)."""
    from ppe_lora import commands
    from ppe_lora.recipe import load_recipe

    commands.describe_data(load_recipe(recipe, overrides or ()))


@data_app.command("show")
def data_show(
    recipe: RecipePath,
    overrides: Overrides = None,
    row: Annotated[int, typer.Option(help="Which row of the split, from 1.")] = 1,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "train",
) -> None:
    """Print a row's tokens as the student sees them, the supervised ones marked."""
    from ppe_lora import commands
    from ppe_lora.recipe import load_recipe

    commands.show_row(load_recipe(recipe, overrides or ()), split, row)


@data_app.command("convert")
def data_convert(
    source: Annotated[Path, typer.Argument(help="JSONL file, folder of split files, or Hugging Face data set.")],
    target: Annotated[Path, typer.Argument(help="New folder.")],
    to: Annotated[
        str, typer.Option(help="rows, messages, instruction, prompt_completion, finetuning_api or hf.")
    ] = "messages",
    recipe: Annotated[Path | None, typer.Option(help="Recipe whose task the answers are of; else the default.")] = None,
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="Leave out what is not valid.")] = False,
) -> None:
    """Rows to chat messages and other formats, or any of these back to rows (`--to rows`)."""
    from ppe_lora import commands
    from ppe_lora.recipe import load_recipe

    commands.convert_data(source, target, to, load_recipe(recipe) if recipe else None, skip_invalid)


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None, resume: Resume = False, fresh: Fresh = False) -> None:
    """Tune the student; every epoch is decoded and scored, the best one is selected."""
    from ppe_lora import pipeline
    from ppe_lora.recipe import load_recipe

    pipeline.train(load_recipe(recipe, overrides or ()), resume=resume, fresh=fresh)


@app.command()
def evaluate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Decode the test rows with the selected adapter."""
    from ppe_lora import pipeline
    from ppe_lora.recipe import load_recipe

    pipeline.evaluate(load_recipe(recipe, overrides or ()))


@app.command()
def baselines(
    recipe: RecipePath,
    overrides: Overrides = None,
    models: Annotated[
        bool,
        typer.Option(
            "--models",
            help="Also the base model untuned, and plain SFT, which is trained for it; the report shows them then.",
        ),
    ] = False,
) -> None:
    """Say what other predictors get on the test rows."""
    from ppe_lora import commands
    from ppe_lora.recipe import load_recipe

    commands.baselines(load_recipe(recipe, overrides or ()), models=models)


@app.command()
def export(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Merge the selected adapter into plain weights and prove that they answer the same; quantize them if wanted."""
    from ppe_lora import pipeline
    from ppe_lora.recipe import load_recipe

    pipeline.export(load_recipe(recipe, overrides or ()))


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run's name or folder, for example demo, or its recipe file.")],
    overrides: Overrides = None,
) -> None:
    """Write report.html and summary.md of a run: is it better, by how much, how sure is that, where is it wrong."""
    from ppe_lora import pipeline

    pipeline.report(run, overrides or ())


@app.command()
def prove(
    recipe: RecipePath,
    export: Annotated[str, typer.Argument(help="merged or adapter (served by vLLM), gguf (by llama.cpp), or onnx.")],
    overrides: Overrides = None,
    url: Annotated[
        str | None, typer.Option(help="The running server, such as http://127.0.0.1:8000; onnx runs in Node instead.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The name it serves the model by; else the start script's.")] = None,
) -> None:
    """Ask a served export the requests of its certificate, and enter there how it answers."""
    from ppe_lora import commands
    from ppe_lora.recipe import load_recipe

    commands.prove(load_recipe(recipe, overrides or ()), export, url, model)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="An export, for example checkpoints/demo/merged.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub.", metavar="OWNER/NAME")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a new repository.")] = False,
) -> None:
    """Upload an export whose files are those that were proven; HF_TOKEN says who you are."""
    from ppe_lora import commands

    commands.push(folder, repository, private=not public)


@app.command()
def run(recipe: RecipePath, overrides: Overrides = None, fresh: Fresh = False) -> None:
    """All stages: data, train, evaluate, export, report. What is complete and unchanged is skipped."""
    from ppe_lora import pipeline
    from ppe_lora.recipe import load_recipe

    pipeline.run(load_recipe(recipe, overrides or ()), fresh=fresh)


@app.command()
def serve(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A run's name or folder, or an exported folder.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="A further model: another run, a base model without tuning (base=smollm2-135m), or a folder whose "
            "answers come from vLLM, llama.cpp or Ollama (fast=FOLDER@http://host:8000/v1#model). Repeatable.",
            show_default=False,
        ),
    ] = None,
    default: Annotated[str | None, typer.Option(help="Model for requests that name none; else the first.")] = None,
    shadow: Annotated[
        str | None, typer.Option(help="Model that also answers what the default model answers, for the log only.")
    ] = None,
    shadow_log: Annotated[Path, typer.Option(help="Where both answers go, with the request.")] = Path("shadow.jsonl"),
    trace: Annotated[
        str | None,
        typer.Option(metavar="ENTITY/PROJECT", help="Weave project that gets a trace of every answered request."),
    ] = None,
    trace_dir: Annotated[
        Path, typer.Option(help="Where traces wait until they are sent, with the requests as people wrote them.")
    ] = Path("served_traces"),
    host: Annotated[
        str, typer.Option(help="Any but this machine's own needs an API key in PPE_LORA_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    batch_rows: Annotated[int, typer.Option(min=1, help="Waiting requests that are decoded together.")] = 32,
    queue_rows: Annotated[int, typer.Option(min=1, help="Requests that may wait for a model; others get 503.")] = 256,
    answer_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request gets 504.")] = 30.0,
    drain: Annotated[float, typer.Option(min=0.1, help="Seconds for running requests after SIGTERM.")] = 30.0,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Limit of one client address; others get 429.", show_default=False)
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="A proxy in front, such as 127.0.0.1 or 10.0.0.0/8, whose X-Forwarded-For names the client; nobody "
            "else's is read. Repeatable.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Answer requests over HTTP, with a page to try it at /."""
    from ppe_lora import pipeline
    from ppe_lora.serving.settings import Settings

    settings = Settings(
        host=host,
        port=port,
        default=default,
        shadow=shadow,
        shadow_log=str(shadow_log),
        trace=trace,
        trace_dir=str(trace_dir),
        batch_rows=batch_rows,
        queue_rows=queue_rows,
        answer_timeout_s=answer_timeout,
        drain_s=drain,
        requests_per_minute=requests_per_minute,
        trusted_proxies=tuple(trusted_proxy or ()),
    )
    pipeline.serve([source, *(model or ())], settings)


@app.command()
def sweep(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of recipes, for example recipes/rank_sweep.")],
    overrides: Overrides = None,
    gpus: Annotated[
        str, typer.Option(help="GPUs such as 0,1,3: one run at a time on each. Default: one run at a time.")
    ] = "",
    suffix: Annotated[
        str, typer.Option(help="Appended to the runs' names: a sweep with other overrides beside the first.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the leaderboard. Default: checkpoints/<name of DIR>.")
    ] = None,
) -> None:
    """Run every recipe of a folder, and say which one is better, and how sure that is: the leaderboard.

    Finished runs are skipped, unfinished ones resumed, and a failed one does not stop the others.
    """
    from ppe_lora import pipeline

    named = [gpu.strip() for gpu in gpus.split(",") if gpu.strip()]
    pipeline.sweep(folder, overrides or (), named, suffix, out)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A run's name or folder, an adapter's or epoch's folder, or `base`.")],
    second: Annotated[str, typer.Argument(help="The same; the question is whether this one is better.")],
) -> None:
    """Say whether the second is better than the first on the same test rows, by how much, how sure, and where.

    `base` is the other run's base model without any adapter.
    """
    from ppe_lora import pipeline

    pipeline.compare(first, second)


@track_app.command("sync")
def track_sync(
    run: Annotated[str, typer.Argument(help="A run's name or folder, for example demo.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Overrides, for example track.wandb.project=ppe for a run that tracked nothing.", show_default=False
        ),
    ] = None,
) -> None:
    """Send what W&B and Weave do not have yet of a run: tracked offline, interrupted, or not tracked at all."""
    from ppe_lora import pipeline

    pipeline.sync_tracking(run, overrides or ())


@app.command()
def estimate(
    recipe: RecipePath,
    overrides: Overrides = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Training rows; by default those of the data set, or what the recipe asks for."),
    ] = None,
) -> None:
    """Say what memory and time a recipe takes, here and on usual cards, before it runs."""
    from ppe_lora import commands
    from ppe_lora.recipe import load_recipe

    commands.estimate(load_recipe(recipe, overrides or ()), rows)


@app.command()
def doctor() -> None:
    """Say what this machine can do, and which shipped recipes fit it."""
    from ppe_lora import commands

    commands.doctor(Path("recipes"))


def main() -> None:
    """The console script: user errors print without a traceback and exit with status 2, a signal with 130."""
    # gradient_checkpointing has another name since transformers 5.2x; the old one works in all versions supported.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
    # An optional 4-bit kernel for CPUs, which has no gradient anyway.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    spare_local_servers()
    sys.exit(run_to_status(app))
