"""How long a folder of many adapters takes to ingest, and a second run that finds nothing new.

`python -m tests.benchmarks.folder --count 10000 --json OUT`. The files are made in a temporary folder: headers with
metadata as trainers write it, cards and pictures beside some of them as people have them, tiny tensors. Both runs are
the library's own, on an embedded Postgres and with the default embedder, from opening the database to closing it;
making the database and loading the embedding model are a part of the first.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from stylus.cli.output import progress_bar
from stylus.files import Files
from stylus.ingest import IngestReport, ingest_folder
from stylus.settings import Settings
from stylus.stylus import Stylus
from tests.benchmarks import data_folder

SUBJECTS = ("lighthouse", "heron", "teapot", "tram", "castle", "violin", "orchid", "tortoise", "lantern", "glacier")
LOOKS = ("watercolour", "charcoal", "neon", "clay", "woodcut", "pastel", "chrome", "mosaic", "velvet", "felt")
PLACES = ("at dusk", "in fog", "by the sea", "under snow", "in a garden", "on a hill", "in the rain", "by candle light")
LAYERS = 64
WIDTHS = {"sd_v1": 768, "sdxl_base_v1-0": 2048}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="how many adapters")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    with data_folder() as root:
        make(root / "loras", arguments.count)
        first, first_s = run(root)
        second, second_s = run(root)
    if (first.added, second.unchanged) != (arguments.count, arguments.count):
        raise SystemExit(f"{arguments.count} files gave {first!r} and {second!r}: the figures mean nothing.")
    figures = {
        "count": arguments.count,
        "first_s": round(first_s, 2),
        "second_s": round(second_s, 2),
        "share": round(second_s / first_s, 4),
        "adapters_per_s": round(arguments.count / first_s, 1),
    }
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def run(root: Path) -> tuple[IngestReport, float]:
    started = time.perf_counter()
    problems: list[str] = []
    with Stylus(Settings(data=root / "data")) as stylus, progress_bar() as on_progress:
        report = ingest_folder(
            root / "loras",
            stylus.catalog,
            Files(stylus.database),
            stylus.embedder,
            lambda path, why: problems.append(f"{path}: {why}"),
            on_progress,
        )
    if problems:
        raise SystemExit("\n".join(problems[:5]))
    return report, time.perf_counter() - started


def make(root: Path, count: int) -> None:
    """Files as in a collection: a fifth with a card of the web UI, a fifth with Civitai's, a fifth with a preview."""
    chance = random.Random(7)
    for number in range(count):
        subject, look, place = chance.choice(SUBJECTS), chance.choice(LOOKS), chance.choice(PLACES)
        base = chance.choice(list(WIDTHS))
        path = root / base / subject / f"{subject}-{look}-{number:06}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        words = [subject, look, place, *chance.sample(SUBJECTS + LOOKS, 12)]
        metadata = {
            "ss_base_model_version": base,
            "ss_network_module": "networks.lora",
            "ss_network_dim": "4",
            "ss_output_name": f"{subject} {look} {number}",
            "ss_tag_frequency": json.dumps({"10_set": {word: chance.randint(1, 99) for word in words}}),
            "ss_training_started_at": str(1_700_000_000 + number),
        }
        layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
        tensors = {f"{layer}.lora_down.weight": np.full((1, WIDTHS[base]), number % 1000, np.float16)}
        for index in range(LAYERS):
            name = f"lora_unet_mid_block_attentions_0_transformer_blocks_{index % 2}_ff_net_{index}"
            tensors |= {
                f"{name}.lora_up.weight": np.zeros((2, 1), np.float16),
                f"{name}.alpha": np.ones((), np.float16),
            }
        save_file(tensors, path, metadata)
        text = f"A {look} look for every {subject} {place}. Trained on {number % 90 + 10} pictures; weight 0.6 to 0.9."
        if number % 5 == 0:
            card = {"description": text * 2, "activation text": f"{look}style", "preferred weight": 0.7}
            path.with_suffix(".json").write_text(json.dumps(card))
        elif number % 5 == 1:
            model = {"name": f"{look} {subject}", "tags": words[:6], "description": f"<p>{text}</p>" * 3}
            info = {"modelId": number, "id": number, "trainedWords": [look], "baseModel": "SD 1.5", "model": model}
            path.with_suffix(".civitai.info").write_text(json.dumps(info))
        elif number % 5 == 2:
            chunks = PngInfo()
            chunks.add_text("parameters", f"{subject}, {look} <lora:{path.stem}:0.8>\nSteps: 20, Seed: {number}")
            Image.new("RGB", (8, 8)).save(path.with_suffix(".preview.png"), pnginfo=chunks)


if __name__ == "__main__":
    main()
