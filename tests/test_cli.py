"""The commands as a person types them, in their own processes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.table import Table

from stylus.cli import app
from stylus.cli.output import INTERRUPTED, add_row, id_column, interruptible
from stylus.errors import InvalidInput, SettingsError
from stylus.records import Progress
from stylus.settings import Settings
from tests import COMMAND


class Shell:
    """Runs `stylus ...` with this test's database and data folder."""

    def __init__(self, settings: Settings) -> None:
        assert settings.database_url is not None
        ours = {"STYLUS_DATABASE_URL": settings.database_url.get_secret_value(), "STYLUS_DATA": str(settings.data)}
        self.environment = {**os.environ, **ours}

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *arguments]
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
    drawn = ["--masks", "sample", "--repeat-masks", "--seed", "4", "--steps", "6"]
    (image,) = shell.json("generate", "--composition", composition["id"], *drawn)
    assert Path(image["location"]).is_file()
    assert image["provenance"]["request"]["repeat_masks"]
    assert image["seed"] == 4
    (one, *others) = [choice["adapter_id"] for task in composition["tasks"] for choice in task["choices"]]
    changes = [f"--adapter={id}={weight}" for id, weight in ((one, 0.25), *((id, 0) for id in others))]
    (image,) = shell.json("generate", "--composition", composition["id"], *changes, "--steps", "6")
    assert image["adapters"] == {one: 0.25}


