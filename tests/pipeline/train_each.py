"""`ppe-lora train` of several recipes, one after the other: `python train_each.py RECIPE...`.

Starting Python and its libraries takes longer than a tiny training.
"""

import sys

from ppe_lora.cli import main

if __name__ == "__main__":
    for recipe in sys.argv[1:]:
        sys.argv = ["ppe-lora", "train", recipe]
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                raise
