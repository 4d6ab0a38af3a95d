"""What the servers under test serve: a tiny pipeline, four adapters that work, and three that can't."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from mcp import StdioServerParameters

from stylus.catalog import Catalog
from stylus.database import Database
from stylus.embedder import Embedder
from stylus.ingest import ingest
from stylus.records import BaseModelFamily, Card, Category
from tests.generation import tiny

GOOD = {
    "star": "Draws five-pointed stars.",
    "moon": "A crescent moon in the night sky.",
    "neon": "Neon outline style, glowing lines.",
    "slash/name": "An owl with big eyes.",
}


def write(folder: Path) -> list[Card]:
    """Writes the pipeline to `folder`/tiny and the adapters beside it."""
    torch.set_num_threads(1)
    tiny.write_pipeline(folder / "tiny")
    unet = UNet2DConditionModel.from_pretrained(folder / "tiny", subfolder="unet")
    cards = []
    for seed, (name, description) in enumerate(GOOD.items()):
        factors = tiny.random_factors({"unet": unet}, seed=seed, keep=tiny.attention)
        path = tiny.write(folder / f"{seed}.safetensors", tiny.kohya(factors, alpha=2.0))
        cards.append(_card(name, description, file=str(path), trigger_words=(f"{name.partition('/')[0]}word",)))
    corrupt = folder / "corrupt.safetensors"
    corrupt.write_text("<html>404</html>")
    return [
        *cards,
        _card("corrupt", "A broken heart.", file=str(corrupt)),
        _card("missing", "A lost house.", file=str(folder / "nowhere.safetensors")),
        _card("large", "A castle for a larger model.", base_model=BaseModelFamily.SDXL),
    ]


def _card(name: str, description: str, **fields: object) -> Card:
    base = {"base_model": BaseModelFamily.SD15, "category": Category.OBJECT, **fields}
    return Card.model_validate({"id": f"test:{name}", "name": name, "description": description, **base})


def fill(url: str, cards: list[Card], embedder: Embedder) -> None:
    with Database(url) as database:
        ingest(cards, Catalog(database), embedder)


def environment(url: str, folder: Path, data: Path) -> dict[str, str]:
    return {
        "STYLUS_DATABASE_URL": url,
        "STYLUS_DATA": str(data),
        "STYLUS_CHECKPOINTS": f"sd15={folder / 'tiny'}",
        "STYLUS_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PATH": os.environ["PATH"],
    }


def stdio(environment: dict[str, str], arguments: Sequence[str] = ("-m", "server")) -> StdioServerParameters:
    return StdioServerParameters(command=sys.executable, args=list(arguments), env=environment)
