"""Memory of a device: whether it ran out, giving it back, and moving a pipeline where there may be none."""

import gc
from typing import Any

import torch


def out_of_memory(error: BaseException | None) -> bool:
    """Whether it says that memory, of the device or of the machine, did not suffice."""
    # the CPU's allocator, and Apple's
    said = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(part in str(error) for part in said)


def return_memory(device: torch.device) -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def moved(pipeline: Any, device: torch.device) -> bool:
    """Moves it there, and says whether there was room; the exception would hold what fills it."""
    try:
        pipeline.to(device)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    return True
