"""The README's Python runs as it stands, and its commands exist."""

import re
import subprocess
from pathlib import Path

import pytest

from stylus.settings import Settings
from tests import COMMAND

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = sorted(set(re.findall(r"^stylus (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE)))


def test_readme_shows_python_and_commands() -> None:
    assert BLOCKS
    assert {"ingest", "search", "compose", "generate", "serve", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("block", BLOCKS)
def test_python_block_runs(
    block: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settings.database_url is not None
    monkeypatch.setenv("STYLUS_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("STYLUS_DATA", str(settings.data))
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})  # noqa: S102
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command: str) -> None:
    shown = subprocess.run(
        [*COMMAND, command, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
