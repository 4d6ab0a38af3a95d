"""Another embedding model, while searches go on: over a real server that speaks OpenAI's protocol for embeddings, whose
model knows a handful of words in two languages."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pydantic_ai.models
import pytest

from stylus.catalog import Catalog
from stylus.database import Database
from stylus.embedder import DEFAULT, Embedder
from stylus.errors import ModelUnavailable
from stylus.ingest import ingest, settle
from stylus.records import Card, Progress
from stylus.reembedding import embed_all
from stylus.retriever import Retriever

CONCEPTS = (("cat", "kitten", "고양이"), ("snow", "눈 덮인", "blizzard"), ("house", "집"), ("wave", "파도"))
NAME = "openai:multilingual-toy"
CARDS = [
    Card(id=f"a:{name}", name=f"{name} lora", description=f"A {name}, as seen in {place}.")
    for name, place in (("cat", "Busan"), ("snow", "Sapporo"), ("house", "Bergen"), ("wave", "Hilo"))
]


class EmbeddingServer:
    """A vector has one number a concept, 1 where a word of it stands in the text, and one that is always small."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.broken = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
                outer.texts += texts
                data = [
                    {"object": "embedding", "index": place, "embedding": _vector(text)}
                    for place, text in enumerate(texts)
                ]
                usage = {"prompt_tokens": 1, "total_tokens": 1}
                body = json.dumps({"object": "list", "data": data, "model": asked["model"], "usage": usage}).encode()
                self.send_response(400 if outer.broken else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True


def _vector(text: str) -> list[float]:
    return [float(any(word in text.lower() for word in words)) for words in CONCEPTS] + [0.1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    server = EmbeddingServer()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(pydantic_ai.models, "ALLOW_MODEL_REQUESTS", True)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.http.server_address[1]}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "of a test")
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def catalog(database: Database) -> Catalog:
    return Catalog(database)


def names(retriever: Retriever, prompt: str) -> list[str]:
    return [match.adapter.id for match in retriever.retrieve(prompt, limit=4)]


def test_korean_prompts_find_what_they_mean_with_a_multilingual_model(
    catalog: Catalog, server: EmbeddingServer
) -> None:
    embedder = Embedder.named(NAME)
    ingest([*CARDS, Card(id="a:hanok", name="한옥", description="기와지붕이 있는 한옥을 그립니다")], catalog, embedder)
    retriever = Retriever(catalog, embedder)
    assert names(retriever, "눈 덮인 산")[0] == "a:snow"
    matches = retriever.retrieve("파도 앞의 고양이", keywords=["파도", "고양이"], limit=2)
    assert {match.adapter.id for match in matches} == {"a:wave", "a:cat"}
    # By words: with another particle than in the card, which no space sets apart.
    [first, *_] = retriever.retrieve("한옥에서", limit=4)
    assert first.adapter.id == "a:hanok"
    assert first.lexical_score > 0
    assert first.why.startswith("name '한옥'")


def test_the_model_of_before_serves_until_all_is_embedded_anew_then_the_new_one(
    catalog: Catalog, embedder: Embedder, server: EmbeddingServer
) -> None:
    ingest(CARDS, catalog, embedder)
    other = Embedder.named(NAME)
    retriever = Retriever(catalog, other)
    assert names(retriever, "a kitten")[0] == "a:cat"
    assert not server.texts  # nothing was asked of a model that has no vectors here

    server.broken = True
    with pytest.raises(ModelUnavailable):
        embed_all(catalog, other)
    assert catalog.coverage() == (4, {DEFAULT: 4})
    server.broken = False
    catalog.embed_missing(NAME, lambda some: [], limit=1)  # a claim that came to nothing
    told: list[Progress] = []
    assert embed_all(catalog, other, told.append) == 4
    assert (told[0].done, told[-1].done, told[-1].total) == (0, 4, 4)
    assert catalog.coverage() == (4, {DEFAULT: 4, NAME: 4})
    assert embed_all(catalog, other) == 0
    assert Retriever(catalog, other).retrieve("집", limit=1)[0].adapter.id == "a:house"
    # One that was serving the old vectors changes over by itself, at its next look.
    retriever._serving._until = 0.0
    assert retriever.retrieve("집", limit=1)[0].adapter.id == "a:house"
    assert names(Retriever(catalog, embedder), "a kitten")[0] == "a:cat"  # and back: nothing was thrown away


def test_two_machines_share_the_work_and_do_none_of_it_twice(catalog: Catalog, server: EmbeddingServer) -> None:
    cards = [Card(id=f"a:{i}", name=f"card {i}", description=f"the number {i}") for i in range(100)]
    catalog.add([settle(card) for card in cards])
    done: list[int] = []
    workers = [threading.Thread(target=lambda: done.append(embed_all(catalog, Embedder.named(NAME)))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(done) == 100
    assert catalog.coverage() == (100, {NAME: 100})
    assert len(server.texts) == len(set(server.texts)) == 200  # each card, and each name


def test_a_model_of_before_that_is_gone_is_no_reason_to_find_nothing(
    catalog: Catalog, embedder: Embedder, server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(CARDS, catalog, Embedder.named(NAME))
    server.broken = True
    matches = Retriever(catalog, embedder).retrieve("the house", limit=4)
    assert [match.adapter.id for match in matches] == ["a:house"]  # by its words, until it is embedded
    assert (matches[0].prompt_score, matches[0].keyword_scores) == (0.0, {})
    embed_all(catalog, embedder)
    assert len(Retriever(catalog, embedder).retrieve("a kitten", limit=4)) == 4
