"""Text from strangers -> text that is safe to store, show and embed: no markup, no control characters, no endless
length."""

import re
import unicodedata
from html import unescape

_READ = 1_000_000
"""Characters of a text that are looked at; the rest of a longer one is dropped before any work is done on it."""

_SILENT = {"script", "style", "template", "noscript"}
_BREAKS = {"p", "br", "div", "li", "ul", "ol", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "hr"}
_TAG = re.compile(r"<[a-zA-Z/!][^<>]{0,2000}>|&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|\w{2,24});")
_MARKUP = re.compile(r"<(/?)([a-zA-Z][^\s<>/]*+)[^<>]*+>|<[!?][^<>]*+>")


def _words(html: str) -> str:
    """Text without markup; what only begins like markup is text. In linear time: Python's own parser looks for an end
    again from every place where a comment, a declaration or a tag seems to begin, minutes for a megabyte of them."""
    first, *others = html.split("<!--")
    html = first + "".join(piece.partition("-->")[2] if "-->" in piece else piece for piece in others)
    text, *rest = _MARKUP.split(html)
    parts, silent = [text], 0
    for slash, name, text in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        tag = (name or "").lower()
        if tag in _SILENT:
            silent = max(0, silent + (-1 if slash else 1))
        if tag in _BREAKS:
            parts.append("\n")
        if not silent:
            parts.append(text)
    return unescape("".join(parts))


def clean(text: object, most: int) -> str:
    """At most `most` characters of plain text over several lines; "" for what is no text."""
    if not isinstance(text, str):
        return ""
    text = text[: min(_READ, 50 * most)]
    # `<lora:star:0.8>` is no markup: it is a prompt's way to name an adapter.
    if _TAG.search(text.replace("<lora:", "").replace("<lyco:", "")):
        text = _words(re.sub(r"<(lora|lyco):", r"&lt;\1:", text))
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " "))
    # Cc, Cf (which reverse or hide text), Cs (half characters), Co and Cn, but not the joiners of emoji and of scripts.
    kept = "".join(c for c in text if c in "\n\u200c\u200d" or unicodedata.category(c)[0] != "C")
    lines = (" ".join(line.split()) for line in kept.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()[:most].rstrip()


def clean_line(text: object, most: int) -> str:
    """The same in one line."""
    return " ".join(clean(text, 4 * most).split())[:most].rstrip()
