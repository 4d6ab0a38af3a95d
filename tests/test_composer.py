"""The model composer: whatever a model answers, the draft keeps the paper's rules and says what happened."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pydantic_ai.models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stylus.composer import TIMEOUT, ModelComposer, open_composer
from stylus.composition_cache import CompositionCache
from stylus.database import Database
from stylus.errors import Cancelled, SettingsError
from stylus.lexical_composer import Draft, LexicalComposer, Limits
from stylus.records import Progress
from stylus.settings import Settings
from tests.fakes import Answer, ChatServer
from tests.rulebook import GOOD, MATCHES, PROMPT, check, hostile_tasks, of, some_limits, task


@pytest.fixture
def models_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydantic_ai.models, "ALLOW_MODEL_REQUESTS", True)  # loopback models count as paid ones


@pytest.fixture(params=["openai-chat:fake", "anthropic:fake"])
def composer_at(request: pytest.FixtureRequest, models_allowed: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A composer that asks the given server, in each of the two protocols."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")

    def at(server: ChatServer, timeout: float = 20, **fields: Any) -> ModelComposer:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.root)
        return ModelComposer(request.param, timeout=timeout, **fields)

    yield at


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch, models_allowed: None) -> Iterator[Any]:
    """Sets where models of the name `openai-chat:...` are asked."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    yield lambda server: monkeypatch.setenv("OPENAI_BASE_URL", server.url)


def test_a_good_answer_is_taken_with_one_call(composer_at: Any) -> None:
    with ChatServer([Answer(GOOD)]) as server:
        composer = composer_at(server)
        draft = composer.compose(PROMPT, MATCHES, Limits())
    assert of(draft) == {
        "corgi": ["test:1"],
        "lantern": ["test:2"],
        "watercolour style": ["test:3"],
        "stone bridge": [],
    }
    assert (draft.composer, draft.notes) == (composer.name, ())
    assert (draft.usage.requests, draft.usage.input_tokens, draft.usage.output_tokens) == (1, 100, 20)
    assert draft.tasks[1].choices[0].trigger_words == ("paper lantern",)
    assert len(server.requests) == 1
    check(draft)


def test_stable_text_comes_first_and_the_prompt_last(openai: Any) -> None:
    with ChatServer([Answer(GOOD)]) as server:
        openai(server)
        ModelComposer("openai-chat:fake").compose(PROMPT, MATCHES, Limits())
    first, second = server.requests[0]["messages"]
    assert (first["role"], second["role"]) == ("system", "user")
    assert "Corgi" not in first["content"]
    assert second["content"].endswith(f"<prompt>{PROMPT}</prompt>")


def test_the_stable_text_is_marked_where_caching_must_be_asked_for(
    models_allowed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    with ChatServer([Answer(GOOD)]) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.root)
        draft = ModelComposer("anthropic:claude-haiku-4-5").compose(PROMPT, MATCHES, Limits())
    assert draft.notes == ()
    asked = server.requests[0]
    assert "cache_control" in asked["system"][-1]
    assert "cache_control" not in json.dumps(asked["messages"])


def test_a_broken_rule_goes_back_once_with_the_reason(composer_at: Any) -> None:
    bad = {"tasks": [task("corgi", 1), task("unicorn", 2), task("lantern", 99)]}
    with ChatServer([Answer(bad), Answer(GOOD)]) as server:
        draft = composer_at(server).compose(PROMPT, MATCHES, Limits())
    assert of(draft)["lantern"] == ["test:2"]
    assert draft.notes == ()
    assert len(server.requests) == draft.usage.requests == 2
    assert draft.usage.input_tokens == 200
    told = json.dumps(server.requests[1]["messages"])
    assert "unicorn" in told
    assert "Candidate 99 does not exist" in told


