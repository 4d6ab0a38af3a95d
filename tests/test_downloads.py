"""Downloads over real HTTP: what arrives whole has its name, nothing else ever does."""

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from stylus import downloads
from stylus.downloads import Remote, download, file_name
from stylus.errors import (
    AdapterFileError,
    Cancelled,
    InvalidInput,
    NotFound,
    SourceUnavailable,
    StorageError,
    StylusError,
)
from stylus.records import Progress
from stylus.web import Web
from tests.pretend import Fault, Pretend, sha256, weights

CONTENT = weights(rank=64)
"""Some 200 kB: a dozen pieces of the server."""
FILE = "/files/1.safetensors"
START = "/api/download/models/1"


@pytest.fixture
def server() -> Iterator[Pretend]:
    with Pretend() as server:
        server.files[FILE] = CONTENT
        yield server


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def web(server: Pretend, slept: list[float]) -> Iterator[Web]:
    with Web(
        "Civitai", server.url, token=SecretStr("k3y"), remedy="Set STYLUS_CIVITAI_KEY.", sleep=slept.append
    ) as web:
        yield web


def remote(server: Pretend, content: bytes = CONTENT, bytes: int | None = len(CONTENT)) -> Remote:
    return Remote(server.url + START, sha256(content), bytes)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_comes_whole_through_a_redirect_and_says_how_far_it_is(
    server: Pretend, web: Web, tmp_path: Path
) -> None:
    progress: list[Progress] = []
    download(web, remote(server), tmp_path / "new" / "a.safetensors", progress.append)
    assert (tmp_path / "new" / "a.safetensors").read_bytes() == CONTENT
    assert left(tmp_path) == ["a.safetensors"]
    assert (progress[-1].stage, progress[-1].done, progress[-1].total) == ("download", len(CONTENT), len(CONTENT))
    assert server.asked[0].headers["authorization"] == "Bearer k3y"
    asked = len(server.asked)
    download(web, remote(server), tmp_path / "new" / "a.safetensors")
    assert len(server.asked) == asked


def test_passing_faults_are_waited_out_and_a_cut_body_is_gone_on_with(
    server: Pretend, web: Web, slept: list[float], tmp_path: Path
) -> None:
    server.faults = {
        START: [Fault(429, {"retry-after": "7"}), Fault(503)],
        FILE: [Fault(cut=50_000), Fault(500), Fault(cut=30_000)],
    }
    download(web, remote(server), tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == CONTENT
    assert slept[0] == 7.0
    assert all(1 <= pause <= 60 for pause in slept[1:])
    assert [asked.headers.get("range") for asked in server.asked if asked.path == FILE] == [
        None,
        "bytes=50000-",
        "bytes=50000-",
        "bytes=80000-",
    ]


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Fault(headers={"content-type": "text/html"}, body=b"<html>Sign in</html>"), SourceUnavailable, "CIVITAI_KEY"),
        (Fault(401, body=b'{"error": "Unauthorized", "message": "be logged in"}'), SourceUnavailable, "be logged in"),
        (Fault(404), NotFound, "404"),
        (Fault(body=b"short"), AdapterFileError, "5 bytes"),
        (Fault(body=b"x" * len(CONTENT)), AdapterFileError, "SHA-256"),
        (Fault(307, {"location": "http://example.org/x"}), SourceUnavailable, "only https"),
        (Fault(307, {"location": "file:///etc/passwd"}), SourceUnavailable, "only https"),
    ],
)
def test_what_is_no_adapter_never_becomes_one(
    server: Pretend, web: Web, tmp_path: Path, fault: Fault, error: type[StylusError], words: str
) -> None:
    server.faults = {START: [fault] * 9}
    with pytest.raises(error, match=words):
        download(web, remote(server), tmp_path / "a.safetensors")
    assert left(tmp_path) == []


def test_a_pickle_is_refused_even_with_the_right_hash(server: Pretend, web: Web, tmp_path: Path) -> None:
    server.files[FILE] = pickle = b"\x80\x04" + b"." * 100
    with pytest.raises(AdapterFileError, match="pickle"):
        download(web, remote(server, pickle, None), tmp_path / "a.safetensors")
    assert left(tmp_path) == []


