"""The wheel holds what runs (both packages, migrations, the pocket world) and works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_everything_that_runs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    pocket = [
        path for path in (ROOT / "stylus" / "pocket").rglob("*") if path.is_file() and "__pycache__" not in str(path)
    ]
    revisions = list((ROOT / "migrations" / "versions").glob("*.py"))
    assert pocket
    assert revisions
    assert {str(path.relative_to(ROOT)) for path in pocket} <= names
    assert {f"stylus/migrations/versions/{path.name}" for path in revisions} <= names
    assert {"server/__main__.py", "server/pages/gallery.html", "stylus/cli/__init__.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "examples/"))]


def test_installed_copy_runs_outside_the_checkout(wheel: Path, tmp_path: Path, reachable: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import stylus, sys; assert stylus.__file__.startswith(sys.argv[1]), stylus.__file__; "
        "from stylus.cli import app; app(['db', 'status', '--json'])"
    )
    # -P and the folder keep the checkout off the path, so that migrations must come from the copy
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code, str(site)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "STYLUS_DATA": str(reachable)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert '"pgvector"' in ran.stdout