def test_what_stays_broken_is_repaired_and_told(composer_at: Any) -> None:
    bad = {"tasks": [task("Corgi", 1, 1, 99), task("unicorn", 2), task("stone bridge", 6, 9)]}
    with ChatServer([Answer(bad)]) as server:
        draft = composer_at(server).compose(PROMPT, MATCHES, Limits())
    assert len(server.requests) == 2
    assert of(draft) == {"corgi": ["test:1"], "stone bridge": ["test:9"]}
    assert len(draft.notes) == 4
    assert any("unicorn" in note for note in draft.notes)
    check(draft)


def test_a_second_answer_of_the_wrong_form_leaves_the_first_repaired(composer_at: Any) -> None:
    bad = {"tasks": [task("corgi", 1), task("unicorn", 2)]}
    with ChatServer([Answer(bad), Answer("{half of a")]) as server:
        draft = composer_at(server).compose(PROMPT, MATCHES, Limits())
    assert of(draft) == {"corgi": ["test:1"]}
    assert draft.composer.endswith(":fake")
    assert "mend" in draft.notes[0]


def test_obeying_a_hostile_card_changes_nothing(composer_at: Any) -> None:
    obeying = {"tasks": [task(word, 7, 7, 7, 3, 4, 5) for word in (*PROMPT.split(), "*", "")] * 9}
    with ChatServer([Answer(obeying)]) as server:
        draft = composer_at(server).compose(PROMPT, MATCHES, Limits())
    check(draft)
    said = json.dumps(server.requests[0]["messages"][-1], ensure_ascii=False).replace("\\n", "\n")
    assert "\u202e" not in said
    assert "\x1b" not in said
    assert said.count("</candidates>") == said.count("<prompt>") == 1
    assert len([line for line in said.splitlines() if "IGNORE THE RULES" in line]) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(text="I would rather talk about the weather."),
        Answer({"tasks": "none"}),
        Answer("not json"),
        Answer({"tasks": [{"keyword": 1, "adapters": {"candidate": "all"}}]}),
        Answer({}),
        Answer({"tasks": [task("unicorn", 1), task("", 2)]}),
        Answer(None),
        Answer(status=400, body=b'{"error": {"message": "bad request"}}'),
        Answer(status=401, body=b'{"error": {"message": "no key"}}'),
        Answer(status=404, body=b'{"error": {"message": "no such model"}}'),
        Answer(body=b"<html>a proxy's page</html>"),
        Answer(body=b"{}"),
        Answer(body=b""),
    ],
    ids=[
        "chat",
        "form",
        "json",
        "types",
        "no tasks",
        "no task of the prompt",
        "null",
        "400",
        "401",
        "404",
        "html",
        "empty object",
        "empty",
    ],
)
def test_no_usable_answer_falls_back_and_says_why(composer_at: Any, answer: Answer) -> None:
    with ChatServer([answer]) as server:
        draft = composer_at(server).compose(PROMPT, MATCHES, Limits())
    assert draft.composer == "lexical"
    assert ":fake' gave no usable answer" in draft.notes[0]
    assert draft.tasks == LexicalComposer().compose(PROMPT, MATCHES, Limits()).tasks


@pytest.mark.parametrize(
    "answer",
    [
        Answer(GOOD, seconds=30),
        Answer(status=503, body=b"busy"),
        Answer(status=429, body=b"{}"),
        Answer(GOOD, half=True),
    ],
    ids=["never", "busy", "too many", "half"],
)
def test_the_timeout_bounds_slow_answers_and_retries(composer_at: Any, answer: Answer) -> None:
    with ChatServer([answer]) as server:
        draft = composer_at(server, timeout=1.0).compose(PROMPT, MATCHES, Limits())
    # the model and its retries had one second, not the thirty that the slow one takes
    assert draft.usage.seconds < 10
    assert draft.composer == "lexical"
    check(draft)


def test_an_unreachable_server_falls_back(composer_at: Any) -> None:
    server = ChatServer([Answer(GOOD)])
    composer = composer_at(server)
    with server:
        pass  # now the port is closed
    draft = composer.compose(PROMPT, MATCHES, Limits())
    assert draft.composer == "lexical"


