"""Four images with four compositions of one to three adapters: our one pass, diffusers one by one, and a reload each.

`python -m tests.benchmarks.batch --json OUT [--full] [--half] [--small]`. Ratios are our seconds over theirs, so below
1 is faster; rounds alternate, and each figure is the median. The outputs must be equal: `max_abs_diff` is over the
final latents. Peak memory is the process's on a CPU (weights of the UNet included), the allocator's on a GPU.
"""

import argparse
import json
import resource
import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylus.generation.adapters import ResidentAdapters
from stylus.records import BaseModelFamily
from tests.benchmarks import data_folder
from tests.benchmarks.unets import World, twin, world, write_adapters

WEIGHTS = np.array([[0.8, 0, 0], [0, 0.7, 0], [0.5, 0, 0.6], [0.4, 0.3, 0.5]], dtype=np.float32)
"""[images, adapters]"""
NAMES = ["style0", "style1", "style2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--full", action="store_true", help="64x64 latents, on the GPU where there is one")
    parser.add_argument("--small", action="store_true", help="a UNet of few channels, to try the benchmark itself")
    parser.add_argument("--half", action="store_true", help="float16, as on a GPU by default")
    parser.add_argument("--side", type=int, default=24, help="edge of the latents, without --full")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    here = world(arguments.full, arguments.small, arguments.half, len(WEIGHTS), arguments.side, arguments.steps)
    with data_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns when a second adapter is loaded
        result = measure(here, folder, arguments.rounds)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def measure(here: World, folder: Path, rounds: int) -> dict[str, Any]:
    adapters = write_adapters(here.unet, folder, len(NAMES))
    theirs = twin(here.unet)
    resident = ResidentAdapters(BaseModelFamily.SD15, {"unet": here.unet})
    outputs: dict[str, torch.Tensor] = {}

    def ours() -> None:
        loaded = resident.load(adapters, lambda done: None)
        resident.switch("unet", list(loaded.values()), WEIGHTS)
        outputs["ours"] = here.denoise(here.unet)

    def load(names: list[str]) -> None:
        for adapter in adapters:
            if adapter.name in names:
                theirs.load_lora_adapter(adapter.file, prefix="unet", adapter_name=adapter.name)

    def one_by_one(reload: bool) -> None:
        images = []
        for row, weights in enumerate(WEIGHTS):
            used = [name for name, weight in zip(NAMES, weights, strict=True) if weight]
            if reload:
                load(used)
            theirs.set_adapters(used, [float(weight) for weight in weights if weight])
            images.append(here.denoise(theirs, slice(row, row + 1)))
            if reload:
                theirs.delete_adapters(used)
        outputs["reload" if reload else "theirs"] = torch.cat(images)

    if here.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(here.device)
    ours()  # warm: files read, layers wrapped
    peak = _peak(here.device)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "reload": []}
    for _ in range(rounds):
        seconds["ours"].append(here.timed(ours))
        load(NAMES)
        seconds["theirs"].append(here.timed(lambda: one_by_one(reload=False)))
        theirs.delete_adapters(NAMES)
        seconds["reload"].append(here.timed(lambda: one_by_one(reload=True)))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "ratio_to_one_by_one": round(medians["ours"] / medians["theirs"], 3),
        "ratio_to_reload": round(medians["ours"] / medians["reload"], 3),
        "max_abs_diff": max(float((outputs["ours"] - outputs[name]).abs().max()) for name in ("theirs", "reload")),
        "peak_gb": round(peak, 2),
        "seconds": {name: round(median, 3) for name, median in medians.items()},
        "device": torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "cpu",
    }


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
