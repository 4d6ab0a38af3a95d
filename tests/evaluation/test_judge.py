"""The vision model as judge against a real server that looks at the pixels: fair, blind, and paid for once."""

import asyncio
import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic_ai.models
import pytest
from PIL import Image, ImageStat
from typer.testing import CliRunner

from stylus.asking import MOST_FAILURES
from stylus.cli import app
from stylus.database import Database
from stylus.errors import Busy, Cancelled, InvalidInput, ModelUnavailable, NotFound
from stylus.evaluation.judge import JudgeReport, Options, judge
from stylus.evaluation.judgements import Judgements
from stylus.evaluation.ledger import Ledger
from stylus.evaluation.pairs import Pair, pairs_of
from stylus.evaluation.preference import Outcome, Tally
from stylus.records import Progress
from stylus.refiner import open_vision
from stylus.settings import Settings
from tests.evaluation.painted import evaluation
from tests.fakes import Answer, ChatServer

MODEL = "openai-chat:fake"
ARMS = ("stylus", "base")


def parts(asked: dict[str, Any]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = asked["messages"][-1]["content"]
    return content


def sets(asked: dict[str, Any]) -> tuple[list[Image.Image], list[Image.Image]]:
    """The pictures as the server decodes them: of the first set, and of the second."""
    found: tuple[list[Image.Image], list[Image.Image]] = ([], [])
    which = 0
    for part in parts(asked):
        if part["type"] == "text":
            which = 1 if "second set" in part["text"] else 0
        else:
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            found[which].append(Image.open(io.BytesIO(data)))
    return found


def verdicts(asked: dict[str, Any], better: str) -> Answer:
    aspects = asked["tools"][0]["function"]["parameters"]["required"]
    return Answer({aspect: {"reason": f"the {better} one is redder", "better": better} for aspect in aspects})


def sees_red(asked: dict[str, Any]) -> Answer:
    """A judge that likes red, wherever it stands."""
    first, second = (sum(ImageStat.Stat(picture).mean[0] for picture in pictures) for pictures in sets(asked))
    return verdicts(asked, "tie" if abs(first - second) < 4 else "first" if first > second else "second")


def likes_the_first(asked: dict[str, Any]) -> Answer:
    return verdicts(asked, "first")


async def at_once(_: float) -> None:
    await asyncio.sleep(0)


class Court:
    def __init__(self, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database, self.folder, self.monkeypatch = database, folder, monkeypatch

    def judge(self, server: ChatServer, pairs: list[Pair], **options: Any) -> JudgeReport:
        self.monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        progress = options.pop("on_progress", None)
        model = open_vision(Settings.model_validate({"vision": MODEL}))
        judgements = Judgements(self.database)
        return judge(judgements, model, pairs, Options(**options), progress, name=MODEL, sleep=at_once)

    def pairs(self, **options: Any) -> list[Pair]:
        return pairs_of(evaluation(self.database, self.folder, **options), ARMS)


@pytest.fixture
def court(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Court:
    monkeypatch.setattr(pydantic_ai.models, "ALLOW_MODEL_REQUESTS", True)  # loopback models count as paid ones
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return Court(database, tmp_path / "evaluation", monkeypatch)


# --- What it says ---


def test_the_redder_arm_wins_in_both_orders_and_the_same_pictures_tie_unasked(court: Court) -> None:
    with ChatServer(sees_red) as server:
        report = court.judge(server, court.pairs())
        assert len(server.requests) == 6, "three prompts in both orders; of the fourth the pictures are the same"
    assert list(report.aspects) == ["alignment", "quality", "diversity"]
    assert (report.arms, report.identical, report.failed) == (ARMS, 1, ())
    for found in report.aspects.values():
        assert found.tally == Tally(wins=3, ties=1)
        assert found.preferred is not None
        assert found.first is not None
        assert (found.win.value, found.agreed.value, found.first.value) == (0.75, 1.0, 0.5)
        assert found.win.low == pytest.approx(0.3006, abs=1e-4)
    star = next(one for one in report.judged if one.prompt == "a star").opinions["quality"]
    assert star.reasons == ("the first one is redder", "the second one is redder")


def test_the_arms_the_other_way_round_lose_by_the_same_replies(court: Court) -> None:
    pairs = court.pairs()
    swapped = [Pair(pair.prompt, pair.arms[::-1], pair.pictures[::-1]) for pair in pairs]
    with ChatServer(sees_red) as server:
        court.judge(server, pairs)
        report = court.judge(server, swapped)
    assert (report.usage.requests, report.kept) == (0, 6)
    assert report.aspects["quality"].tally == Tally(losses=3, ties=1)


def test_a_judge_that_likes_the_first_place_decides_nothing(court: Court) -> None:
    with ChatServer(likes_the_first) as server:
        report = court.judge(server, court.pairs())
    for found in report.aspects.values():
        assert found.tally == Tally(ties=4)
        assert found.first is not None
        assert found.first.value == 1.0, "and the report shows its bias"
        assert found.agreed.value == 0.25


def test_a_preference_in_one_order_only_is_a_tie(court: Court) -> None:
    """It sees red only in the first set: the other order is a tie."""

    def half_blind(asked: dict[str, Any]) -> Answer:
        first = ImageStat.Stat(sets(asked)[0][0]).mean[0]
        return verdicts(asked, "first" if first > 150 else "tie")

    with ChatServer(half_blind) as server:
        report = court.judge(server, court.pairs())
    assert report.aspects["quality"].tally == Tally(ties=4)
    assert {one.opinions["quality"].outcome for one in report.judged} == {Outcome.TIE}


def test_of_single_pictures_nobody_asks_for_diversity(court: Court) -> None:
    with ChatServer(sees_red) as server:
        report = court.judge(server, court.pairs(images=1))
    assert list(report.aspects) == ["alignment", "quality"]
    assert "diversity" not in json.dumps(server.requests[0])


# --- What it must not know ---


def test_nothing_tells_the_arm(court: Court) -> None:
    with ChatServer(sees_red) as server:
        court.judge(server, court.pairs())
    for asked in server.requests:
        content = parts(asked)
        text = json.dumps([part for part in content if part["type"] == "text"]) + json.dumps(asked["messages"][0])
        assert not [word for word in ("stylus", "base", "lora", "secret", ".png", "c/") if word in text.lower()]
        for picture in (*sets(asked)[0], *sets(asked)[1]):
            assert picture.format == "JPEG"
            assert set(picture.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
            assert not picture.getexif()
    orders = {tuple(picture.tobytes() for part in sets(asked) for picture in part) for asked in server.requests}
    assert len(orders) == len(server.requests)
    moon = next(asked for asked in server.requests if "moon" in json.dumps(parts(asked)[0]))
    assert parts(moon)[0]["text"] == "<prompt>a ‹b›moon‹/b›</prompt>"


# --- What it costs, and what goes wrong ---


def test_a_reply_is_paid_for_once_whatever_ended_the_run(court: Court) -> None:
    pairs = court.pairs()

    def stop(progress: Progress) -> None:
        if progress.done == 2:
            raise Cancelled("enough")

    with ChatServer(sees_red) as server:
        with pytest.raises(Cancelled):
            court.judge(server, pairs, concurrency=1, on_progress=stop)
        assert len(server.requests) == 2
        report = court.judge(server, pairs)
        again = court.judge(server, pairs)
        assert len(server.requests) == 6
    assert (report.kept, report.usage.requests, report.usage.input_tokens) == (2, 4, 400)
    assert (again.kept, again.usage.requests) == (6, 0)
    assert again.aspects == report.aspects


def test_a_form_that_is_wrong_goes_back_once_with_the_reason_then_the_prompt_is_named(court: Court) -> None:
    pairs = court.pairs()
    good: Callable[[dict[str, Any]], Answer] = sees_red

    def slips(asked: dict[str, Any]) -> Answer:
        if "star" in json.dumps(asked["messages"][1]):
            return verdicts(asked, "both")
        if "fish" in json.dumps(asked["messages"][1]) and len(asked["messages"]) == 2:
            return Answer({})
        return good({**asked, "messages": asked["messages"][:2]})

    with ChatServer(slips) as server:
        report = court.judge(server, pairs, concurrency=1)
        assert [failure.prompt for failure in report.failed] == ["a star"]
        assert "first" in json.dumps(server.requests[1]["messages"][-1])
        assert report.aspects["quality"].tally == Tally(wins=2, ties=1)
    with ChatServer(sees_red) as server:
        report = court.judge(server, pairs)
    assert (len(server.requests), report.failed) == (2, ())


def test_rate_limits_pass_and_a_model_that_refuses_everybody_ends_the_run(court: Court) -> None:
    pairs = court.pairs(prompts=[f"prompt {n}" for n in range(9)])
    limited = iter([Answer(status=429, body=b"{}", headers={"retry-after": "7"})])
    with ChatServer(lambda asked: next(limited, None) or sees_red(asked)) as server:
        assert court.judge(server, pairs[:3]).failed == ()
    body = b'{"error": {"message": "this model does not support image input"}}'
    with ChatServer([Answer(status=400, body=body)]) as server:
        with pytest.raises(ModelUnavailable, match="STYLUS_VISION or --model"):
            court.judge(server, pairs[3:], concurrency=1)
        assert len(server.requests) == MOST_FAILURES


def test_a_limit_of_cost_stops_and_one_that_can_not_be_kept_is_told(court: Court) -> None:
    pairs = court.pairs()
    with ChatServer(sees_red) as server, pytest.raises(InvalidInput, match="prices of openai-chat:fake"):
        court.judge(server, pairs, max_cost=1.0, concurrency=1)
    with ChatServer(sees_red) as server:
        court.monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        model = open_vision(Settings.model_validate({"vision": "openai-chat:gpt-4o"}))
        report = judge(Judgements(court.database), model, pairs, Options(concurrency=1, max_cost=0.0005))
    assert report.usage.cost is not None
    assert report.usage.cost >= 0.0005
    assert report.stopped == f"{report.usage.cost:.4f} US dollars spent of 0.0005"
    assert len(report.judged) < len(pairs)


def test_a_picture_that_is_gone_is_named(court: Court) -> None:
    pairs = court.pairs()
    pairs[1].pictures[0][0].unlink()
    with ChatServer(sees_red) as server:
        report = court.judge(server, pairs)
    assert report.failed[0].prompt == "a star"
    assert len(report.judged) == 3


def test_pairs_are_of_two_known_arms(court: Court) -> None:
    ledger = evaluation(court.database, court.folder)
    for arms in (["stylus"], ["stylus", "stylus"], ["stylus", "random"]):
        with pytest.raises(InvalidInput, match="name two or more of base, stylus"):
            pairs_of(ledger, arms)
    with pytest.raises(InvalidInput, match="no prompt"), ChatServer(sees_red) as server:
        court.judge(server, [])


# --- The command ---


def test_the_command_takes_a_folder_or_an_id(court: Court, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = evaluation(court.database, court.folder)
    assert settings.database_url is not None
    monkeypatch.setenv("STYLUS_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("STYLUS_DATA", str(settings.data))
    runner = CliRunner()
    with ChatServer(sees_red) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        first = runner.invoke(app, ["evaluate", "judge", str(court.folder), "--model", MODEL, "--limit", "2", "--json"])
        assert first.exit_code == 0, first.output
        assert json.loads(first.stdout)["usage"]["requests"] == 2
        second = runner.invoke(app, ["evaluate", "judge", ledger.id, "--model", MODEL])
        assert second.exit_code == 0, second.output
        assert "75.0%" in second.stdout
        assert len(server.requests) == 6
        with ledger.alone():
            assert isinstance(runner.invoke(app, ["evaluate", "judge", ledger.id, "--model", MODEL]).exception, Busy)
    assert isinstance(runner.invoke(app, ["evaluate", "judge", "nothing", "--model", MODEL]).exception, NotFound)
    assert Ledger.named(court.database, ledger.id).plan == ledger.plan
