"""What a switch of compositions costs after many adapters have been used, and what adapters cost in a step.

`python -m tests.benchmarks.switching --json OUT [--full] [--half] [--small]`. `ours` and `diffusers`: seconds from one
composition of two adapters to the next, after 3, 10, 30 and 60 adapters were used (diffusers: set_adapters), median of
many. `overhead`: seconds per UNet step over those of the bare UNet, minus 1, with 0, 1, 3 and 6 adapters, gated (one
weight per image) and fused; the variants take turns in each round, and the figures are medians.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stylus.generation.adapters import Resident, ResidentAdapters
from stylus.records import Adapter, BaseModelFamily
from tests.benchmarks import data_folder
from tests.benchmarks.unets import World, twin, world, write_adapters

USED = (3, 10, 30, 60)
AT_ONCE = (0, 1, 3, 6)
ROWS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--full", action="store_true", help="64x64 latents, on the GPU where there is one")
    parser.add_argument("--small", action="store_true", help="a UNet of few channels, to try the benchmark itself")
    parser.add_argument("--half", action="store_true", help="float16, as on a GPU by default")
    parser.add_argument("--side", type=int, default=24, help="edge of the latents, without --full")
    parser.add_argument("--most", type=int, default=max(USED), help="adapters used; diffusers takes seconds for each")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    here = world(arguments.full, arguments.small, arguments.half, ROWS, arguments.side, steps=1)
    with data_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns when a second adapter is loaded
        adapters = write_adapters(here.unet, folder, max(arguments.most, *AT_ONCE))
        bare = twin(here.unet)
        resident = ResidentAdapters(BaseModelFamily.SD15, {"unet": here.unet}, capacity=2**40)
        result = {
            "ours": _switching(here, adapters, arguments.rounds, _ours(resident)),
            "overhead": _overhead(here, bare, resident, adapters, arguments.rounds),
            "diffusers": _switching(here, adapters, arguments.rounds, _diffusers(bare)),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


Switch = Callable[[list[Adapter], list[float]], Callable[[], None]]
"""From adapters (loaded if they weren't) and weights to the switch itself, which is what is timed."""


def _switching(here: World, adapters: list[Adapter], rounds: int, prepare: Switch) -> dict[str, float]:
    seconds = {}
    for used in [n for n in USED if n <= len(adapters)]:
        prepare(adapters[:used], [0.1] * used)()
        pairs = [(n % used, (n + 1) % used) for n in range(4 * rounds)]
        times = []
        for n, pair in enumerate(pairs):
            switch = prepare([adapters[i] for i in pair], [0.5 + 0.01 * n, 0.4])
            times.append(here.timed(switch))
        seconds[str(used)] = round(statistics.median(times), 7)
    return seconds


def _ours(resident: ResidentAdapters) -> Switch:
    def prepare(adapters: list[Adapter], weights: list[float]) -> Callable[[], None]:
        loaded = resident.load(adapters, lambda done: None)
        rows = np.tile(np.array(weights, dtype=np.float32), (ROWS, 1))
        return lambda: resident.switch("unet", list(loaded.values()), rows)

    return prepare


def _diffusers(unet: Any) -> Switch:
    loaded: set[str] = set()

    def prepare(adapters: list[Adapter], weights: list[float]) -> Callable[[], None]:
        for adapter in adapters:
            if adapter.name not in loaded:
                unet.load_lora_adapter(adapter.file, prefix="unet", adapter_name=adapter.name)
                loaded.add(adapter.name)
        return lambda: unet.set_adapters([adapter.name for adapter in adapters], weights)

    return prepare


def _overhead(
    here: World, bare: Any, resident: ResidentAdapters, adapters: list[Adapter], rounds: int
) -> dict[str, dict[str, float]]:
    loaded: list[Resident] = list(resident.load(adapters[: max(AT_ONCE)], lambda done: None).values())
    weights = {n: np.full((ROWS, n), 0.3, dtype=np.float32) for n in AT_ONCE}
    times: dict[str, dict[int, list[float]]] = {kind: {n: [] for n in AT_ONCE} for kind in ("gated", "fused")}
    base: list[float] = []
    here.denoise(bare)
    for _ in range(rounds):
        base.append(here.timed(lambda: here.denoise(bare)))
        for n in AT_ONCE:
            resident.switch("unet", loaded[:n], weights[n])
            times["gated"][n].append(here.timed(lambda: here.denoise(here.unet)))
            resident.all_off()
            with resident.fused("unet", loaded[:n], weights[n][0]):
                times["fused"][n].append(here.timed(lambda: here.denoise(here.unet)))
    plain = statistics.median(base)
    return {
        kind: {str(n): round(statistics.median(all) / plain - 1, 3) for n, all in runs.items()}
        for kind, runs in times.items()
    } | {"seconds_per_step": {"bare": round(plain, 4)}}


if __name__ == "__main__":
    main()
