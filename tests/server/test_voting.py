"""The voting page in a real Chromium, on a real server with Postgres: blind, fair, by keys and by thumb.

`pytest --basetemp=DIR` leaves the screenshots below DIR, to be looked at."""

import csv
import io
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from PIL import Image, ImageDraw

from server.voting import build
from stylus.database import Database
from stylus.errors import InvalidInput
from stylus.evaluation.ledger import Ledger
from stylus.evaluation.pairs import pairs_of
from stylus.evaluation.poll import Poll
from stylus.evaluation.votes import Votes
from stylus.settings import Settings
from tests import COMMAND
from tests.evaluation.painted import evaluation
from tests.server.conftest import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PHONE = {"width": 390, "height": 844}
PROMPTS = (
    "a red heart on a checkerboard background",
    "a blue star",
    "a <b>golden</b> crown & a fish, in the style of a children's book, with a very long description that goes on",
    "a green fish",
)


def scene(arm: str, prompt: int, index: int) -> Image.Image:
    """`stylus` draws what was asked on a background, `base` a grey thing on grey; of the last prompt both the same."""
    picture = Image.new("RGB", (64, 64), "#8a8f98")
    draw = ImageDraw.Draw(picture)
    if arm == "stylus" or prompt == 3:
        draw.rectangle((0, 32, 64, 64), fill="#d8c9a5")
        draw.ellipse((14, 12, 50, 50), fill=("#c33", "#36c", "#db3", "#3a5")[prompt])
    else:
        draw.ellipse((20, 20 + index, 44, 44 + index), fill="#6c717a")
    return picture


class Poller:
    """The server in a thread, and what it keeps."""

    def __init__(self, database: Database, ledger: Ledger, token: str | None) -> None:
        self.votes = Votes(database)
        self.poll = Poll.of(pairs_of(ledger, ["stylus", "base"]), self.votes.seed(ledger.id))
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self.app = build(self.poll, self.votes, "127.0.0.1", self.port, token)

    def winner(self, ballot: int, voter: str) -> str:
        """The key by which this voter prefers `stylus` on the nth pair."""
        (left, _), _ = self.poll.sides(voter, self.poll.ballots[ballot])
        return "ArrowLeft" if left == "stylus" else "ArrowRight"

    def given(self) -> list[tuple[str, str, str | None]]:
        return [(vote.voter, vote.choice, vote.winner) for vote in self.votes.on(self.poll.by_id.keys())]


