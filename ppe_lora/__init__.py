"""ppe_lora: prompt-to-parameter estimation. A request in plain words becomes numbers, by a small local model."""

__version__ = "0.1.0"
