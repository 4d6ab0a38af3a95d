"""Trigger words: what an adapter was taught to answer to. They serve only where the prompt's text encoder sees them.

The authors' code never sends them (PAPER.md's gap list, README Decisions); sending all that a card lists is as bad:
cards list alternatives (outfits, characters, views) of which one is meant. So each choice carries the few that serve
its task, and the generation prompt is joined with the missing ones, as far as the encoder reads.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stylus.records import Card, Choice
from stylus.words import content_words, words

MOST_PER_CHOICE = 2
"""More than this is a list of alternatives, not an activation."""

LONGEST = 60
"""Characters. A longer entry is an example prompt in the wrong field, and would crowd the text encoder's 77 tokens."""


def serving(card: Card, keyword: str) -> tuple[str, ...]:
    """Those of the card's trigger words that serve the task `keyword`: at most two, never all of a long list.

    A lone trigger word serves. Of several, those sharing the most content words with the keyword serve; where none
    does, the first, which by custom is the one that activates the adapter. Entries that are lists are split at commas.
    """
    entries = [part.strip() for entry in card.trigger_words for part in entry.split(",")]
    entries = list(dict.fromkeys(entry for entry in entries if entry and len(entry) <= LONGEST))
    wanted = set(content_words(keyword))
    shared = {entry: len(wanted.intersection(content_words(entry))) for entry in entries}
    best = max(shared.values(), default=0)
    if best == 0:
        return tuple(entries[:1])
    return tuple(entry for entry in entries if shared[entry] == best)[:MOST_PER_CHOICE]


def with_trigger_words(prompt: str, choices: Sequence[Choice]) -> str:
    """The prompt, then the choices' trigger words that it does not hold yet, in order, each once, after commas.

    Held means the same words in a row, whole and whatever their case or number: "cat" is held by "two Cats", not by
    "concatenate". Words that an earlier trigger word brought count as held.
    """
    parts = [prompt.strip()] if prompt.strip() else []
    held = f" {' '.join(words(prompt))} "
    for trigger in (word.strip() for choice in choices for word in choice.trigger_words):
        phrase = f" {' '.join(words(trigger))} "
        # A trigger of symbols alone has no words: then only its literal presence counts.
        if trigger and (phrase not in held if phrase.strip() else trigger not in ", ".join(parts)):
            parts.append(trigger)
            held += f"|{phrase}"
    return ", ".join(parts)


@dataclass(frozen=True)
class Wording:
    """A prompt as the text encoder shall read it, and what it can't read."""

    text: str
    left_out: tuple[str, ...] = ()
    """Trigger words, and keywords to emphasise, for which there was no room."""
    cut: str = ""
    """The end of the prompt itself that lies beyond the encoder's limit; it stays in `text`."""

    @property
    def note(self) -> str:
        """What is not read, for people; empty where all is."""
        parts = [f"Without room in the text encoder: {', '.join(self.left_out)}."] if self.left_out else []
        if self.cut:
            parts.append(f"The prompt is too long for the text encoder, which does not read its end: {self.cut!r}.")
        return " ".join(parts)


def wording(
    prompt: str, choices: Sequence[Choice], fits: Callable[[str], bool], emphasised: Sequence[str] = ()
) -> Wording:
    """The prompt with its choices' trigger words, then `emphasised` once more at the end, as far as there is room.

    `fits` tells whether the encoder reads all of a text. The prompt comes first: it is the caller's, the rest is ours.
    Repeating is the plainest emphasis and works with every encoder: a keyword that no adapter draws stands against the
    ones that would hide it (the paper's "task blocking"). Where no adapter acts there is nothing to stand against.
    """
    text = prompt.strip()
    if not fits(text):
        ends = [match.end() for match in re.finditer(r"\S+", text)]
        read = bisect_right(range(len(ends)), 0, key=lambda n: not fits(text[: ends[n]]))
        cut = text[ends[read - 1] if read else 0 :].strip()
        return Wording(text, tuple(_missing(text, choices)), cut)
    left_out: list[str] = []
    for choice in choices:
        for word in choice.trigger_words:
            longer = with_trigger_words(text, [choice.model_copy(update={"trigger_words": (word,)})])
            text, left_out = (longer, left_out) if fits(longer) else (text, [*left_out, word.strip()])
    for keyword in emphasised if choices else ():
        longer = f"{text}, {keyword}"
        text, left_out = (longer, left_out) if fits(longer) else (text, [*left_out, keyword])
    return Wording(text, tuple(dict.fromkeys(left_out)))


def _missing(text: str, choices: Sequence[Choice]) -> list[str]:
    joined = with_trigger_words(text, choices).removeprefix(text)
    return [word for word in joined.split(", ") if word]