def test_a_part_of_other_bytes_is_fetched_again_from_the_start(server: Pretend, web: Web, tmp_path: Path) -> None:
    for part in (b"not what it should be" * 100, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)):
        (tmp_path / "a.safetensors.part").write_bytes(part)
        download(web, remote(server), tmp_path / "a.safetensors")
        assert (tmp_path / "a.safetensors").read_bytes() == CONTENT
        (tmp_path / "a.safetensors").unlink()
    (tmp_path / "a.safetensors.part").write_bytes(CONTENT + b"more")
    download(web, remote(server, bytes=None), tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == CONTENT


def test_an_error_page_does_not_cost_what_was_there(server: Pretend, web: Web, tmp_path: Path) -> None:
    part = tmp_path / "a.safetensors.part"
    part.write_bytes(CONTENT[:100_000])
    server.faults = {FILE: [Fault(headers={"content-type": "text/html; charset=utf-8"}, body=b"<html>busy</html>")]}
    with pytest.raises(SourceUnavailable, match="text/html"):
        download(web, remote(server), tmp_path / "a.safetensors")
    assert part.read_bytes() == CONTENT[:100_000]


def test_old_parts_of_the_adapter_go_with_its_success(server: Pretend, web: Web, tmp_path: Path) -> None:
    target = tmp_path / file_name("civitai:1@2", sha256(CONTENT))
    old = [tmp_path / (file_name("civitai:1@2", "0" * 64) + ".part"), tmp_path / "left.safetensors.part"]
    young = tmp_path / (file_name("civitai:1@3", "0" * 64) + ".part")
    for path in (*old, young):
        path.write_bytes(b"x")
    os.utime(old[1], (0, 0))
    download(web, remote(server), target)
    assert left(tmp_path) == sorted([target.name, young.name])


def test_a_full_disk_is_told_before_a_byte_is_written(
    server: Pretend, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "RESERVE", 2**60)
    with pytest.raises(StorageError, match="Make room"):
        download(web, remote(server), tmp_path / "a.safetensors")
    assert left(tmp_path) == []


def test_a_cancelled_download_is_gone_on_with(server: Pretend, web: Web, tmp_path: Path) -> None:
    def cancel(progress: Progress) -> None:
        raise Cancelled("enough")

    server.faults = {FILE: [Fault(cut=100_000)]}
    with pytest.raises(Cancelled):
        download(web, remote(server), tmp_path / "a.safetensors", cancel)
    assert left(tmp_path) == ["a.safetensors.part"]
    download(web, remote(server), tmp_path / "a.safetensors")
    assert server.asked[-1].headers["range"].startswith("bytes=")
    assert left(tmp_path) == ["a.safetensors"]


def test_many_at_once_fetch_it_once(server: Pretend, web: Web, tmp_path: Path) -> None:
    server.pause = 0.01
    failed: list[BaseException] = []

    def fetch() -> None:
        try:
            download(web, remote(server), tmp_path / "a.safetensors")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert left(tmp_path) == ["a.safetensors"]
    assert server.paths(FILE) == [FILE]


def fetch_in_a_process(url: str, target: Path) -> None:
    with Web("Civitai", url) as web:
        download(web, Remote(url + START, sha256(CONTENT), len(CONTENT)), target)


def test_killed_at_any_point_and_run_again_the_file_is_whole(server: Pretend, tmp_path: Path) -> None:
    server.pause = 0.02
    drawn = random.Random(4)
    target = tmp_path / "a.safetensors"
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.test_downloads"])
    unfinished = 0
    for _ in range(10):
        process = processes.Process(target=fetch_in_a_process, args=(server.url, target))
        process.start()
        asked = len(server.asked)
        while len(server.asked) == asked and process.is_alive():
            time.sleep(0.001)
        time.sleep(drawn.uniform(0.0, 0.25))
        process.kill()
        process.join()
        assert set(left(tmp_path)) <= {"a.safetensors", "a.safetensors.part"}
        unfinished += not target.exists()
        if target.exists():  # it was faster: the next one starts anew
            assert target.read_bytes() == CONTENT
            target.unlink()
    assert unfinished
    process = processes.Process(target=fetch_in_a_process, args=(server.url, target))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert target.read_bytes() == CONTENT
    assert left(tmp_path) == ["a.safetensors"]


def test_file_names_are_made_of_the_id_and_stay_in_their_folder() -> None:
    digest = "ab" * 32
    for id in ("civitai:1@2", "hub:../../etc/passwd", "hub:CON", "hub:.", "cards:" + "x" * 200, "hub:a\\b:c\u202e"):
        name = file_name(id, digest)
        assert Path(name).name == name
        assert name.endswith("-abababababababab.safetensors")
        assert name.isascii()
        assert len(name) < 150
    assert file_name("civitai:1@2", digest).startswith("civitai-1-2-")


def test_only_the_sources_own_hosts_are_its_own() -> None:
    with Web("Civitai", "https://civitai.com", hosts=frozenset({"civitai.red"})) as web:
        for url in ("https://civitai.com/api/download/models/1?type=Model", "https://civitai.red/x"):
            assert web.owns(url)
        for url in (
            "http://civitai.com/x",
            "https://civitai.com:8443/x",
            "https://civitai.com@example.org/x",
            "https://someone@civitai.com/x",
            "https://example.org/civitai.com",
            "https://civitai.com.example.org/",
            "http://127.0.0.1/x",
            "file:///etc/passwd",
            "//civitai.com/x",
            "",
        ):
            assert not web.owns(url), url
    with pytest.raises(InvalidInput, match="https"):
        Web("Civitai", "http://civitai.com")


def test_nobody_there_is_a_sentence(slept: list[float], tmp_path: Path) -> None:
    with Pretend() as server:
        gone = server.url
    with (
        Web("Civitai", gone, sleep=slept.append) as web,
        pytest.raises(SourceUnavailable, match="can't be reached") as caught,
    ):
        download(web, Remote(gone + START, "0" * 64), tmp_path / "a.safetensors")
    assert len(slept) == 2
    assert "secret" not in str(caught.value)
    assert left(tmp_path) == []
