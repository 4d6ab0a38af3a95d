"""Trains the pocket world, stage by stage: `python -m examples.pocket.train --stage vae`.

The stages, in order: vae, decoder, base, judge, clip, adapters, harmony. Each reads what the earlier ones left in
`--work` and writes there; `python -m examples.pocket.pack` copies the results into the package as fp16.
"""

import argparse
import importlib
from pathlib import Path

import torch

STAGES = {
    "vae": "codec",
    "decoder": "decoder",
    "base": "base",
    "clip": "clip",
    "judge": "judging",
    "adapters": "adapters",
    "harmony": "harmony",
}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    arguments, rest = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    stage = importlib.import_module(f"examples.pocket.{STAGES[arguments.stage]}")
    stage.train(arguments.work, *rest)


if __name__ == "__main__":
    main()
