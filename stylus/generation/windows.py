"""Prompts that are longer than what CLIP reads at once (75 tokens and two marks), cut into windows between words."""

from collections.abc import Iterator
from typing import Any


def windows(tokenizer: Any, prompt: str) -> list[str]:
    """Pieces of the prompt, each of which the tokenizer's encoder reads whole; at least one, maybe empty."""
    most = tokenizer.model_max_length - 2
    if _tokens(tokenizer, prompt) <= most:
        return [prompt]
    found: list[str] = []
    window: list[str] = []
    used = 0
    for word in _words(tokenizer, prompt, most):
        length = _tokens(tokenizer, word)
        if used + length > most:
            found.append(" ".join(window))
            window, used = [], 0
        window.append(word)
        used += length
    return [*found, " ".join(window)]


def _words(tokenizer: Any, prompt: str, most: int) -> Iterator[str]:
    """The prompt's words; one that is longer than a window comes in parts."""
    for word in prompt.split():
        while _tokens(tokenizer, word) > most:
            # a token is at least one character or a byte of one: this many characters always fit
            part = max(1, most // 4)
            yield word[:part]
            word = word[part:]
        yield word


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, truncation=False, verbose=False).input_ids) - 2
