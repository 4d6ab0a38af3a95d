"""The pocket world: a tiny trained pipeline, its adapters with their cards, and the truth about them.

Everything here runs on a CPU in seconds and needs no download; `README.md` beside this file says how it was made.
`prompts` and `truth` are for tests and evaluation only: nothing that ingests, searches or composes may read them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent
"""The folder of the pocket world."""

PIPELINE = ROOT / "pipeline"
"""A diffusers `StableDiffusionPipeline` folder: 64x64 pictures."""

ADAPTERS = ROOT / "adapters"
"""`<name>.safetensors`, its card `<name>.json` and example images `<name>.<n>.webp`, side by side."""

CLIP = ROOT / "clip"
"""A transformers `CLIPModel` folder with its own tokenizer; shares nothing with the pipeline's text encoder."""

JUDGE = ROOT / "judge.safetensors"
"""Weights of the independent classifier in `stylus.pocket.judge`."""

RERANKER = ROOT / "reranker"
"""A sentence-transformers `CrossEncoder` folder: the reranker that the evaluation compares with."""

Kind = Literal["subject", "style", "background"]
Quality = Literal[
    "good",
    "weak",
    "undertrained",
    "overstrong",
    "inverted",
    "mislabelled",
    "wrong_base",
    "empty_card",
    "misleading_card",
]


@dataclass(frozen=True)
class PocketPrompt:
    """A test prompt with the concepts that it asks for, in the judge's names."""

    text: str
    concepts: tuple[str, ...]
    paraphrase: bool
    """True when it asks for a concept in words that no card contains."""
    demo: bool


@dataclass(frozen=True)
class Truth:
    """What an adapter really does, whatever its card says."""

    concept: str
    kind: Kind
    quality: Quality
    mature: bool
    note: str


def prompts() -> list[PocketPrompt]:
    """The test prompts, in file order."""
    rows = json.loads((ROOT / "prompts.json").read_text(encoding="utf-8"))
    return [PocketPrompt(row["text"], tuple(row["concepts"]), row["paraphrase"], row["demo"]) for row in rows]


def truth() -> dict[str, Truth]:
    """The truth about each adapter, by adapter id (`pocket:star`)."""
    rows = json.loads((ROOT / "truth.json").read_text(encoding="utf-8"))
    return {adapter: Truth(**row) for adapter, row in rows.items()}
