"""What lives as long as the server: Stylus, the queue and the one worker. Opened beside the protocol, not before it:
a client gets its answer to `initialize` at once, and a database that is away at the start is tried again by each call.
"""

import logging
import threading
from typing import TYPE_CHECKING

import anyio

from server.audit import Audit
from server.results import ImageResponses
from stylus.errors import DatabaseUnavailable, StylusError
from stylus.settings import Settings

if TYPE_CHECKING:
    from stylus.jobs import Jobs
    from stylus.stylus import Stylus

logger = logging.getLogger(__name__)

WAIT = 40.0
"""Seconds. Claude Desktop gives up on a call after about 60, whatever its progress says."""
COMPOSING = 32
"""Compositions at a time: each may ask a language model for a minute, and all other calls need threads too."""
PATIENCE = 1.5
"""Seconds that a closing server waits for its worker to hand its job back. Clients kill a server after two."""


class Backend:
    """Opens what the tools need on first use, once, whichever thread asks first."""

    def __init__(
        self,
        settings: Settings,
        wait: float = WAIT,
        shown: ImageResponses = ImageResponses.THUMBNAIL,
        works: bool = True,
    ) -> None:
        """`wait`: seconds that a call may wait for its images before it answers that they are being made; `works`: with
        a worker inside. Raises SettingsError for an audit log that can't be written."""
        self.settings = settings
        self.wait = wait
        self.shown = shown
        self.works = works
        self.audit = Audit(settings)
        self.closing = threading.Event()
        self.composing = anyio.CapacityLimiter(COMPOSING)
        self._lock = threading.Lock()
        self._opened: tuple[Stylus, Jobs] | None = None
        self._worker: threading.Thread | None = None

    @property
    def stylus(self) -> "Stylus":
        """Raises DatabaseUnavailable, StorageError."""
        return self._open()[0]

    @property
    def jobs(self) -> "Jobs":
        """Raises DatabaseUnavailable, StorageError."""
        return self._open()[1]

    def _open(self) -> "tuple[Stylus, Jobs]":
        with self._lock:
            if self.closing.is_set():
                raise DatabaseUnavailable("The server is stopping. Start it again, then repeat the call.")
            if self._opened is None:
                # procrastinate and pydantic-ai: two seconds that `initialize` does not wait for
                from stylus.jobs import Jobs
                from stylus.stylus import Stylus
                from stylus.worker import Worker

                stylus = Stylus(self.settings)
                self._opened = stylus, Jobs(stylus.database)
                if self.works:
                    work = Worker(stylus).run
                    self._worker = threading.Thread(target=work, args=(self.closing,), name="worker", daemon=True)
                    self._worker.start()
            return self._opened

    def open_soon(self) -> None:
        """Starts to open and to warm up in the background, and then to embed what the embedding model lacks."""
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def _warm_up(self) -> None:
        from stylus.database import until_available
        from stylus.reembedding import embed_all

        try:
            # the worker begins with it, whether or not anybody calls a tool; callers meanwhile are told
            until_available(lambda: self.stylus, stop=self.closing, say=logger.warning)
            self.stylus.embedder.queries(["warm up"])
            embed_all(self.stylus.catalog, self.stylus.embedder, stop=self.closing)
        except StylusError as error:
            if not self.closing.is_set():
                logger.warning("Warming up and embedding ended: %s Run `stylus embed` to go on.", error)

    def has_tokens(self) -> bool:
        """Whether callers must bring one. Raises DatabaseUnavailable, StorageError."""
        from stylus.database import Database
        from stylus.tokens import Tokens

        with Database.open(self.settings) as database:
            return any(token.revoked_at is None for token in Tokens(database).list())

    def check(self) -> None:
        """Raises DatabaseUnavailable if the database does not answer."""
        with self.stylus.database.connection() as connection:
            connection.execute("SELECT 1")

    def close(self) -> None:
        """Hands the running job back to the queue and closes the database."""
        self.closing.set()
        if self._worker is not None:
            self._worker.join(PATIENCE)
        with self._lock:
            if self._opened is not None:
                self._opened[0].close()
                self._opened = None
        self.audit.close()
