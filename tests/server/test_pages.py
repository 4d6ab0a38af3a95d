"""What a page may do in a browser: run its own script and style, and nothing that got into it."""

from typing import TYPE_CHECKING

import pytest

from server import pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

ADDRESS = "http://127.0.0.1:9/page"
"""Nobody listens there: the browser is given the answers."""
PAGE = """<!doctype html><title>-</title><style>body { color: rgb(1, 2, 3) }</style><body><script>
document.title += " own";
const add = (name, set) => document.body.append(Object.assign(document.createElement(name), set));
add("div", { innerHTML: `<img src="data:," onerror="document.title += ' handler'"><b style="color: red">bold</b>` });
add("script", { text: "document.title += ' inline'" });
add("script", { src: "/other.js" });
add("iframe", { srcdoc: "<script>parent.document.title += ' frame'<\\/script>" });
</script>"""


def test_only_the_script_and_style_of_the_page_itself_act(chromium: "Browser", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "html", lambda name: PAGE)
    response = pages.page("any")
    sent: list[str] = []

    def other(route: "Route") -> None:
        sent.append(route.request.url)
        route.fulfill(body="document.title += ' other'", headers={"Access-Control-Allow-Origin": "*"})

    with chromium.new_context() as context:
        headers = {name: value for name, value in response.headers.items() if name != "content-length"}
        context.route("**/*", other)
        context.route(ADDRESS, lambda route: route.fulfill(body=bytes(response.body), headers=headers))
        page = context.new_page()
        page.goto(ADDRESS)
        assert page.evaluate("fetch('http://127.0.0.1:10/').then(() => 'sent', () => 'refused')") == "refused"
        assert page.title() == "- own"
        for element in ("body", "b"):
            assert page.evaluate(f"getComputedStyle(document.querySelector('{element}')).color") == "rgb(1, 2, 3)"
    assert sent == []
