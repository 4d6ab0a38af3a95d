"""`make bundle`: dist/stylus.mcpb, which Claude Desktop installs by a double click (MCPB, manifest 0.4).

The bundle holds this project's own files and no dependency: its server type is uv, so that the application installs
what pyproject.toml names, in the build of PyTorch that fits the machine.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MCPB = ROOT / "tests/conformance/node_modules/@anthropic-ai/mcpb/dist/cli/cli.js"
CONTENT = ("LICENSE", "README.md", "pyproject.toml", "migrations", "server", "stylus")


def collect(folder: Path) -> None:
    """Fills `folder`, which must not be there yet, with what the bundle holds."""
    folder.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in CONTENT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, folder / name)
    shutil.copy2(Path(__file__).with_name("manifest.json"), folder / "manifest.json")


def main() -> None:
    folder, bundle = ROOT / "build/mcpb", ROOT / "dist/stylus.mcpb"
    shutil.rmtree(folder, ignore_errors=True)
    collect(folder)
    bundle.parent.mkdir(exist_ok=True)
    for arguments in (["validate", str(folder / "manifest.json")], ["pack", str(folder), str(bundle)]):
        if subprocess.run(["node", str(MCPB), *arguments], stdout=sys.stderr, check=False).returncode:
            sys.exit(f"mcpb {arguments[0]} failed.")
    print(bundle)


if __name__ == "__main__":
    main()