def test_works_from_threads_and_beside_a_running_loop(openai: Any) -> None:
    with ChatServer([Answer(GOOD)]) as server:
        openai(server)
        composer = ModelComposer("openai-chat:fake", timeout=20)
        drafts: list[Draft] = []

        def compose() -> None:
            drafts.append(composer.compose(PROMPT, MATCHES, Limits()))

        async def inside_a_loop() -> None:
            compose()
            await asyncio.gather(asyncio.to_thread(compose), asyncio.to_thread(compose))

        thread = threading.Thread(target=compose)
        thread.start()
        asyncio.run(inside_a_loop())
        thread.join()
    assert [draft.composer for draft in drafts] == ["openai-chat:fake"] * 4


def test_json_as_text_is_taken_too(openai: Any) -> None:
    with ChatServer([Answer(text=f"Here it is:\n```json\n{json.dumps(GOOD)}\n```")]) as server:
        openai(server)
        draft = ModelComposer("openai-chat:fake", timeout=20).compose(PROMPT, MATCHES, Limits())
    assert (draft.composer, draft.usage.requests) == ("openai-chat:fake", 1)
    assert of(draft)["corgi"] == ["test:1"]


def test_a_model_that_goes_round_in_circles_holds_nobody_up(openai: Any) -> None:
    start = time.monotonic()
    with ChatServer([Answer(text="{" * 200_000)]) as server:
        openai(server)
        draft = ModelComposer("openai-chat:fake").compose(PROMPT, MATCHES, Limits())
    assert draft.composer == "lexical"
    assert time.monotonic() - start < 10


def test_temperature_and_seed_reach_the_model(openai: Any) -> None:
    with ChatServer([Answer(GOOD)]) as server:
        openai(server)
        composer = ModelComposer("openai-chat:fake", timeout=20)
        composer.compose(PROMPT, MATCHES, Limits(), 0.7, 42)
        composer.compose(PROMPT, MATCHES, Limits())
    varied, plain = server.requests
    assert (varied["temperature"], varied["seed"]) == (0.7, 42)
    assert plain["temperature"] == 0
    assert "seed" not in plain


def test_the_cost_of_a_model_with_known_prices_is_told(openai: Any) -> None:
    with ChatServer([Answer(GOOD)]) as server:
        openai(server)
        priced = ModelComposer("openai-chat:gpt-4o", timeout=20).compose(PROMPT, MATCHES, Limits())
        unknown = ModelComposer("openai-chat:fake", timeout=20).compose(PROMPT, MATCHES, Limits())
    assert priced.usage.cost is not None
    assert 0 < priced.usage.cost < 0.01
    assert unknown.usage.cost is None


def test_a_chain_asks_each_in_turn_and_says_why(
    openai: Any, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "none")
    broken = Answer(status=400, body=b'{"error": {"message": "no such model"}}')
    with ChatServer([broken]) as first, ChatServer([Answer(GOOD)]) as second:
        openai(first)
        monkeypatch.setenv("OLLAMA_BASE_URL", second.url)
        chain = open_composer(settings.model_copy(update={"composer": "openai-chat:big, ollama:small, lexical"}))
        draft = chain.compose(PROMPT, MATCHES, Limits())
    assert draft.composer == "ollama:small"
    assert "openai-chat:big" in draft.notes[0]
    assert "The ollama:small composer chose." in draft.notes[0]
    assert isinstance(chain, ModelComposer)
    assert isinstance(chain.fallback, ModelComposer)
    assert chain.timeout + chain.fallback.timeout == TIMEOUT


def test_cancelling_ends_the_request(openai: Any) -> None:
    asked = 0

    def cancel(progress: Progress) -> None:
        nonlocal asked
        asked += bool(server.requests)
        if asked > 1:
            raise Cancelled("stopped by the test")

    with ChatServer([Answer(GOOD, seconds=30)]) as server:
        openai(server)
        with pytest.raises(Cancelled):
            ModelComposer("openai-chat:fake").compose(PROMPT, MATCHES, Limits(), on_progress=cancel)


