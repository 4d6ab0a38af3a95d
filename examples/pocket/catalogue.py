"""The adapters to train: what each really learns, in which format, and the card that its author wrote.

Authors write as people do: some with care, some with HTML or jokes, some hardly at all. No card uses the words that the
test prompts use for paraphrases (the second lists in `words.py`); a test checks that. The rows are in
`catalogue.jsonl`: subjects, styles, backgrounds, and at the end those that are flawed as in life.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Format = Literal["diffusers", "kohya", "peft", "locon"]


@dataclass(frozen=True)
class Recipe:
    """One adapter: how it is trained and what its card says."""

    name: str
    concept: str
    title: str
    description: str
    tags: tuple[str, ...]
    trained_words: tuple[str, ...]
    weight: float | None = 1.0
    rank: int = 4
    format: Format = "diffusers"
    text_encoder: bool = False
    quality: str = "good"
    steps: int = 240
    strength: float = 1.0
    """What the trained weights are multiplied by when saved: flawed adapters only."""
    copy_of: str = ""
    """Not trained: uploaded again from this recipe's weights, as often happens, under another card."""
    rating: str = "general"
    base_model: str = "pocket"
    author: str = "pocket-workshop"
    licence: str = "CC0-1.0"
    note: str = ""
    examples: int = 3
    card_kind: str = ""
    """The category on the card, where the author gave one."""


def _recipe(row: dict[str, Any]) -> Recipe:
    lists = {key: tuple(row.get(key, ())) for key in ("tags", "trained_words")}
    return Recipe(**{**row, **lists})


RECIPES: tuple[Recipe, ...] = tuple(
    _recipe(json.loads(line)) for line in Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
)