@contextmanager
def served(database: Database, ledger: Ledger, token: str | None = None) -> Iterator[Poller]:
    poller = Poller(database, ledger, token)
    server = uvicorn.Server(uvicorn.Config(poller.app, port=poller.port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield poller
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def ledger(database: Database, tmp_path: Path) -> Ledger:
    return evaluation(database, tmp_path / "evaluation", scene, prompts=PROMPTS)


@pytest.fixture
def poller(database: Database, ledger: Ledger) -> Iterator[Poller]:
    with served(database, ledger) as poller:
        yield poller


@contextmanager
def opened(browser: "Browser", **options: Any) -> "Iterator[tuple[BrowserContext, Page, list[str]]]":
    """A page, and what went wrong on it."""
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        yield context, page, wrong


def enter(page: "Page", origin: str, name: str) -> None:
    page.goto(origin)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    ready(page, 0)


def ready(page: "Page", done: int) -> None:
    page.get_by_text(re.compile(f"^{done} of ")).wait_for()
    page.wait_for_selector("#choices button:enabled >> nth=0")


def test_by_keys_from_the_first_pair_to_the_results(poller: Poller, chromium: "Browser", tmp_path: Path) -> None:
    with opened(chromium, viewport={"width": 1280, "height": 800}) as (_, page, wrong):
        page.goto(poller.origin)
        page.get_by_label("Your name").wait_for()
        page.screenshot(path=tmp_path / "enter.png")
        enter(page, poller.origin, " Ann  Lee ")
        page.screenshot(path=tmp_path / "pair.png")
        for done, key in enumerate(
            [poller.winner(0, "Ann Lee"), poller.winner(1, "ann lee"), "ArrowDown", "s"], start=1
        ):
            page.keyboard.press(key)
            ready(page, done)
        assert [winner for _, _, winner in poller.given()] == ["stylus", "stylus", None, None]
        assert [choice for _, choice, _ in poller.given()][2:] == ["tie", "skip"]
        page.keyboard.press("z")
        ready(page, 3)
        assert len(poller.given()) == 3, "undone"
        for done in (4, 5):
            page.keyboard.press(poller.winner(done - 1, "Ann Lee"))
            ready(page, done)
        page.keyboard.press("ArrowLeft")
        page.get_by_text("That was the last one").wait_for()
        page.screenshot(path=tmp_path / "end.png")
        page.get_by_role("link", name="See the results").click()
        page.get_by_text("of decided pairs").wait_for()
        page.screenshot(path=tmp_path / "results.png")
        assert "stylus over base" in page.inner_text("#standings")
        assert "2 more have the same pixels" in page.inner_text("#facts")
        assert wrong == []


def test_by_thumb_on_a_phone_in_the_dark(poller: Poller, chromium: "Browser", tmp_path: Path) -> None:
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2, "color_scheme": "dark"}
    with opened(chromium, **phone) as (_, page, wrong):
        page.goto(poller.origin)
        page.get_by_label("Your name").wait_for()
        page.screenshot(path=tmp_path / "phone-enter.png")
        enter(page, poller.origin, "Bea")
        page.screenshot(path=tmp_path / "phone-pair.png")
        boxes = [
            button.bounding_box()
            for button in page.query_selector_all("#pictures button, #choices button, #skip, #undo")
        ]
        for box in boxes:
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE["width"]
            assert box["y"] + box["height"] <= PHONE["height"], "all is in reach without scrolling"
            assert min(box["width"], box["height"]) >= 30
        assert boxes[0]
        assert boxes[1]
        assert boxes[1]["y"] > boxes[0]["y"] + 200, "one above the other"
        assert page.get_by_role("button", name="Upper").is_visible()
        page.tap("#pictures [data-choice=left]")
        ready(page, 1)
        page.tap("#choices [data-choice=tie]")
        ready(page, 2)
        page.tap("#undo")
        ready(page, 1)
        assert [(voter, choice) for voter, choice, _ in poller.given()] == [("Bea", "left")]
        page.goto(f"{poller.origin}/#results")
        page.get_by_text("stylus over base").wait_for()
        page.screenshot(path=tmp_path / "phone-results.png", full_page=True)
        page.set_viewport_size({"width": 844, "height": 390})
        page.goto(f"{poller.origin}/#")
        ready(page, 1)
        count, skip = (page.locator(name).bounding_box() for name in ("#count", "#skip"))
        assert count
        assert skip
        assert count["x"] + count["width"] < skip["x"], "nothing lies on something else"
        page.screenshot(path=tmp_path / "phone-sideways.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= 844
        assert wrong == []


def test_the_page_goes_on_after_a_reload_and_tells_what_fails(poller: Poller, chromium: "Browser") -> None:
    with opened(chromium) as (context, page, _):
        enter(page, poller.origin, "Cem")
        page.keyboard.press("ArrowLeft")
        ready(page, 1)
        page.reload()
        ready(page, 1)
        assert page.inner_text("#who") == "Cem"
        prompt = page.inner_text("#prompt")
        context.set_offline(True)
        page.keyboard.press("ArrowRight")
        page.get_by_text("The server can't be reached").wait_for()
        assert (page.inner_text("#prompt"), len(poller.given())) == (prompt, 1)
        context.set_offline(False)
        page.keyboard.press("ArrowRight")
        ready(page, 2)
        assert not page.is_visible("#status")
        context.route("**/pictures/**", lambda route: route.abort())
        page.reload()
        page.get_by_text("can't be shown: skip it").wait_for()
        page.keyboard.press("ArrowLeft")
        assert len(poller.given()) == 2, "what can't be seen can't be judged"
        page.keyboard.press("s")
        page.get_by_text("3 of 6").wait_for()
        assert poller.given()[2][1] == "skip"


def test_a_prompt_is_text_and_a_held_key_is_one_vote(poller: Poller, chromium: "Browser") -> None:
    with opened(chromium) as (_, page, wrong):
        enter(page, poller.origin, "<img src=x onerror=alert(1)>")
        seen = set()
        for done in range(6):
            ready(page, done)
            seen.add(page.inner_text("#prompt"))
            if done < 5:
                page.evaluate(
                    "for (const repeat of [false, true, true])"
                    "  dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', repeat}))"
                )
        assert seen == set(PROMPTS[:3])
        assert len(poller.given()) == 5
        assert page.inner_text("#who") == "<img src=x onerror=alert(1)>"
        assert wrong == []


def test_nothing_tells_the_arm(poller: Poller) -> None:
    with httpx.Client(base_url=poller.origin) as client:
        sides: Counter[bool] = Counter()
        for voter in ("Ann", "Bea", "Cem"):
            asked = client.get("/ballots", params={"voter": voter})
            assert not re.search("stylus|base|arm|seed|index|left|right", asked.text.lower().replace('"ballot"', ""))
            for ballot in poller.poll.ballots:
                pictures = []
                for side in (0, 1):
                    answer = client.get(f"/pictures/{ballot.id}/{side}", params={"voter": voter})
                    assert not re.search("stylus|base", str(answer.headers).lower().replace(poller.origin, ""))
                    with Image.open(io.BytesIO(answer.content)) as picture:
                        assert (picture.format, picture.info) == ("PNG", {})
                        pictures.append(picture.tobytes())
                    assert b"tEXt" not in answer.content
                    assert b"iTXt" not in answer.content
                expected = [Image.open(path).convert("RGB").tobytes() for _, path in poller.poll.sides(voter, ballot)]
                assert pictures == expected
                sides[poller.poll.sides(voter, ballot)[0][0] == "stylus"] += 1
        assert min(sides.values()) > 0
        assert client.get(f"/pictures/{poller.poll.ballots[0].id}/2", params={"voter": "Ann"}).status_code == 404


def test_several_voters_an_export_and_what_they_agree_on(poller: Poller) -> None:
    with httpx.Client(base_url=poller.origin) as client:
        for voter, choose in (("Ann", "stylus"), ("Bea", "stylus"), ("=Cem()", "base")):
            for ballot in poller.poll.ballots[:4]:
                (left, _), _ = poller.poll.sides(voter, ballot)
                cast = {"voter": voter, "ballot": ballot.id, "choice": "left" if left == choose else "right"}
                assert client.post("/votes", json=cast).status_code == 200
                assert client.post("/votes", json=cast | {"choice": "tie"}).json()["done"] <= 4, "the first one stands"
        found = client.get("/results").json()
        [standing] = found["standings"]
        assert (standing["arms"], standing["votes"]["wins"], standing["votes"]["losses"]) == (["stylus", "base"], 8, 4)
        assert standing["pairs"] == {"wins": 4, "ties": 0, "losses": 0}, "most of each pair's voters"
        assert standing["preferred"]["value"] == 1.0
        assert 0.5 < standing["preferred"]["low"] < 0.55
        assert found["same"] == pytest.approx(1 / 3)
        assert found["agreement"] == pytest.approx(1 - (4 / 3) / (12 * (8 / 12) * (4 / 12) * 4 / 11))
        rows = list(csv.DictReader(io.StringIO(client.get("/votes.csv").text)))
        assert len(rows) == 12
        assert {(row["voter"], row["winner"]) for row in rows} == {
            ("Ann", "stylus"),
            ("Bea", "stylus"),
            ("'=Cem()", "base"),
        }
        assert all(row[row["choice"]] == row["winner"] for row in rows)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"headers": {"Origin": "http://evil.example"}}, 403),
        ({"headers": {"Host": "evil.example"}}, 421),
        ({"headers": {"Content-Type": "text/plain"}}, 400),
        ({"content": b"{" + b" " * 5000 + b"}"}, 400),
        ({"json": {"voter": "Ann", "ballot": "0" * 32, "choice": "left"}}, 404),
        ({"json": {"voter": "Ann", "ballot": "B", "choice": "both"}}, 400),
        ({"json": {"voter": " ", "ballot": "B", "choice": "left"}}, 400),
        ({"json": {"voter": "A\x00nn", "ballot": "B", "choice": "left"}}, 400),
        ({"json": {"voter": "Ann", "ballot": "B", "choice": "left", "arm": "stylus"}}, 400),
    ],
)
def test_what_is_no_vote_is_refused(poller: Poller, sent: dict[str, Any], status: int) -> None:
    body = {} if "content" in sent or "json" in sent else {"content": b"{}"}
    headers = {"Content-Type": "application/json"} | sent.get("headers", {})
    answer = httpx.post(f"{poller.origin}/votes", **{**body, **sent, "headers": headers})
    assert answer.status_code == status
    assert "Traceback" not in answer.text
    assert poller.given() == []


