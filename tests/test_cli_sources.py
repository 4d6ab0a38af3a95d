"""The commands on remote sources and lists of cards, against a Civitai and a hub on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from typer.testing import CliRunner

from stylus.cli import app
from stylus.errors import InvalidInput, NotFound
from stylus.settings import Settings
from tests.pretend import Pretend, weights
from tests.test_civitai import add_model
from tests.test_hub import add, sibling
from tests.test_stylusdocs import AdapterInfo, info, published, write

__all__ = ["published"]


@pytest.fixture
def server() -> Iterator[Pretend]:
    with Pretend() as server:
        yield server


@pytest.fixture(autouse=True)
def environment(settings: Settings, server: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.database_url is not None
    monkeypatch.setenv("STYLUS_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("STYLUS_DATA", str(settings.data))
    monkeypatch.setenv("STYLUS_CIVITAI_URL", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_every_source_comes_in_and_all_goes_out(server: Pretend, tmp_path: Path, published: type[AdapterInfo]) -> None:
    add_model(server, 1, versions=2)
    add_model(server, 2, type="Checkpoint")
    told = run("ingest", "civitai", "ink", "--most", "5", code=3)
    assert (told["added"], [problem["file"] for problem in told["problems"]]) == (2, ["civitai:2"])
    add(server, "o/n", [sibling("x.safetensors")])
    told = run("ingest", "hub", "o/n", "o/absent", code=3)
    assert (told["added"], [problem["file"] for problem in told["problems"]]) == (1, ["o/absent"])
    write(tmp_path, [info(published, 7), info(published, 8)])
    np.save(tmp_path / "sd_embeddings.npy", np.eye(2, 384, dtype=np.float32))
    assert run("ingest", "stylusdocs", str(tmp_path), "--made-with", "all-MiniLM-L6-v2")["added"] == 2
    (tmp_path / "mine.safetensors").write_bytes(weights(11))
    assert run("ingest", "civitai", "by-hash", str(tmp_path))["moved"] == 1
    lines = tmp_path / "list.jsonl"
    lines.write_text('{"id": "made:1", "name": "one", "type": "LORA", "base_model": "SD 1.5"}\nnonsense\n')
    told = run("ingest", "cards", str(lines), code=3)
    assert (told["added"], told["problems"][0]["file"]) == (1, f"{lines}:2")
    assert run("export", str(tmp_path / "out.jsonl"))["adapters"] == 6
    assert run("ingest", "cards", str(tmp_path / "out.jsonl"))["unchanged"] == 6


def test_what_was_hidden_stays_hidden_whatever_is_ingested_again(tmp_path: Path) -> None:
    list_, out = tmp_path / "list.jsonl", tmp_path / "out.jsonl"
    list_.write_text('{"id": "made:1", "name": "heron"}\n{"id": "made:2", "name": "heron in reeds"}\n')
    run("ingest", "cards", str(list_))
    run("export", str(out))
    assert run("hide", "made:1") == {"made:1": "heron"}
    list_.write_text('{"id": "made:1", "name": "heron", "description": "grey"}\n')
    for path, report in ((list_, "updated"), (out, "updated"), (out, "unchanged")):
        assert run("ingest", "cards", str(path))[report] >= 1
        assert run("hide") == {"made:1": "heron"}
    assert [match["adapter"]["id"] for match in run("search", "heron")] == ["made:2"]
    assert run("hide", "made:1", "--forget") == run("hide") == {}
    assert len(run("search", "heron")) == 2
    with pytest.raises(NotFound, match="made:3"):
        run("hide", "made:3")
    with pytest.raises(InvalidInput, match="Pass the adapter"):
        run("hide", "--forget")


def test_errors_are_those_of_the_library() -> None:
    for arguments in (["by-hash"], ["ink", "wash"]):
        with pytest.raises(InvalidInput, match="by-hash FOLDER"):
            run("ingest", "civitai", *arguments)
    with pytest.raises(NotFound):
        run("ingest", "hub", "o/absent")
    with pytest.raises(NotFound):
        run("ingest", "civitai", "https://civitai.com/models/99")
