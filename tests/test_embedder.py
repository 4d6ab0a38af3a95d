"""The default embedder: offline, unit length, safe from many threads and inside event loops."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stylus.embedder import DEFAULT, Embedder, _packaged_weights
from stylus.errors import ModelUnavailable, SettingsError
from stylus.settings import Settings


def test_vectors_have_unit_length_and_mean_something(embedder: Embedder) -> None:
    vectors = embedder.queries(["a photo of a cat", "a kitten", "a steam locomotive"])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    assert embedder.name == DEFAULT


def test_documents_and_queries_share_one_space_and_batches_change_nothing(embedder: Embedder) -> None:
    texts = [f"a {word} in the snow" for word in ("cat", "dog", "house")] * 50
    together = embedder.documents(texts)
    assert together.shape == (150, 384)
    np.testing.assert_allclose(together[0], embedder.queries(texts[:1])[0], atol=1e-5)


def test_short_texts_beside_a_long_one_keep_their_places(embedder: Embedder) -> None:
    texts = ["a fox", "an old fisherman mending a net on a wooden pier at dawn", "cat"]
    together = embedder.queries(texts)
    np.testing.assert_allclose(together, np.stack([embedder.documents([text])[0] for text in texts]), atol=1e-5)


def test_what_was_asked_before_is_not_embedded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, embedded = Embedder.named(DEFAULT), []
    vectors = {"a": [1.0, 0.0], "b": [0.0, 2.0], "c" * 2000: [3.0, 4.0]}

    def request(texts: list[str], kind: str) -> list[list[float]]:
        embedded.append(texts)
        return [vectors[text] for text in texts]

    monkeypatch.setattr(embedder, "_request", request)
    monkeypatch.setattr("stylus.embedder._MOST_KEPT", 2)
    long = "c" * 2000
    for texts in (["a"], ["b", "a", "b"], [long], [long, "b"]):
        expected = [np.array(vectors[text]) / np.linalg.norm(vectors[text]) for text in texts]
        np.testing.assert_allclose(embedder.queries(texts), expected)
    assert embedded == [["a"], ["b"], [long], [long]]  # nobody keeps what is long
    vectors["d"] = [1.0, 1.0]
    embedder.queries(["d"])
    embedder.queries(["b"])
    embedder.queries(["a"])
    assert embedded[4:] == [["d"], ["a"]]  # the oldest of three went
    embedder.forget()
    embedder.queries(["a"])
    assert embedded[6:] == [["a"]]


def test_no_texts_and_strange_texts(embedder: Embedder) -> None:
    assert len(embedder.queries([])) == 0
    strange = embedder.queries(["", "\0", "😀", "x" * 100_000, "한국어"])
    assert np.isfinite(strange).all()


def test_many_threads(embedder: Embedder) -> None:
    words = ["anvil", "bugle", "cello", "dingo"] * 4
    alone = embedder.documents(words)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda word: embedder.queries([word])[0], words))
    np.testing.assert_allclose(alone, np.stack(together), atol=1e-5)


def test_works_where_an_event_loop_runs(embedder: Embedder) -> None:
    async def caller() -> np.ndarray:
        return embedder.queries(["star"])

    assert asyncio.run(caller()).shape == (1, 384)


@pytest.mark.parametrize("name", ["no-colon", ":model", "provider:"])
def test_a_name_of_the_wrong_form_is_a_settings_error(name: str) -> None:
    with pytest.raises(SettingsError, match="STYLUS_EMBEDDER"):
        Embedder.open(Settings.model_validate({"embedder": name}))


@pytest.mark.parametrize("name", ["nobody:model", "sentence-transformers:/no/such/folder"])
def test_a_model_that_is_not_there_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match="STYLUS_EMBEDDER"):
        Embedder.open(Settings.model_validate({"embedder": name})).queries(["x"])


def test_a_device_that_is_not_there_stops_documents_only() -> None:
    """The shipped model reads queries on the CPU, whatever draws and embeds documents."""
    embedder = Embedder.open(Settings.model_validate({"device": "cuda:99"}))
    assert embedder.queries(["a corgi"]).shape == (1, 384)
    with pytest.raises(SettingsError, match="STYLUS_DEVICE=cuda:99"):
        embedder.documents(["a corgi"])
    assert embedder.queries(["a fox"]).shape == (1, 384)


def test_weights_in_pickle_files_are_not_loaded(tmp_path: Path) -> None:
    shutil.copytree(_packaged_weights(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "model" / "pytorch_model.bin")
    name = f"sentence-transformers:{tmp_path / 'model'}"
    assert Embedder.named(name).queries(["a fox"]).shape == (1, 384)
    weights.unlink()
    with pytest.raises(ModelUnavailable, match="safetensors"):
        Embedder.named(name).queries(["a fox"])


def test_queries_take_one_core_and_leave_the_others_to_whoever_draws(embedder: Embedder) -> None:
    before = torch.get_num_threads()
    embedder.queries(["a corgi"])
    assert embedder._alone.submit(torch.get_num_threads).result() == 1
    with ThreadPoolExecutor(1) as drawing:
        assert drawing.submit(torch.get_num_threads).result() == before
