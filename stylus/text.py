"""Text from strangers -> text that is safe to store, show and embed: no markup, no control characters, no endless
length."""

import re
import unicodedata
from html.parser import HTMLParser

_READ = 1_000_000
"""Characters of a text that are looked at; the rest of a longer one is dropped before any work is done on it."""

_SILENT = {"script", "style", "template", "noscript"}
_BREAKS = {"p", "br", "div", "li", "ul", "ol", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "hr"}
_TAG = re.compile(r"<[a-zA-Z/!][^<>]{0,2000}>|&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|\w{2,24});")


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in _SILENT
        if tag in _BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in _SILENT and self._silent > 0
        if tag in _BREAKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def clean(text: object, most: int) -> str:
    """At most `most` characters of plain text over several lines; "" for what is no text."""
    if not isinstance(text, str):
        return ""
    text = text[: min(_READ, 50 * most)]
    # `<lora:star:0.8>` is no markup: it is a prompt's way to name an adapter.
    if _TAG.search(text.replace("<lora:", "").replace("<lyco:", "")):
        parser = _Words()
        parser.feed(re.sub(r"<(lora|lyco):", r"&lt;\1:", text))
        parser.close()
        text = "".join(parser.parts)
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " "))
    # Cc, Cf (which reverse or hide text), Cs (half characters), Co and Cn, but not the joiners of emoji and of scripts.
    kept = "".join(c for c in text if c in "\n\u200c\u200d" or unicodedata.category(c)[0] != "C")
    lines = (" ".join(line.split()) for line in kept.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()[:most].rstrip()


def clean_line(text: object, most: int) -> str:
    """The same in one line."""
    return " ".join(clean(text, 4 * most).split())[:most].rstrip()
