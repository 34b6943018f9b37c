"""The repository keeps its own promises: a fast command line, portable versions, recipes that load and compare."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.load import differing_keys

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
MISTRAL = [path for path in (ROOT / "recipes").glob("*.yaml") if "stral" in path.stem]
HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "wandb", "weave"}


def test_help_imports_no_torch() -> None:
    """One module that imports transformers at its top makes `--help` take ten seconds."""
    script = (
        "import sys\nfrom ppe_lora.cli import main\n"
        "sys.argv = ['ppe-lora', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert "run" in done.stdout


def test_constraints_are_public_versions_for_any_machine() -> None:
    """A `+cpu` build, a CUDA package or a local path in the file breaks the installation everywhere else."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    strange = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]
    assert strange == []
    assert "torch==2.13.0" in pins
    names = {line.partition("==")[0].lower().replace("_", "-") for line in pins}
    assert not [name for name in names if name.startswith(("nvidia-", "triton", "cuda-")) or name == "ppe-lora"]


def test_every_dependency_is_pinned() -> None:
    """An unpinned dependency makes tomorrow's fresh clone another program."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(dep for extra in project["optional-dependencies"].values() for dep in extra)]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    names = [re.split(r"[\[>=<; ]", dependency)[0].lower().replace("_", "-") for dependency in wanted]
    assert [name for name in names if name not in pinned] == []


def test_recipes_are_found() -> None:
    """An empty glob would make every test below pass."""
    assert len(RECIPES) >= 15
    assert len(MISTRAL) == 5


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_opens_with_what_needs_run_override(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))])
    found = re.findall(r"^#   (what|needs|run|override) +\S", header, flags=re.MULTILINE)
    assert found == ["what", "needs", "run", "override"]


@pytest.mark.parametrize("folder", ["rank_sweep", "rank_sweep_small"])
def test_rank_sweep_differs_in_rank_only(folder: str) -> None:
    """Two keys changed at once compare nothing."""
    paths = sorted((ROOT / "recipes" / folder).glob("*.yaml"))
    recipes = [load_recipe(path) for path in paths]
    assert [recipe.student.lora.rank for recipe in recipes] == [4, 8, 16, 32, 64]
    for path, recipe in zip(paths[1:], recipes[1:], strict=True):
        assert differing_keys(recipes[0], recipe) == ["name", "student.lora.rank"], path


def test_mistral_recipes_learn_from_the_same_data() -> None:
    first, *others = [load_recipe(path) for path in MISTRAL]
    for other in others:
        assert (other.data, other.task, other.seed) == (first.data, first.task, first.seed)


def test_recipes_of_one_data_name_agree_on_its_content() -> None:
    """Two recipes that build different data under one name would overwrite each other's."""
    by_name: dict[str, object] = {}
    for path in RECIPES:
        recipe = load_recipe(path)
        content = (recipe.data, recipe.task, recipe.seed)
        assert by_name.setdefault(recipe.data.name, content) == content, path


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs_load_and_leave_the_model_whole(path: Path) -> None:
    """`accelerate launch` finds an unknown key when it starts; a model that is split hangs at an epoch's end."""
    script = (
        "import sys\nfrom accelerate.commands.config.config_args import load_config_from_file\n"
        "print(load_config_from_file(sys.argv[1]).distributed_type.value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("NO", "MULTI_GPU")


@pytest.mark.parametrize(
    ("own", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_threads_spin_briefly_while_they_wait(own: dict[str, str], count: str) -> None:
    """Long spinning slows two processes on the same cores to a quarter; OpenMP says what it has understood."""
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", "import ppe_lora.student.machine"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**env, "OMP_DISPLAY_ENV": "verbose", **own},
    )
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {count}


def test_no_loader_may_ask_for_a_models_code() -> None:
    """Left out, transformers asks on the terminal whether to run a model's own code, and takes a `yes`."""
    loaders = []
    for path in sorted((ROOT / "ppe_lora").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            owner = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
            if call.func.attr in ("from_pretrained", "from_config") and (owner.startswith("Auto") or "Llama" in owner):
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                loaders.append((f"{path.name}:{call.lineno}", given.get("trust_remote_code")))
    assert len(loaders) >= 10
    assert {place for place, given in loaders if given != "False"} == set()