def test_another_address_needs_the_link_once(database: Database, ledger: Ledger, chromium: "Browser") -> None:
    with served(database, ledger, token="secret-of-the-link") as poller, opened(chromium) as (context, page, _):  # noqa: S106
        for path in (
            "/",
            "/ballots?voter=Ann",
            "/votes.csv",
            "/results",
            "/?token=wrong",
            "/results?token=secret-of-the-link",
        ):
            assert httpx.get(poller.origin + path).status_code == 403
        assert httpx.post(f"{poller.origin}/votes", json={}).status_code == 403
        enter(page, f"{poller.origin}/?token=secret-of-the-link", "Ann")
        assert page.url == f"{poller.origin}/", "the address bar forgets the token"
        [cookie] = context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
        page.keyboard.press("ArrowLeft")
        ready(page, 1)


def test_all_pairs_of_several_arms_and_every_prompt_before_its_second_picture(
    database: Database, tmp_path: Path
) -> None:
    ledger = evaluation(database, tmp_path / "three", arms=("base", "stylus", "random"))
    votes = Votes(database)
    poll = Poll.of(pairs_of(ledger, ["stylus", "base", "random"]), votes.seed(ledger.id))
    assert (len(poll.ballots), poll.identical) == (18, 6)
    assert Counter(ballot.arms for ballot in poll.ballots[:9]) == {
        ("stylus", "base"): 3,
        ("stylus", "random"): 3,
        ("base", "random"): 3,
    }
    assert len({(ballot.arms, ballot.prompt) for ballot in poll.ballots[:9]}) == 9
    again = Poll.of(pairs_of(ledger, ["base", "stylus", "random"]), votes.seed(ledger.id))
    for ballot in poll.ballots:
        other = again.by_id[ballot.id]
        assert poll.sides("Ann", ballot) == again.sides("ann", other), "whichever order the arms are named in"
    voters = [f"voter {n}" for n in range(200)]
    left = sum(poll.sides(voter, ballot)[0][0] == ballot.arms[0] for voter in voters for ballot in poll.ballots)
    assert 0.47 < left / (200 * 18) < 0.53


