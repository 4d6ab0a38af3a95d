"""The store where pictures lie: an fsspec URL, a folder by default. Files are written whole or not at all."""

import errno
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from stylus.errors import InvalidInput, NotFound, StorageError


def write(store_url: str, name: str, data: bytes) -> str:
    """Writes the PNG file of that name and returns where it lies: a path or a URL. Replaces what is there.

    Raises StorageError that says what to do."""
    if not re.fullmatch(r"(inputs/)?[A-Za-z0-9_-]{1,100}\.png", name):
        raise InvalidInput(f"{name!r} can't name an image file: use letters, digits, - and _.")
    with _saving(store_url):
        filesystem, root = fsspec.core.url_to_fs(store_url)
        if isinstance(filesystem, LocalFileSystem):
            return str(write_whole(Path(root) / name, data))
        path = f"{root.rstrip('/')}/{name}"
        filesystem.pipe_file(path, data)  # object stores show an object when it is complete, not before
        return str(filesystem.unstrip_protocol(path))


def check(store_url: str) -> None:
    """Finds, before pictures are drawn, that they could not be saved there, as far as that shows without a request.

    Raises StorageError that says what to do."""
    with _saving(store_url):
        filesystem, root = fsspec.core.url_to_fs(store_url)
        if isinstance(filesystem, LocalFileSystem):
            Path(root).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=root).close()


@contextmanager
def _saving(store_url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        raise StorageError(f"the image can't be saved in {store_url}: {reason(error)}") from error


def location(store_url: str, name: str) -> str:
    """Where `write` puts the file of that name."""
    filesystem, root = fsspec.core.url_to_fs(store_url)
    local = isinstance(filesystem, LocalFileSystem)
    return str(Path(root) / name) if local else str(filesystem.unstrip_protocol(f"{root.rstrip('/')}/{name}"))


def read_bytes(location: str) -> bytes:
    """The file at a location. Raises NotFound when it is gone, StorageError otherwise."""
    try:
        with fsspec.open(location, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError as error:
        raise NotFound(f"the image file {location} is gone: it was moved or deleted. Generate it again.") from error
    except (OSError, ValueError, ImportError) as error:
        remedy = "Name an image file that this user may read, or the URL of one."
        raise StorageError(f"the image {location} can't be read: {reason(error, remedy)}") from error


def write_whole(path: Path, data: bytes) -> Path:
    """The file with that content, or as it was. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # which root could put the new file in place of
        raise OSError(errno.EINVAL, "It is a device or a folder", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def reason(
    error: Exception, remedy: str = "Set STYLUS_STORE to a folder or fsspec URL that this user may write."
) -> str:
    """What went wrong and what to do about it."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full. Free some space, or set STYLUS_STORE to another folder or fsspec URL."
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no right to write or read there. {remedy}"
    if isinstance(error, ImportError):
        return f"{error}. Install that package (for s3:// the extra `s3`), or set STYLUS_STORE to a folder."
    return f"{error}. {remedy}"