@pytest.mark.parametrize(
    ("arguments", "option", "beside"),
    [
        ("compose star -a pocket:star --policy composer", "--policy", "--adapter"),
        ("compose star -a pocket:star --temperature 0.5", "--temperature", "--adapter"),
        ("compose star -a pocket:star --max-adapters 0", "--max-adapters", "--adapter"),
        ("generate star -a pocket:star --policy none", "--policy", "--adapter"),
        ("generate --composition x --base-model sd15", "--base-model", "--composition"),
        ("generate --composition x -a pocket:star=1 --policy none", "--policy", "--composition"),
        ("generate --composition x --normalise", "--normalise", "--composition"),
        ("generate star --repeat-masks", "--repeat-masks", "--masks all"),
        ("generate star --method composite --switch-every 2", "--switch-every", "--method composite"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(arguments: str, option: str, beside: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{option} changes nothing beside {beside}: leave"):
        app(arguments.split(), standalone_mode=False)


@pytest.mark.parametrize("arguments", ["weight --forget", "weight pocket:star 0.5 --forget", "pair --forget"])
def test_nothing_is_forgotten_that_was_not_named(arguments: str) -> None:
    with pytest.raises(InvalidInput, match=f"`stylus {arguments.split()[0]}` shows"):
        app(arguments.split(), standalone_mode=False)


def test_no_arms_are_not_taken_for_the_base_alone(shell: Shell, tmp_path: Path) -> None:
    ran = shell("evaluate", "pocket", "--arms", ",", "--out", str(tmp_path))
    assert (ran.returncode, "There is no arm ''" in ran.stderr) == (1, True)


def test_version(shell: Shell) -> None:
    assert shell("--version").stdout.strip() == metadata.version("stylus-adapters")


def test_errors_are_sentences_with_exit_code_one(shell: Shell) -> None:
    for arguments, words in (
        (["compose", " "], "empty"),
        (["compose", "a star", "--adapter", "pocket:nothing"], "`stylus search`"),
        (["compose", "a star", "--adapter", "pocket:nothing=heavy"], "heavy"),
        (["compose", "a star", "--adapter", "nothing"], "stylus search"),
        (["generate", "a star", "--count", "10000"], "64"),
        (["generate", "a star", "--count", "0"], "1"),
        (["generate"], "prompt"),
        (["generate", "--composition", "unknown"], "`stylus compose`"),
        (["generate", "--composition", "unknown", "-a", "pocket:star"], "new weight"),
        (["search", "star", "--limit", "0"], "limit"),
        (["weight", "pocket:nothing"], "pocket:nothing"),
    ):
        ran = shell(*arguments)
        assert ran.returncode == 1, (arguments, ran.stdout, ran.stderr)
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr


def test_a_weight_may_be_below_zero(shell: Shell) -> None:
    shell.json("ingest", "pocket")
    assert shell.json("weight", "pocket:star", "-0.5") == {"pocket:star": -0.5}
    for arguments in (["--wrong"], ["pocket:star", "--wrong"], ["pocket:star", "1", "--wrong"], ["-1", "pocket:star"]):
        ran = shell("weight", *arguments)
        assert (ran.returncode, "Error" in ran.stderr) == (2, True), arguments
    assert shell.json("weight") == {"pocket:star": -0.5}


@pytest.mark.parametrize("id", ["file:0123456789abcdef", f"hub:somebody/{'a-long-name-' * 12}"])
def test_a_table_cuts_no_id_off(id: str) -> None:
    """Other commands need them; on 80 columns those of files ended in an ellipsis."""
    table = Table("score", id_column("id"), "name", "category", "weight", "why")
    add_row(table, "0.53", id, "A name of several words", "background", "0.8", "similar to the prompt (0.37)")
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    cells = [line.split("│")[2].strip() for line in console.file.getvalue().splitlines() if line.startswith("│")]
    assert "".join(cells) == id


def test_every_command_that_ends_takes_json() -> None:
    def without(command: Any, name: str = "") -> set[str]:
        parts = getattr(command, "commands", None)
        if parts is None:
            return set() if any("--json" in option.opts for option in command.params) else {name.strip()}
        return set().union(*(without(part, f"{name} {word}") for word, part in parts.items()))

    assert without(typer.main.get_command(app)) == {"serve", "worker"}


def test_tokens_as_json(shell: Shell) -> None:
    made = shell.json("token", "add", "anna", "--read-only")
    assert (made["name"], made["scopes"], len(made["token"])) == ("anna", ["read"], 43)
    assert shell.json("token", "revoke", "anna") == {"revoked": "anna"}
    (listed,) = shell.json("token", "list")
    assert (listed["name"], listed["revoked_at"] is None) == ("anna", False)


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


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:secret@h/db",
        "postgres//u:secret@h",
        "sqlite:///secret",
        "postgresql://u:100%secret@h/db",
        "postgresql://u:p@secret@h/db",
        "postgresql://u:p/secret@h/db",
    ],
)
def test_a_wrong_database_url_is_refused_without_a_word_of_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("STYLUS_DATABASE_URL", url)
    with pytest.raises(SettingsError, match=r"STYLUS_DATABASE_URL: .*postgresql://USER@HOST/DATABASE") as caught:
        Settings.read()
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["STYLUS_KEEP_DAYS", "STYLUS_KEEP_GB", "STYLUS_ADAPTER_CACHE_GB"])
@pytest.mark.parametrize("value", ["inf", "1e300", "nan", "0"])
def test_numbers_that_nothing_can_be_counted_with(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        Settings.read()


def test_an_empty_setting_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT" if name == "otlp_endpoint" else f"STYLUS_{name.upper()}", "")
    assert Settings.read() == Settings.model_validate({})
    assert not Settings.read().model_fields_set


def test_folders_may_be_relative_or_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STYLUS_DATA", "~/x")
    monkeypatch.setenv("STYLUS_AUDIT", "~/audit.jsonl")
    monkeypatch.setenv("STYLUS_RERANKER", "sentence-transformers:~/model")
    read = Settings.read()
    assert (read.data, read.audit) == (tmp_path / "x", str(tmp_path / "audit.jsonl"))
    assert read.reranker == f"sentence-transformers:{tmp_path}/model"
    monkeypatch.setenv("STYLUS_DATA", "x")
    assert Settings.read().data == Path.cwd() / "x"
    monkeypatch.setenv("STYLUS_DATA", "~nobody-of-that-name/x")
    with pytest.raises(SettingsError, match=r"STYLUS_DATA: .*whole path"):
        Settings.read()


def test_unreachable_database_is_named(shell: Shell) -> None:
    ran = shell("search", "star", STYLUS_DATABASE_URL="postgresql://someone:secret@127.0.0.1:9/nowhere")
    assert ran.returncode == 1
    assert "127.0.0.1" in ran.stderr
    assert "secret" not in ran.stderr
    assert "Traceback" not in ran.stderr


def test_doctor_names_every_setting(shell: Shell) -> None:
    ran = shell("doctor", "--json", STYLUS_STORE="nosuch://bucket")
    checks = {check["name"]: check for check in json.loads(ran.stdout)}
    ours = {f"STYLUS_{name.upper()}" for name in Settings.model_fields if name != "otlp_endpoint"}
    assert set(checks) == ours | {"OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert checks["STYLUS_DATABASE_URL"]["value"] == "****"
    assert checks["STYLUS_DATABASE_URL"]["origin"] == "environment"
    assert checks["STYLUS_DATABASE_URL"]["status"] == "warning"
    assert "stylus ingest" in checks["STYLUS_DATABASE_URL"]["finding"]
    assert checks["STYLUS_EMBEDDER"]["status"] == "ok"
    assert (ran.returncode, checks["STYLUS_STORE"]["status"]) == (1, "failed")
    assert "Protocol not known: nosuch" in checks["STYLUS_STORE"]["finding"]


def test_doctor_goes_on_without_database_and_data_folder(shell: Shell, tmp_path: Path) -> None:
    relative = os.path.relpath(tmp_path / "nofolder")
    ran = shell("doctor", "--json", STYLUS_DATA=relative, STYLUS_DATABASE_URL="postgresql://u:x@127.0.0.1:1/x")
    checks = {check["name"]: check for check in json.loads(ran.stdout)}
    assert (ran.returncode, checks["STYLUS_DATABASE_URL"]["status"]) == (1, "failed")
    assert "free" in checks["STYLUS_DATA"]["finding"]


def test_folder_with_a_bad_file_goes_on_and_says_so(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x80\x04this is a pickle")
    ran = shell("ingest", "folder", str(tmp_path), "--json")
    assert ran.returncode == 3
    assert json.loads(ran.stdout)["problems"][0]["file"].endswith("broken.safetensors")


def test_ctrl_c_ends_within_a_step(shell: Shell, settings: Settings, tmp_path: Path) -> None:
    preview = tmp_path / "preview.png"
    command = [*COMMAND, "generate", "a red star", "--policy", "none", "--steps", "200", "--preview", str(preview)]
    process = subprocess.Popen(
        command, env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not preview.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (INTERRUPTED, "")
    assert "Cancelled." in error
    assert "Traceback" not in error
    assert not list(settings.data.glob("images/*"))


def test_ctrl_c_before_there_is_progress_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible(lambda progress: None):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_twice_ends_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, interruptible(lambda progress: None) as report:
        report(Progress(stage="generating"))
        signal.raise_signal(signal.SIGINT)
        assert "Ctrl-C again" in capfd.readouterr().err
        report(Progress(stage="generating"))
    assert caught.value.exit_code == INTERRUPTED
    with pytest.raises(KeyboardInterrupt), interruptible(lambda progress: None) as report:
        report(Progress(stage="generating"))
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


BUSY = """
import threading, time, torch
from stylus import cli

def work():
    while True:
        torch.ones(200, 200) @ torch.ones(200, 200)

def interrupted():
    raise SystemExit(130)

threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
cli.app = interrupted
cli.main()
"""


def test_ctrl_c_while_a_thread_is_inside_torch() -> None:
    """Python 3.11 to 3.13 end such a thread so that the whole process aborts."""
    ran = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (INTERRUPTED, "")
