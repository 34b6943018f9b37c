"""ppe_lora: prompt-to-parameter estimation. A request in plain words becomes numbers, by a small local model."""

import os

__version__ = "0.1.0"

# OpenMP reads this once, when torch is loaded. By default its threads spin for milliseconds while they wait for one
# another: beside a second process on the same cores, each then waits for threads that do not run. Without any spinning
# a process alone pays for waking them. benchmarks/side_by_side.py measures both.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
