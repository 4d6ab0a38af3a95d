"""A CLIP tokenizer with a small vocabulary: whole words of the pocket world, pieces and bytes for all other text."""

import json
import re
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from examples.pocket.scenes import CONCEPT_WORDS
from examples.pocket.words import COLOUR_WORDS, COLOURS, FILLERS, SHAPES

LENGTH = 40
"""Tokens of a prompt, the two special ones included."""


def words() -> list[str]:
    """Every word that shall be one token, sorted."""
    phrases = [*COLOURS, *FILLERS, *CONCEPT_WORDS, "small", "large", "backdrop", "background", "next", "beside", "left"]
    for group in (*COLOUR_WORDS.values(), *SHAPES.values()):
        phrases += group
    return sorted({word for text in phrases for word in re.findall(r"[a-z]+", text.lower())})


def build(folder: Path) -> CLIPTokenizer:
    """Learn the merges, write `vocab.json` and `merges.txt`, and load them the usual way."""
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=8000, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(words(), trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    vocabulary = [*alphabet, *(c + "</w>" for c in alphabet), *dict.fromkeys(a + b for a, b in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    numbered = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    (folder / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)
    made.save_pretrained(folder)
    loaded: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return loaded
