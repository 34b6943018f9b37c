"""How this process was launched, as far as the environment says it; torch is not needed for that."""

import os

from ppe_lora.errors import RunError

_SPLITTING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""Variables of `accelerate launch`, and what splits the model where they are true."""


def check_launch() -> None:
    """Raise unless each process is to hold the whole model.

    Every epoch is decoded by the bare model, and the first process alone saves the adapter. Where the model is split
    over processes, both wait for ever for the other processes' parts.

    Raises:
        RunError: The launcher splits the model.
    """
    for variable, name in _SPLITTING.items():
        if os.environ.get(variable, "").lower() in ("true", "1", "yes"):
            raise RunError(
                f"accelerate launch: expected processes that each hold the whole model; got {name}, which splits it; "
                "use configs/accelerate/multi_gpu.yaml or one GPU, with student.quantization: nf4 or a smaller model "
                "where a card does not hold it"
            )
