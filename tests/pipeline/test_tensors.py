"""Files of tensors that are cut, empty, of another kind or not finite: the file is named, and what to do."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ppe_lora.artifacts import write_manifest
from ppe_lora.errors import FileError, ModelError
from ppe_lora.evaluation.calibration import read_calibration
from ppe_lora.export.plan import plan_merge
from ppe_lora.recipe.schema import Lora, Student
from ppe_lora.student.checkpoints import newest_checkpoint
from ppe_lora.student.head import Head, TeachingHeads
from ppe_lora.student.load import ADAPTER_REMEDY, attach_lora, load_adapter, load_base
from ppe_lora.student.tensors import NotFinite, check_finite, open_tensors, read_arrays
from tests.runs import TASK

INF_IN = "model.layers.1.mlp.up_proj.weight"
DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut in its header": lambda content: content[:20],
    "of another kind": lambda content: b"<html>404 Not Found</html>",
    "longer": lambda content: content + b"x",
}


@pytest.fixture
def base(speaker, tmp_path):
    return shutil.copytree(speaker, tmp_path / "base")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_base_is_named_by_file_and_remedy(base, damage):
    """It ended in a SafetensorError, or in an AssertionError where its size was asked for first."""
    file = base / "model.safetensors"
    broken = DAMAGES[damage](file.read_bytes())
    file.write_bytes(broken)
    for use in (lambda: load_base(Student(model=str(base)), base, "cpu"), lambda: plan_merge(base, base, "auto")):
        (base / "adapter_config.json").write_text("{}")
        (base / "adapter_model.safetensors").write_bytes(b"")
        with pytest.raises(ModelError) as error:
            use()
        assert str(error.value).startswith(f"{file}: expected a whole safetensors file; got {len(broken)} bytes, ")
        assert str(error.value).endswith("; download the model again, or copy it here again")
    write_manifest(base, {})
    with pytest.raises(ModelError, match=rf"; delete {base} and repeat the command that wrote it$"):
        load_base(Student(model=str(base)), base, "cpu")


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_one_bad_weight_of_a_base_is_found_and_named(base, quantization, bad):
    """The advice was to lower the learning rate, or to set raft to 0."""
    file = base / "model.safetensors"
    weights = load_file(file)
    weights[INF_IN][3, 5] = bad
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(NotFinite) as error:
        load_base(Student(model=str(base), quantization=quantization), base, "cpu")
    assert str(error.value) == (
        f"{base}: expected finite numbers; got NaN or infinity in {INF_IN}; download the model again, or copy it here "
        "again, or take another one: no training mends it"
    )


def test_a_broken_or_bad_adapter_is_named(speaker, tmp_path):
    """`best/` of a run: evaluated, exported and served from one file."""

    def adapted():
        return attach_lora(load_base(Student(model=str(speaker)), speaker, "cpu"), Lora(rank=4), seed=0)

    adapted().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    good = file.read_bytes()
    weights = load_file(file)
    name = next(name for name in weights if "lora_B" in name)
    weights[name][0, 0] = float("nan")
    save_file(weights, file)
    base = load_base(Student(model=str(speaker)), speaker, "cpu")
    with pytest.raises(NotFinite) as error:
        load_adapter(base, tmp_path)
    loaded = name.replace(".weight", ".default.weight")
    assert str(error.value) == f"{file}: expected finite numbers; got NaN or infinity in {loaded}; {ADAPTER_REMEDY}"
    for damage in DAMAGES.values():
        file.write_bytes(damage(good))
        with pytest.raises(ModelError) as broken:
            load_adapter(base, tmp_path)
        assert str(broken.value).startswith(
            f"{file}: expected a whole safetensors file; got {file.stat().st_size} byte"
        )
        assert str(broken.value).endswith(ADAPTER_REMEDY)


@pytest.mark.parametrize("damage", [*DAMAGES, "not finite", "without an array"])
def test_broken_heads_are_named(tmp_path, damage):
    """Zero bytes were an EOFError, a cut `teaching_heads.npz` a BadZipFile at every resume."""
    ones = np.ones((2, 2, 3), dtype=np.float32)
    Head((1, 2), ones, np.zeros(2)).save(tmp_path)
    TeachingHeads((1, 2), torch.ones(5, 2, 2, 3), torch.zeros(5, 2)).save(tmp_path)
    for name, load, what in (
        ("head.npz", Head.load, "a head"),
        ("teaching_heads.npz", TeachingHeads.load, "heads that teach"),
    ):
        path = tmp_path / name
        if damage == "not finite":
            stored = dict(np.load(path))
            stored = {key: array * np.nan if array.dtype.kind == "f" else array for key, array in stored.items()}
            np.savez(path, **stored)
            what = "finite numbers"
        elif damage == "without an array":
            np.savez(path, layers=np.array([1, 2]))
        elif damage == "longer":
            continue  # a zip file may have something behind it
        else:
            path.write_bytes(DAMAGES[damage](path.read_bytes()))
        with pytest.raises(ModelError, match=rf"^{path}: expected {what}; got .*; delete it, and "):
            load(tmp_path)


@pytest.mark.parametrize("key", ["weight", "offset", "width"])
@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-5"])
def test_a_calibration_of_numbers_that_are_none_is_refused(tmp_path, key, bad):
    """A width below zero was served with its low above its high."""
    stored = {"weight": "[[1, 0], [0, 1]]", "offset": "[0, 0]", "width": "1.5"}
    if bad == "-5" and key != "width":
        return
    stored[key] = stored[key].replace("0", bad) if key != "width" else bad
    path = tmp_path / "calibration.json"
    numbers = ", ".join(f'"{name}": {text}' for name, text in stored.items())
    path.write_text(
        f'{{"kind": "affine", "keys": ["a", "b"], {numbers}, "coverage": 0.8, "rows": 20, "cv_mse_norm": {{}}}}'
    )
    with pytest.raises((ModelError, FileError), match=rf"{path}: expected "):
        read_calibration(path, TASK)


def test_finite_numbers_pass_whatever_their_type():
    check_finite(
        [("half", torch.tensor([6e4]).half()), ("whole", torch.tensor([1])), ("none", torch.empty(0))], "here", "none"
    )
    with pytest.raises(NotFinite, match=r"^here: expected finite .* in a, b, c, d, e and 1 more; do$"):
        check_finite(((name, torch.tensor([1.0, float("nan")])) for name in "abcdef"), "here", "do")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"^.*none\.safetensors: expected a whole safetensors file; got No such file"):
        open_tensors(tmp_path / "none.safetensors", "do")
    with pytest.raises(ModelError, match=r"^.*none\.npz: expected a head; got .*No such file.*; do$"):
        read_arrays(tmp_path / "none.npz", ["a"], "a head", "do")


@pytest.mark.parametrize("content", ["", '{"optimizer.pt": ', "[1"])
def test_a_checkpoint_with_a_torn_list_of_files_is_passed_over(tmp_path, content):
    """A resume ended at it, though the checkpoint before was whole."""
    for step in (3, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "complete.json").write_text("{}" if step == 3 else content)
    found, skipped = newest_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-3"
    assert skipped == [f"{tmp_path / 'checkpoint-4'}: complete.json is damaged; skipped"]
