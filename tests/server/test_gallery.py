"""The gallery in a real browser, on a real server that draws with the pocket model: as a page, and as an MCP App in a
host of our own. `pytest --basetemp=DIR` leaves the screenshots below DIR, to be looked at."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from mcp.types import BlobResourceContents, TextResourceContents

from stylus.catalog import Catalog
from stylus.database import Database
from stylus.embedded_postgres import EmbeddedPostgres
from stylus.embedder import Embedder
from stylus.ingest import ingest_pocket
from tests.server import world
from tests.server.conftest import PATIENCE, Session, filled_database, http_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, FrameLocator, Page, Route

QUICK: dict[str, Any] = {"steps": 4, "seed": 7}
ATTACK = "<img src=x onerror=\"document.title='attacked'\">"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gallery")


@pytest.fixture(scope="module")
def pocket(postgres: EmbeddedPostgres, template: str, embedder: Embedder, folder: Path) -> Iterator[str]:
    with filled_database(postgres, template, [], embedder) as url:
        with Database(url) as database:
            ingest_pocket(Catalog(database), embedder)
        environment = world.environment(url, folder, folder / "data")
        del environment["STYLUS_CHECKPOINTS"]
        with http_server(environment) as origin:
            yield origin


@pytest.fixture(scope="module", params=["auto", "legacy"])
def client(request: pytest.FixtureRequest, pocket: str) -> Iterator[Session]:
    session = Session(f"{pocket}/mcp", request.param)
    yield session
    session.close()


@pytest.fixture(scope="module")
def agent(pocket: str) -> Iterator[Session]:
    """Who draws what the browser then shows."""
    session = Session(f"{pocket}/mcp", "auto")
    yield session
    session.close()


@pytest.fixture(scope="module")
def star(agent: Session) -> dict[str, Any]:
    """A picture of a star with its adapter."""
    return drawn(agent, prompt="a red star", adapters=[{"id": "pocket:star", "weight": 1.0, "task": ATTACK}], **QUICK)


@pytest.fixture
def page(chromium: "Browser", request: pytest.FixtureRequest) -> "Iterator[Page]":
    """A page on which no script fails, and no word of a prompt becomes one."""
    scheme: Any
    scheme, width = getattr(request, "param", ("light", 1200))
    problems: list[str] = []

    def on_console(message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            problems.append(message.text)

    with chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}) as context:
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        page.on("console", on_console)
        page.on("pageerror", lambda error: problems.append(str(error)))
        yield page
        assert page.title() != "attacked"
    assert problems == []


def drawn(session: Session, **arguments: Any) -> dict[str, Any]:
    """The answer of generate_image once it is done: the first picture of all takes long on a busy machine."""
    result = session.call("generate_image", **arguments)
    while True:
        assert not result.is_error, result.content
        answer: dict[str, Any] = json.loads(result.content[0].text)
        if answer["status"] != "running":
            return answer
        result = session.call("job", id=answer["job_id"])


def listed(session: Session, query: str = "") -> dict[str, Any]:
    [content] = session.run(lambda client: client.read_resource(f"stylus://images{query}")).contents
    assert isinstance(content, TextResourceContents)
    found: dict[str, Any] = json.loads(content.text)
    return found


def id_of(made: dict[str, Any]) -> str:
    return str(made["images"][0]["uri"]).rpartition("/")[2]


def test_an_entry_says_what_made_a_picture_and_how_to_draw_it_again(client: Session, star: dict[str, Any]) -> None:
    [entry] = [entry for entry in listed(client)["images"] if entry["id"] == id_of(star)]
    assert entry["prompt"] == "a red star"
    assert entry["adapters"] == {"pocket:star": 1.0}
    [task] = entry["tasks"]
    assert (task["keyword"], task["adapters"][0]["reason"]) == (ATTACK, "chosen by the caller")
    again = drawn(client, **entry["again"])
    assert again["composition_id"] == star["composition_id"]
    assert Path(again["images"][0]["path"]).read_bytes() == Path(star["images"][0]["path"]).read_bytes()
    control = drawn(client, **entry["again"], masks="none")
    alike = listed(client, f"?like={id_of(star)}")["images"]
    assert alike[0] == entry
    assert {id_of(again), id_of(control)} <= {other["id"] for other in alike}


def test_a_picture_that_began_with_another_can_be_drawn_again(client: Session, star: dict[str, Any]) -> None:
    made = drawn(client, prompt="a moon", adapters=[], image=id_of(star), strength=0.5, **QUICK)
    [entry] = listed(client, f"?like={id_of(made)}")["images"][:1]
    again = drawn(client, **entry["again"])
    assert Path(again["images"][0]["path"]).read_bytes() == Path(made["images"][0]["path"]).read_bytes()


def test_thumbnails_are_small(client: Session, star: dict[str, Any]) -> None:
    [content] = client.run(lambda client: client.read_resource(f"stylus://thumbnails/{id_of(star)}")).contents
    assert isinstance(content, BlobResourceContents)
    assert content.mime_type == "image/webp"
    assert len(content.blob) < 20_000


def test_hosts_find_the_app_and_others_notice_nothing(client: Session) -> None:
    tools = client.run(lambda client: client.list_tools()).tools
    assert [(tool.name, tool.meta) for tool in tools if tool.meta] == [
        ("generate_image", {"ui": {"resourceUri": "ui://stylus/gallery"}})
    ]
    [content] = client.run(lambda client: client.read_resource("ui://stylus/gallery")).contents
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == "text/html;profile=mcp-app"
    assert content.meta == {"ui": {"prefersBorder": True}}
    assert "http:" not in content.text
    assert "https:" not in content.text


def test_the_page_itself_holds_nothing_and_may_do_little(pocket: str) -> None:
    answer = httpx.get(f"{pocket}/gallery")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "innerHTML" not in answer.text
    assert httpx.post(f"{pocket}/gallery").status_code == 405


@pytest.mark.parametrize("page", [("light", 1200), ("dark", 390)], indirect=True, ids=["light", "dark-phone"])
def test_a_weight_is_changed_and_drawn_again_by_keyboard(
    page: "Page", pocket: str, star: dict[str, Any], tmp_path: Path
) -> None:
    page.goto(f"{pocket}/gallery")
    page.locator("#grid img").first.wait_for()
    page.screenshot(path=tmp_path / "grid.png")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.parentElement === document.querySelector('#grid').firstChild")
    for _ in range(100):
        if page.evaluate("document.activeElement.dataset.id") == id_of(star):
            break
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="a red star", exact=True).wait_for()
    page.get_by_text(ATTACK).wait_for()

    slider = page.get_by_role("slider")
    assert slider.input_value() == "1"
    assert page.get_by_role("button", name="Render again").is_disabled()
    slider.focus()
    step = "ArrowRight" if page.evaluate("matchMedia('(prefers-color-scheme: light)').matches") else "ArrowLeft"
    for _ in range(10):
        slider.press(step)
    weight = slider.input_value()
    assert page.locator("output").text_content() == f"1.00 → {float(weight):.2f}"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("Done").wait_for()
    beside = page.get_by_role("button", name=f"Open the picture with Star shapes v2 {weight}")
    beside.locator("img").wait_for()
    shown = page.locator("figure img").evaluate_all("images => images.map(image => image.src)")
    assert len(set(shown)) == 2
    page.locator("figure img").last.evaluate("image => image.decode()")
    page.screenshot(path=tmp_path / "detail.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    beside.focus()
    page.keyboard.press("Enter")
    page.get_by_text(f"{float(weight):.2f}", exact=True).wait_for()
    page.keyboard.press("Escape")
    page.locator("#grid button:focus").wait_for()
    assert page.evaluate("document.activeElement.dataset.id") != id_of(star)


def test_the_control_is_drawn_where_there_is_none(page: "Page", pocket: str, agent: Session) -> None:
    made = drawn(agent, prompt="a blue heart", adapters=[{"id": "pocket:heart"}], **QUICK)
    page.goto(f"{pocket}/gallery")
    page.locator(f"[data-id='{id_of(made)}']").click()
    page.get_by_role("button", name="Draw it without adapters").click()
    page.get_by_role("status").get_by_text("Done").wait_for()
    page.get_by_role("button", name="Open the picture with no adapters").locator("img").wait_for()
    assert not page.get_by_role("button", name="Draw it without adapters").count()


def test_a_picture_under_way_is_cancelled(page: "Page", pocket: str, star: dict[str, Any], agent: Session) -> None:
    made = drawn(agent, composition_id=star["composition_id"], **QUICK, size="64x64")
    page.goto(f"{pocket}/gallery")
    page.route("**/mcp", lambda route: route.continue_(post_data=slowed(route)))
    page.locator(f"[data-id='{id_of(made)}']").click()
    page.get_by_role("slider").press("ArrowLeft")
    page.get_by_role("button", name="Render again").click()
    page.get_by_text("generating").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("status").get_by_text("Cancelled.").wait_for()
    assert page.get_by_role("button", name="Render again").is_enabled()
    drawn(agent, composition_id=star["composition_id"], **QUICK)  # the worker is free again


def slowed(route: "Route") -> str:
    """The request with so many steps that there is time to cancel it."""
    body: dict[str, Any] = json.loads(route.request.post_data or "{}")
    if body["params"].get("name") == "generate_image":
        body["params"]["arguments"] |= {"steps": 200}
    return json.dumps(body)


def test_a_token_is_asked_for_and_stays_in_the_tab(chromium: "Browser", tmp_path: Path) -> None:
    environment = world.environment("postgresql://127.0.0.1:1/none", tmp_path, tmp_path)
    with http_server(environment | {"STYLUS_TOKENS": "right"}) as origin, chromium.new_context() as context:
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        page.goto(f"{origin}/gallery")
        for token, said in (("wrong", "does not know this token"), ("right", "database")):
            page.get_by_label("Token").fill(token)
            page.keyboard.press("Enter")
            page.get_by_role("status").get_by_text(said).wait_for()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert page.evaluate("sessionStorage.token") == "right"


HOST = """<!doctype html><title>Host</title><body><script>
const frame = document.createElement("iframe");
frame.sandbox = "allow-scripts";
frame.src = "/view";
frame.style.width = "100%";
window.heard = [];
window.post = (message) => frame.contentWindow.postMessage({ jsonrpc: "2.0", ...message }, "*");
addEventListener("message", async ({ source, data: { id, method, params, result } }) => {
  if (source !== frame.contentWindow) return;
  heard.push(method ?? result);
  if (method === "ui/initialize") {
    const hostContext = { theme: "dark", styles: { variables: { "--color-background-primary": "rgb(1, 2, 3)" } } };
    post({ id, result: { protocolVersion: params.protocolVersion, hostInfo: {}, hostCapabilities: {}, hostContext } });
  } else if (method === "ui/notifications/initialized") {
    post({ method: "ui/notifications/tool-input", params: { arguments: {} } });
    post({ method: "ui/notifications/tool-result", params: await bridge("result", {}) });
  } else if (method === "ui/notifications/size-changed") {
    frame.style.height = `${params.height}px`;
  } else if (id !== undefined) {
    bridge(method, params).then((result) => post({ id, result }), ({ message }) => post({ id, error: { message } }));
  }
});
document.body.append(frame);
</script>"""
"""A host as SEP-1865 wants it: it passes on what the app asks, and tells it theme, size and the tool's result."""

POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "media-src 'self' data:; connect-src 'none'"
)
"""What a host must set for an app that declares no domains."""


def test_the_same_page_as_an_app_inside_a_host(
    page: "Page", pocket: str, agent: Session, star: dict[str, Any], tmp_path: Path
) -> None:
    first = agent.call("generate_image", composition_id=star["composition_id"], **QUICK)
    [html] = agent.run(lambda client: client.read_resource("ui://stylus/gallery")).contents
    assert isinstance(html, TextResourceContents)

    def bridge(method: str, params: dict[str, Any]) -> Any:
        if method == "result":
            return first.model_dump(mode="json", by_alias=True, exclude_none=True)
        if method == "tools/call":
            result: Any = agent.call(params["name"], **params["arguments"])
        else:
            assert method == "resources/read"
            result = agent.run(lambda client: client.read_resource(params["uri"]))
        return result.model_dump(mode="json", by_alias=True, exclude_none=True)

    page.expose_function("bridge", bridge)
    page.route("**/host", lambda route: route.fulfill(body=HOST, content_type="text/html"))
    headers = {"Content-Security-Policy": POLICY, "Content-Type": "text/html"}
    page.route("**/view", lambda route: route.fulfill(body=html.text, headers=headers))
    page.goto(f"{pocket}/host")
    app: FrameLocator = page.frame_locator("iframe")
    app.get_by_role("heading", name="a red star", exact=True).wait_for()
    assert app.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(1, 2, 3)"
    assert app.locator(":root").evaluate("root => getComputedStyle(root).colorScheme") == "dark"

    slider = app.get_by_role("slider")
    for _ in range(15):
        slider.press("ArrowRight")
    weight = slider.input_value()
    app.get_by_role("button", name="Render again").click()
    app.get_by_role("status").get_by_text("Done").wait_for()
    app.get_by_role("button", name=f"Open the picture with Star shapes v2 {weight}").locator("img").wait_for()
    fits = "root => Math.abs(root.scrollHeight - innerHeight) <= 1"
    page.wait_for_timeout(200)
    assert app.locator(":root").evaluate(fits)
    page.screenshot(path=tmp_path / "app.png", full_page=True)

    page.evaluate("post({ method: 'ui/notifications/host-context-changed', params: { theme: 'light' } })")
    page.evaluate("post({ id: 'end', method: 'ui/resource-teardown', params: {} })")
    page.wait_for_function("JSON.stringify(heard.at(-1)) === '{}'")
    assert app.locator(":root").evaluate("root => getComputedStyle(root).colorScheme") == "light"
