"""The streaming merge: peak anonymous memory, and time against reading and writing the same files.

    python benchmarks/merge.py [--quick] [--out DIR] [--layers N] [--work DIR]

Writes a synthetic Mistral of 7B shape in bfloat16 (32 layers: 14.5 GB; --quick: 4 layers) and a rank-16 adapter on all
its linear layers, merges them, and copies the same files with plain reads and writes. Rounds are interleaved, each in a
process of its own, files are synced, and the page cache is dropped for the files that are read. Memory is RssAnon of
/proc (Linux), sampled every 5 ms: what the process holds and the kernel cannot drop. Needs twice the model on disk.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, MistralConfig

RANK = 16
BLOCK = 4 << 20


def write_base(folder: Path, layers: int) -> int:
    """Write the base, four layers a file; return its bytes. Values repeat, which costs nothing to read or merge."""
    folder.mkdir()
    config = MistralConfig(num_hidden_layers=layers, vocab_size=32_768, sliding_window=None, dtype="bfloat16")
    config.architectures = ["MistralForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    noise = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    files: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        part = int(name.split(".")[2]) // 4 if name.startswith("model.layers.") else "rest"
        files.setdefault(f"model-{part}.safetensors", {})[name] = torch.Size(shape)
    for file, wanted in files.items():
        tensors = {
            name: noise.repeat(-(-size.numel() // len(noise)))[: size.numel()].view(size).clone()
            for name, size in wanted.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, wanted in files.items() for name in wanted}
    n_bytes = 2 * sum(torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_text("{}")
    return n_bytes


def write_adapter(base: Path, folder: Path) -> None:
    """Write a LoRA adapter in float32 on every linear layer of the base, as PEFT stores it."""
    folder.mkdir()
    with torch.device("meta"):
        config = MistralConfig.from_pretrained(base)
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, module in layers.items():
        for part, shape in (("A", (RANK, module.in_features)), ("B", (module.out_features, RANK))):
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = torch.randn(shape, generator=generator) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 32,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(content))


def copy_files(base: Path, out: Path) -> None:
    """Read and write the weights without arithmetic, in blocks of the merge's size, and sync them."""
    out.mkdir()
    for file in sorted(base.glob("*.safetensors")):
        with file.open("rb", buffering=0) as source, (out / file.name).open("wb", buffering=0) as target:
            while block := source.read(BLOCK):
                target.write(block)
            os.fsync(target.fileno())


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds, processor seconds and peak RssAnon (bytes) of some work, and RssAnon before it."""
    peak = before = _anonymous()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _anonymous())

    sampler = threading.Thread(target=sample)
    sampler.start()
    started, started_cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    done.set()
    sampler.join()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": float(peak), "before_bytes": float(before)}


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this benchmark needs Linux 4.5 or newer")


def _forget(folder: Path) -> None:
    """Drop a folder's files from the page cache, so that every round reads from the disk."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one_round(kind: str, work: Path) -> None:
    """Run one round in this process and print what it measured."""
    _forget(work / "base")
    out = work / "out"
    if kind == "copy":
        found = measured(lambda: copy_files(work / "base", out))
    else:
        from ppe_lora.export.merge import merge_adapter

        found = measured(lambda: merge_adapter(work / "base", work / "adapter", out))
    print(json.dumps(found))


def main() -> None:
    """Measure, print a table, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 layers instead of 32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--work", type=Path, help="folder on the disk to measure; by default the temporary one")
    parser.add_argument("--round", choices=["copy", "merge"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.round:
        one_round(asked.round, asked.work)
        return
    layers = asked.layers or (4 if asked.quick else 32)
    samples: dict[str, list[dict[str, float]]] = {"copy": [], "merge": []}
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        work = Path(folder)
        n_bytes = write_base(work / "base", layers)
        write_adapter(work / "base", work / "adapter")
        os.sync()
        for number in range(3 if asked.quick else 2):
            for kind, found in samples.items():
                command = [sys.executable, __file__, "--round", kind, "--work", str(work)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                shutil.rmtree(work / "out")
                found.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"round {number + 1}: {kind}: {found[-1]['seconds']:.1f} s", flush=True)
    seconds, cpu = (
        {kind: statistics.median(one[name] for one in found) for kind, found in samples.items()}
        for name in ("seconds", "cpu_seconds")
    )
    headline = {
        "device": f"{os.cpu_count()} CPU cores",
        "layers": layers,
        "model_gb": round(n_bytes / 1e9, 2),
        "merge_s": round(seconds["merge"], 2),
        "copy_s": round(seconds["copy"], 2),
        "merge_vs_copy": round(seconds["merge"] / seconds["copy"], 3),
        "merge_cpu_s": round(cpu["merge"], 2),
        "copy_cpu_s": round(cpu["copy"], 2),
        "peak_anonymous_gb": round(max(one["peak_bytes"] for one in samples["merge"]) / 1e9, 3),
        "anonymous_before_gb": round(max(one["before_bytes"] for one in samples["merge"]) / 1e9, 3),
        "threads": torch.get_num_threads(),
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    raw = {"headline": headline, "samples": samples, "torch": torch.__version__}
    (asked.out / f"merge_{layers}_layers.json").write_text(json.dumps(raw, indent=2) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
