"""The commands as a person types them, in their own processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stylus.settings import Settings


class Shell:
    """Runs `stylus ...` with this test's database and data folder."""

    def __init__(self, settings: Settings) -> None:
        assert settings.database_url is not None
        ours = {"STYLUS_DATABASE_URL": settings.database_url.get_secret_value(), "STYLUS_DATA": str(settings.data)}
        self.environment = {**os.environ, **ours}

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from stylus.cli import main; main()", *arguments]
        return subprocess.run(
            command, env={**self.environment, **environment}, capture_output=True, text=True, check=False, timeout=120
        )

    def json(self, *arguments: str) -> Any:
        ran = self(*arguments, "--json")
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)


@pytest.fixture
def shell(settings: Settings) -> Shell:
    return Shell(settings)


def test_ingest_search_compose_generate(shell: Shell) -> None:
    assert shell.json("ingest", "pocket")["added"] >= 40
    assert shell.json("ingest", "pocket")["unchanged"] >= 40
    assert shell.json("search", "star", "--limit", "3")[0]["adapter"]["id"].startswith("pocket:star")
    composition = shell.json("compose", "a red star")
    assert composition["tasks"]
    (image,) = shell.json("generate", "--composition", composition["id"], "--seed", "4", "--steps", "6")
    assert Path(image["location"]).is_file()
    assert image["seed"] == 4


def test_errors_are_sentences_with_exit_code_one(shell: Shell) -> None:
    for arguments, words in (
        (["compose", " "], "empty"),
        (["compose", "a star", "--adapter", "pocket:nothing"], "search"),
        (["compose", "a star", "--adapter", "pocket:nothing=heavy"], "heavy"),
        (["generate", "a star", "--count", "10000"], "64"),
        (["generate", "a star", "--count", "0"], "1"),
        (["generate"], "prompt"),
        (["generate", "--composition", "unknown"], "unknown"),
        (["search", "star", "--limit", "0"], "limit"),
    ):
        ran = shell(*arguments)
        assert ran.returncode == 1, (arguments, ran.stdout, ran.stderr)
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr


def test_pictures_are_named_although_their_sheet_can_not_be_written(shell: Shell, tmp_path: Path) -> None:
    shell.json("ingest", "pocket")
    ran = shell("generate", "a red star", "--steps", "2", "--sheet", str(tmp_path / "sheet.xyz"))
    assert (ran.returncode, "name a .png file" in ran.stderr) == (1, True)
    location = ran.stdout.split()[-1]
    again = tmp_path / "new folder" / "again.png"
    ran = shell("replay", location, "--out", str(again))
    assert (ran.returncode, again.is_file()) == (0, True), ran.stderr


def test_bad_setting_is_named(shell: Shell) -> None:
    ran = shell("search", "star", STYLUS_CHECKPOINTS="sd15")
    assert ran.returncode == 1
    assert "STYLUS_CHECKPOINTS" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_unreachable_database_is_named(shell: Shell) -> None:
    ran = shell("search", "star", STYLUS_DATABASE_URL="postgresql://someone:secret@127.0.0.1:9/nowhere")
    assert ran.returncode == 1
    assert "127.0.0.1" in ran.stderr
    assert "secret" not in ran.stderr
    assert "Traceback" not in ran.stderr


def test_doctor_names_every_setting(shell: Shell) -> None:
    checks = {check["name"]: check for check in shell.json("doctor")}
    ours = {f"STYLUS_{name.upper()}" for name in Settings.model_fields if name != "otlp_endpoint"}
    assert set(checks) == ours | {"OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert checks["STYLUS_DATABASE_URL"]["value"] == "****"
    assert checks["STYLUS_DATABASE_URL"]["origin"] == "environment"
    assert checks["STYLUS_DATABASE_URL"]["status"] == "warning"
    assert "stylus ingest" in checks["STYLUS_DATABASE_URL"]["finding"]
    assert checks["STYLUS_EMBEDDER"]["status"] == "ok"


def test_folder_with_a_bad_file_goes_on_and_says_so(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x80\x04this is a pickle")
    ran = shell("ingest", "folder", str(tmp_path), "--json")
    assert ran.returncode == 3
    assert json.loads(ran.stdout)["problems"][0]["file"].endswith("broken.safetensors")
