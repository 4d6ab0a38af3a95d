"""Pages that the server hands out. Each is one HTML file with its style and its script inside; it loads nothing else,
and a Content-Security-Policy with the hashes of these two lets nothing else run (CSP level 3, W3C)."""

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import HTMLResponse

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def html(name: str) -> str:
    """The page of that name as it stands in this folder."""
    return files(__name__).joinpath(f"{name}.html").read_text(encoding="utf-8")


def page(name: str) -> HTMLResponse:
    """The same for a browser. The page may talk to its own server only, and nobody may frame it."""
    content = html(name)
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(content):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(content, headers=headers)
