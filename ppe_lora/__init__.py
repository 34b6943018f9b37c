"""ppe_lora: prompt-to-parameter estimation. A request in plain words becomes numbers, by a small local model."""

import os

__version__ = "0.1.0"

# OpenMP reads this once, when torch is loaded. Its threads spin while they wait for one another, by default: beside a
# second process on the same cores, each then waits for threads that do not run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
