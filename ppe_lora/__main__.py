"""`python -m ppe_lora` and `accelerate launch -m ppe_lora` are the console script."""

from ppe_lora.cli import main

if __name__ == "__main__":
    main()
