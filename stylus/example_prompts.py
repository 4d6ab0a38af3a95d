"""What the prompts of a card's example pictures tell of it: the weight that its author uses, and its trigger words.

Source: the prompt syntax of AUTOMATIC1111's web UI, `<lora:NAME:WEIGHT>`, in which a prompt names the adapters that
made the picture. Authors write these when it works, and descriptions when they feel like it: so the prompts win
(paper, section 3.1).
"""

import re
from collections import Counter
from pathlib import PurePath
from statistics import median

from stylus.records import Card
from stylus.words import content_words

MOST_WEIGHT = 2.0
"""In absolute value. Stronger ones in a prompt are sliders at their end and jokes, and no recommendation."""
_FEWEST = 3
"""Prompts that must agree before a phrase counts as a trigger word: two may share anything."""
_MOST_WORDS = 4

_TAG = re.compile(r"[<‹](?:lora|lyco):([^:<>‹›]{1,200}):(-?\d{0,3}\.?\d{1,6})(?::[^<>‹›]{0,100})?[>›]", re.IGNORECASE)
_REST = re.compile(r"^\s*(?:negative prompt:|steps: \d)", re.IGNORECASE | re.MULTILINE)
_EMPHASIS = re.compile(r":\d{0,3}\.?\d{1,6}(?=\s*[)\]])|[()\[\]{}]")


def positive(prompt: str) -> str:
    """The prompt without the negative prompt and the parameters that some sources leave in the same text."""
    found = _REST.search(prompt)
    return prompt[: found.start()].strip() if found else prompt.strip()


def without_names(prompt: str) -> tuple[str, tuple[str, ...]]:
    """The prompt without `<lora:NAME:WEIGHT>`, which a text encoder would read as text, and what was taken out."""
    named = tuple(dict.fromkeys(match[0] for match in _TAG.finditer(prompt)))
    if not named:
        return prompt, ()
    pieces = (" ".join(piece.split()) for piece in _TAG.sub(" ", prompt).split(","))
    return ", ".join(filter(None, pieces)), named


def weight(card: Card) -> float | None:
    """The median weight at which the example prompts use this adapter; None if they don't, or can't be told apart.

    A tag is the adapter's own if it has the name of its file or card; failing that, if one name alone is in every
    prompt that has tags at all.
    """
    prompts = [
        {_folded(name): float(number) for name, number in _TAG.findall(positive(example.prompt))}
        for example in card.examples
    ]
    tagged = [tags for tags in prompts if tags]
    own = {_folded(PurePath(card.file).stem if card.file else card.name), _folded(card.name)} - {""}
    names = own & set().union(*tagged)
    if not names:
        names = {
            name for name, count in Counter(name for tags in tagged for name in tags).items() if count == len(tagged)
        }
        if len(names) != 1:
            return None
    weights = [tags[name] for tags in tagged for name in names if name in tags and 0 < abs(tags[name]) <= MOST_WEIGHT]
    return round(median(weights), 3) if weights else None


def trigger_words(card: Card) -> tuple[str, ...]:
    """Phrases (between commas, at most four words) that stand in every example prompt and share a word with the card's
    name, file or tags; none where there are fewer than three prompts. Other common phrases are habits: "1girl"."""
    prompts = [_phrases(prompt) for example in card.examples if (prompt := positive(example.prompt))]
    if len(prompts) < _FEWEST:
        return ()
    stem = PurePath(card.file).stem if card.file else ""
    about = set(content_words(" ".join([card.name, *re.split(r"[_\W]+", stem), *card.tags])))
    common = set(prompts[0]).intersection(*prompts[1:])
    return tuple(
        spelled
        for phrase, spelled in prompts[0].items()
        if phrase in common and len(phrase.split()) <= _MOST_WORDS and about.intersection(content_words(phrase))
    )


def _phrases(prompt: str) -> dict[str, str]:
    """Folded phrase -> as it is spelled, in order, without adapters and marks of emphasis."""
    plain = _EMPHASIS.sub("", _TAG.sub("", prompt))
    return {part.casefold(): part for piece in plain.split(",") if (part := " ".join(piece.split()))}


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
