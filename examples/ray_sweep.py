"""The rank sweep on a Ray cluster: a task per recipe, each with a GPU of its own.

what      one `ppe-lora run` per recipe of a folder, wherever Ray has room
needs     `pip install ray` here; ppe-lora on every node, and one working directory that all nodes share
          (data/ and checkpoints/)
run       ppe-lora data build recipes/mistral_7b_qlora.yaml     once: the tasks must not all make the data set
          python examples/ray_sweep.py recipes/rank_sweep       in that directory, on a node or with RAY_ADDRESS set
          ppe-lora sweep recipes/rank_sweep                     at the end: skips what is finished; the leaderboard
override  --gpus 0 for recipes that need none

A run whose node dies is started again elsewhere and goes on from its newest checkpoint. One recipe alone, from outside
of the cluster:

    ray job submit --address http://HEAD:8265 --entrypoint-num-gpus 1 -- \\
        bash -c 'cd /shared/ppe_lora && ppe-lora run recipes/mistral_7b_qlora.yaml'
"""

import argparse
import subprocess
import sys
from pathlib import Path

import ray


def run_recipe(recipe: str, folder: str) -> int:
    """Run all stages of a recipe; what is complete is skipped, an unfinished training resumed."""
    return subprocess.run(["ppe-lora", "run", recipe], cwd=folder, check=False).returncode


def main() -> None:
    """Run every recipe of a folder, and end with status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpus", type=float, default=1, help="of each recipe")
    given = parser.parse_args()
    recipes = sorted(map(str, given.folder.glob("*.yaml")))
    if not recipes:
        sys.exit(f"{given.folder}: expected a folder with recipes (*.yaml); got none")
    ray.init()
    task = ray.remote(num_gpus=given.gpus, max_retries=3)(run_recipe)
    started = {task.options(name=recipe).remote(recipe, str(Path.cwd())): recipe for recipe in recipes}
    waiting, failed = list(started), False
    while waiting:
        (done,), waiting = ray.wait(waiting)
        status = ray.get(done)
        failed |= status != 0
        print(f"{started[done]}: {'finished' if status == 0 else f'failed with status {status}'}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