def test_at_temperature_zero_the_same_question_is_asked_once(openai: Any, database: Database) -> None:
    cache = CompositionCache(database)
    with ChatServer([Answer(GOOD)]) as server:
        openai(server)
        composer = ModelComposer("openai-chat:fake", timeout=20, cache=cache)
        first = composer.compose(PROMPT, MATCHES, Limits())
        again = composer.compose(PROMPT, MATCHES, Limits())
        assert len(server.requests) == 1
        others = [
            composer.compose(PROMPT, MATCHES, Limits(), temperature=0.5),
            composer.compose(PROMPT, MATCHES, Limits(total=3)),
            composer.compose(PROMPT, MATCHES[:5], Limits()),
            composer.compose(f"{PROMPT} ", MATCHES, Limits()),
        ]
    assert all(other.usage.requests for other in others)
    assert (again.tasks, again.composer, again.notes) == (first.tasks, first.composer, first.notes)
    assert again.usage.from_cache
    assert again.usage.requests == 0
    assert not first.usage.from_cache


def test_a_reply_that_was_not_mended_is_not_kept(openai: Any, database: Database) -> None:
    bad = {"tasks": [task("corgi", 1), task("unicorn", 2)]}
    with ChatServer([Answer(bad), Answer("{half of a"), Answer(GOOD)]) as server:
        openai(server)
        composer = ModelComposer("openai-chat:fake", timeout=20, cache=CompositionCache(database))
        first, again = (composer.compose(PROMPT, MATCHES, Limits()) for _ in range(2))
    assert "mend" in first.notes[0]
    assert (again.notes, again.usage.requests) == ((), 1)


def test_a_fallback_is_not_kept(openai: Any, database: Database) -> None:
    with ChatServer([Answer(status=400, body=b"{}"), Answer(GOOD)]) as server:
        openai(server)
        composer = ModelComposer("openai-chat:fake", timeout=20, cache=CompositionCache(database))
        names = [composer.compose(PROMPT, MATCHES, Limits()).composer for _ in range(2)]
    assert names == ["lexical", "openai-chat:fake"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
hostile_replies = hostile_tasks.map(lambda tasks: {"tasks": tasks}) | json_values


@settings(max_examples=60, deadline=None)
@given(st.lists(hostile_replies | st.text(max_size=30), min_size=1, max_size=2), some_limits)
def test_any_reply_ends_in_a_valid_draft(replies: list[Any], limits: Limits) -> None:
    left = list(replies)

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        reply = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(reply, str):
            return ModelResponse(parts=[TextPart(reply)])
        return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, json.dumps(reply))])

    draft = ModelComposer(FunctionModel(answer), timeout=20).compose(PROMPT, MATCHES, limits)
    check(draft, limits=limits)


@pytest.mark.parametrize("name", ["", "lexical", " lexical "])
def test_lexical_is_the_default(name: str) -> None:
    assert open_composer(Settings(composer=name)).name == "lexical"


def test_a_model_by_name_is_opened_without_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert open_composer(Settings(composer="openai-chat:anything")).name == "openai-chat:anything"


@pytest.mark.parametrize("name", ["gpt", "nosuch:model", "openai-chat:without-a-key", "mistral:large"])
def test_a_model_that_cannot_be_built_says_what_works(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(SettingsError, match="STYLUS_COMPOSER") as raised:
        open_composer(Settings(composer=name))
    assert name in str(raised.value)
    assert "lexical" in str(raised.value) or "unset STYLUS_COMPOSER" in str(raised.value)


def test_nothing_may_stand_after_lexical() -> None:
    with pytest.raises(SettingsError, match="always answers"):
        open_composer(Settings(composer="lexical,ollama:small"))
