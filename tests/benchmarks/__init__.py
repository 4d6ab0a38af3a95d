"""What is measured, each by `python -m tests.benchmarks.NAME`, as ratios within one run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def data_folder() -> Iterator[Path]:
    """A data folder for one measurement. Open to others, so that Postgres, which doesn't run as root, can enter it: its
    cluster would else lie elsewhere, and stay there."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
