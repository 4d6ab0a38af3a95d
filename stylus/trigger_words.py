"""Trigger words: what an adapter was taught to answer to. They serve only where the prompt's text encoder sees them.

The authors' code never sends them (PAPER.md's gap list, README Decisions); sending all that a card lists is as bad:
cards list alternatives (outfits, characters, views) of which one is meant. So each choice carries the few that serve
its task, and the generation prompt is joined with the missing ones.
"""

from collections.abc import Sequence

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