def test_where_nothing_differs_nobody_is_asked(database: Database, tmp_path: Path) -> None:
    ledger = evaluation(database, tmp_path / "same", lambda arm, prompt, index: Image.new("RGB", (8, 8)))
    with pytest.raises(InvalidInput, match="8 pairs have the same pixels"):
        Poll.of(pairs_of(ledger, ["stylus", "base"]), 1)


def test_the_command_serves_exports_and_shows(
    settings: Settings, database: Database, ledger: Ledger, tmp_path: Path
) -> None:
    assert settings.database_url is not None
    environment = {
        "STYLUS_DATABASE_URL": settings.database_url.get_secret_value(),
        "STYLUS_DATA": str(settings.data),
        "PATH": "",
    }
    command = [*COMMAND, "vote", str(ledger.folder)]
    with subprocess.Popen([*command, "--port", "0"], env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        link = next(found[1] for line in process.stderr if (found := re.match("Vote at (.*)", line)))
        state = httpx.get(f"{link}ballots", params={"voter": "Ann"}).json()
        cast = {"voter": "Ann", "ballot": state["next"][0]["ballot"], "choice": "tie"}
        assert httpx.post(f"{link}votes", json=cast).json()["done"] == 1
        process.terminate()
        process.wait(20)
    shown = subprocess.run(
        [*command, "--export", str(tmp_path / "votes.csv"), "--results"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "stylus over base" in shown.stdout
    assert (tmp_path / "votes.csv").read_text().count("\n") == 2
