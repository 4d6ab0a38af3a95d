"""Every policy gives a draft of the same kind; rerankers are real ones: small and trained here, or on loopback."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic_ai.models
import pytest

from stylus.errors import InvalidInput, ModelUnavailable, SettingsError
from stylus.lexical_composer import LexicalComposer, Limits
from stylus.policies import KEPT, TOP, RerankedComposer, chooser
from stylus.records import Adapter, Match, Policy
from stylus.reranker import LocalReranker, ModelReranker, Ranking, Reranker, open_reranker
from stylus.settings import Settings
from stylus.short_list import card
from tests.fakes import Answer, ChatServer
from tests.rulebook import MATCHES, NUMBER, PROMPT, adapter, check

SUBJECTS = [
    adapter(1, "Arrow right", tags=("icon", "road marking")),
    adapter(2, "Plus symbol", tags=("cross", "icon")),
    adapter(3, "Halftone", tags=("dots", "print")),
    adapter(4, "Neon outline", tags=("glow", "night")),
    adapter(5, "Sea waves", tags=("water", "pattern")),
]


def matches_of(adapters: Sequence[Adapter]) -> list[Match]:
    return [Match(adapter=one, score=0.0, prompt_score=0.0) for one in adapters]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    """A cross-encoder of one small layer, trained in seconds to tell which of five cards a prompt asks for."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    from examples.pocket.reranker import untrained

    folder = tmp_path_factory.mktemp("cross-encoder")
    torch.manual_seed(0)
    # Small weights at the start would take ten times as long to learn that words must be the same.
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "initializer_range": 0.2}
    model = untrained(folder, [*map(card, SUBJECTS), "a"], **shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    features = model.preprocess([(f"a {one.name}", card(other)) for one in SUBJECTS for other in SUBJECTS])
    for _ in range(60):
        optimizer.zero_grad()
        scores = model(dict(features))["scores"].flatten()
        loss = binary_cross_entropy_with_logits(scores, torch.eye(len(SUBJECTS)).flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.save_pretrained(str(folder))
    return LocalReranker(f"sentence-transformers:{folder}")


@pytest.mark.parametrize("wanted", range(len(SUBJECTS)))
def test_a_cross_encoder_puts_the_card_that_is_asked_for_first(cross_encoder: Reranker, wanted: int) -> None:
    draft = chooser(Policy.RERANKER, LexicalComposer(), cross_encoder).compose(
        f"a {SUBJECTS[wanted].name}", matches_of(SUBJECTS), Limits()
    )
    places = {choice.adapter_id: choice.reason for task in draft.tasks for choice in task.choices}
    assert places[SUBJECTS[wanted].id] == "reranker: place 1"
    assert len(places) == TOP
    assert "cross-encoder" in draft.composer


def test_inside_the_composer_it_chooses_the_candidates(cross_encoder: Reranker) -> None:
    class Watching(LexicalComposer):
        def compose(self, prompt: str, matches: Sequence[Match], *rest: Any, **named: Any) -> Any:
            seen.extend(matches)
            return super().compose(prompt, matches, *rest, **named)

    seen: list[Match] = []
    crowd = matches_of([*(adapter(n, f"thing {n}") for n in range(100, 100 + KEPT)), *SUBJECTS])
    draft = chooser(Policy.COMPOSER, Watching(), cross_encoder).compose("a Halftone", crowd, Limits())
    assert len(seen) == KEPT
    assert seen[0].adapter == SUBJECTS[2]
    assert f"{KEPT} of {len(crowd)}" in draft.notes[0]


def test_a_cross_encoder_that_is_not_there_stops_the_policy_and_not_the_composer(tmp_path: Path) -> None:
    missing = LocalReranker(f"sentence-transformers:{tmp_path / 'missing'}")
    with pytest.raises(ModelUnavailable, match="STYLUS_RERANKER"):
        chooser(Policy.RERANKER, LexicalComposer(), missing).compose(PROMPT, MATCHES, Limits())
    few = chooser(Policy.COMPOSER, LexicalComposer(), missing).compose(PROMPT, MATCHES, Limits())
    assert few == LexicalComposer().compose(PROMPT, MATCHES, Limits())  # none would leave: nobody is asked
    crowd = matches_of([*(adapter(n, f"thing {n}") for n in range(100, 100 + KEPT)), adapter(1, "Corgi")])
    last = chooser(Policy.COMPOSER, LexicalComposer(), missing).compose("a corgi", crowd, Limits())
    assert [choice.adapter_id for task in last.tasks for choice in task.choices] == ["test:1"]
    assert "not reranked" in last.notes[0]


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(pydantic_ai.models, "ALLOW_MODEL_REQUESTS", True)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return lambda server: monkeypatch.setenv("OPENAI_BASE_URL", server.url)


def test_a_language_model_can_rerank_with_one_call(openai: Any) -> None:
    with ChatServer([Answer({"candidates": [9, 3, 3]})]) as server:
        openai(server)
        draft = chooser(Policy.RERANKER, LexicalComposer(), ModelReranker("openai-chat:fake", timeout=20)).compose(
            PROMPT, MATCHES, Limits()
        )
    chosen = [choice.adapter_id for task in draft.tasks for choice in task.choices]
    assert {"test:9", "test:3"} < set(chosen)
    assert len(chosen) == TOP
    assert (draft.usage.requests, draft.composer) == (1, "reranker openai-chat:fake")


def test_numbers_that_do_not_exist_go_back_once_and_are_left_out_then(openai: Any) -> None:
    with ChatServer([Answer({"candidates": [0, 2, 99]})]) as server:
        openai(server)
        ranking = ModelReranker("openai-chat:fake", timeout=20).rank(PROMPT, SUBJECTS)
    assert len(server.requests) == 2
    assert ranking.scores == [0.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("answer", [Answer({"candidates": [1]}, seconds=30), Answer(text="no"), Answer(status=400)])
def test_a_language_model_that_cannot_rerank_says_so(openai: Any, answer: Answer) -> None:
    with ChatServer([answer]) as server:
        openai(server)
        with pytest.raises(ModelUnavailable, match="no usable order"):
            ModelReranker("openai-chat:fake", timeout=1).rank(PROMPT, SUBJECTS)


def test_the_retriever_alone_takes_the_nearest_to_the_whole_prompt() -> None:
    shuffled = random.Random(1).sample(MATCHES, len(MATCHES))
    draft = chooser(Policy.RETRIEVER, LexicalComposer(), None).compose(PROMPT, shuffled, Limits())
    assert {choice.adapter_id for task in draft.tasks for choice in task.choices} == {"test:1", "test:2", "test:3"}


def test_chance_is_repeated_by_its_seed_and_differs_with_another() -> None:
    random_one = chooser(Policy.RANDOM, LexicalComposer(), None)
    drafts = [random_one.compose(PROMPT, MATCHES, Limits(), 0.0, seed) for seed in range(8)]
    assert drafts[3] == random_one.compose(PROMPT, MATCHES, Limits(), 0.0, 3)
    assert len({str(draft.tasks) for draft in drafts}) > 4


@pytest.mark.parametrize("policy", [Policy.RETRIEVER, Policy.RANDOM, Policy.NONE])
@pytest.mark.parametrize("prompt", [PROMPT, "of the", "a corgi"])
@pytest.mark.parametrize("most", [0, 2, 8])
def test_drafts_of_all_policies_are_of_the_same_kind(policy: Policy, prompt: str, most: int) -> None:
    draft = chooser(policy, LexicalComposer(), None).compose(prompt, matches_of(SUBJECTS), Limits(total=most))
    chosen = [choice.adapter_id for task in draft.tasks for choice in task.choices]
    assert len(chosen) == len(set(chosen)) == (0 if policy is Policy.NONE else min(TOP, most))
    assert all(task.keyword in prompt for task in draft.tasks)
    assert draft.composer == policy


def test_flagged_adapters_are_chosen_by_no_policy() -> None:
    assert "test:10" not in NUMBER
    for policy in (Policy.RETRIEVER, Policy.RANDOM):
        draft = chooser(policy, LexicalComposer(), None).compose(PROMPT, MATCHES[-1:], Limits())
        assert not any(task.choices for task in draft.tasks)


def test_the_policy_reranker_needs_one() -> None:
    with pytest.raises(InvalidInput, match="STYLUS_RERANKER"):
        chooser(Policy.RERANKER, LexicalComposer(), None)
    assert chooser(Policy.COMPOSER, LexicalComposer(), None) == LexicalComposer()


def test_rerankers_are_opened_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert open_reranker(Settings()) is None
    assert isinstance(open_reranker(Settings(reranker="sentence-transformers:some/model")), LocalReranker)
    named = open_reranker(Settings(reranker="openai-chat:some"))
    assert isinstance(named, ModelReranker)
    assert chooser(Policy.COMPOSER, LexicalComposer(), named) == LexicalComposer()
    assert named.rank(PROMPT, []) == Ranking([])
    with pytest.raises(SettingsError, match="STYLUS_RERANKER"):
        open_reranker(Settings(reranker="nosuch:model"))


def test_reranking_keeps_the_rules(cross_encoder: Reranker) -> None:
    check(RerankedComposer(cross_encoder, LexicalComposer()).compose(PROMPT, MATCHES, Limits()))
