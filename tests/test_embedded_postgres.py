"""The embedded Postgres under the accidents of real machines: real processes, real kills, real user ids."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from stylus.embedded_postgres import EmbeddedPostgres, _failure
from stylus.errors import DatabaseUnavailable, StorageError

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become others")

USE = """
    import os, sys
    from pathlib import Path
    import psycopg
    from stylus.embedded_postgres import EmbeddedPostgres
    if sys.argv[2:]:  # become another user, who could perhaps not even enter this interpreter's folder
        os.setgroups([])
        os.setgid(int(sys.argv[2]))
        os.setuid(int(sys.argv[2]))
    server = EmbeddedPostgres(Path(sys.argv[1]))
    with psycopg.connect(server.url) as connection:
        # "If not exists" looks and then makes: two at once both make.
        connection.execute("select pg_advisory_xact_lock(1)")
        connection.execute("create table if not exists t (x int)")
    print("ready", flush=True)
    sys.stdin.readline()
    with psycopg.connect(server.url) as connection:
        connection.execute("select 1")
    server.close()
"""


def use(home: Path, *user: int) -> subprocess.Popen[str]:
    """Another process that opens the server, says so, and closes it when it is sent a line."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(USE), str(home), *map(str, user)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )


def ready(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise AssertionError(process.communicate()[1])
    return process


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def postmaster(home: Path) -> int:
    return int((home / "cluster" / "postmaster.pid").read_text().split()[0])


def answers(server_url: str) -> bool:
    try:
        psycopg.connect(server_url).close()
    except psycopg.OperationalError:
        return False
    return True


def gone(pid: int) -> bool:
    """Within a moment; an unreaped child of an init that does not reap counts as gone."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_two_processes_starting_at_once_share_one_server_and_the_last_one_stops_it(reachable: Path) -> None:
    home = reachable / "postgres"
    (home / "cluster.0123abcd" / "base").mkdir(parents=True)  # of an initdb that was killed half way
    first, second = use(home), use(home)
    ready(first)
    ready(second)
    assert not list(home.glob("cluster.*"))
    pid = postmaster(home)
    finish(first)
    assert psutil.pid_exists(pid)
    finish(second)  # its query after the first one's end succeeded
    assert gone(pid)


def test_what_kill_9_leaves_behind_is_used_or_cleared_away(home: Path) -> None:
    # The only user is killed: the server stays, and the next user joins it.
    kill(ready(use(home)))
    pid = postmaster(home)
    server = EmbeddedPostgres(home)
    assert postmaster(home) == pid
    # The server is killed: it is started again, at the same address.
    url = server.url
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    server.ensure_running()
    assert server.url == url
    assert answers(url)
    # Server and users are killed, and the PID in postmaster.pid now belongs to somebody else.
    kill(ready(use(home)))
    pid = postmaster(home)
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    content = (home / "cluster" / "postmaster.pid").read_text()
    (home / "cluster" / "postmaster.pid").write_text(content.replace(str(pid), str(os.getpid()), 1))
    server.ensure_running()
    with psycopg.connect(server.url) as connection:
        assert connection.execute("select count(*) from t").fetchone() == (0,)
    # Nothing is left to wait for: stopped cleanly, and a garbled postmaster.pid does not prevent the next start.
    pid = postmaster(home)
    server.close()
    server.close()
    assert gone(pid)
    (home / "cluster" / "postmaster.pid").write_text("")
    with pytest.raises(DatabaseUnavailable, match="closed"):
        server.ensure_running()
    EmbeddedPostgres(home).close()


def test_deep_data_folders_work_although_socket_paths_are_short(home: Path, reachable: Path) -> None:
    deep = reachable / ("deep" * 20) / ("er" * 60) / "with a 'quote' and space"
    deep.parent.mkdir(parents=True)
    server = EmbeddedPostgres(home.rename(deep))
    assert answers(server.url)
    folder = Path(psycopg.conninfo.conninfo_to_dict(server.url)["host"])  # type: ignore[arg-type]
    assert folder.stat().st_mode & 0o077 == 0
    server.close()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@AS_ROOT
def test_an_ordinary_user_runs_it_and_others_cannot_enter(reachable: Path) -> None:
    (reachable / "theirs").mkdir()
    os.chown(reachable / "theirs", 65_534, 65_534)
    home = reachable / "theirs" / "postgres"
    process = ready(use(home, 65_534))
    assert psutil.Process(postmaster(home)).uids().real == 65_534
    for folder in ("run", "cluster"):
        assert (home / folder).stat().st_mode & 0o777 == 0o700
        stranger = ["ls", str(home / folder)]
        assert subprocess.run(stranger, user=4242, group=4242, extra_groups=[], capture_output=True).returncode
    finish(process)


@AS_ROOT
def test_as_root_with_a_data_folder_that_only_root_can_enter(reachable: Path) -> None:
    private = reachable / "private"
    private.mkdir(mode=0o700)
    server = EmbeddedPostgres(private / "postgres", elsewhere=reachable / "elsewhere")
    assert answers(server.url)
    place = Path((private / "postgres" / "location").read_text().strip())
    assert place.parent == reachable / "elsewhere"
    assert psutil.Process(postmaster(place)).uids().real != 0
    assert private.stat().st_mode & 0o777 == 0o700
    server.close()
    # The record is followed, and a data folder made anew at the same path does not inherit the old cluster.
    again = EmbeddedPostgres(private / "postgres", elsewhere=reachable / "not here")
    assert again.url == server.url
    again.close()


@AS_ROOT
def test_as_root_with_nowhere_to_go_it_says_what_to_set(reachable: Path) -> None:
    private = reachable / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(StorageError, match="STYLUS_DATA"):
        EmbeddedPostgres(private / "postgres", elsewhere=private / "elsewhere")
    (reachable / "file").write_text("")
    with pytest.raises(StorageError, match="STYLUS_DATABASE_URL"):
        EmbeddedPostgres(private / "postgres", elsewhere=reachable / "file")


def test_a_home_that_cannot_be_written_says_what_to_set(reachable: Path) -> None:
    (reachable / "home").mkdir(mode=0o555)
    process = use(reachable / "home" / "data" / "postgres", *([65_534] if os.geteuid() == 0 else []))
    said = process.communicate()[1]
    assert "StorageError" in said
    assert "Permission denied" in said
    assert "STYLUS_DATA" in said


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match="STYLUS_DATA"):
        EmbeddedPostgres(tmp_path / "data" / "postgres")


@AS_ROOT
def test_a_full_disk_says_so(reachable: Path) -> None:
    small = reachable / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(StorageError, match=r"disk is full.*STYLUS_DATA"):
            EmbeddedPostgres(small / "postgres")
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("said", "kind", "says"),
    [
        ("FATAL: could not write: No space left on device", StorageError, "disk is full"),
        ("FATAL: could not open: Read-only file system", StorageError, "can't be written"),
        ("FATAL: something else", DatabaseUnavailable, "something else"),
        ("", DatabaseUnavailable, "said nothing"),
    ],
)
def test_what_postgres_writes_becomes_the_right_error(said: str, kind: type[Exception], says: str) -> None:
    error = _failure("Postgres did not start", said)
    assert isinstance(error, kind)
    assert says in str(error)
