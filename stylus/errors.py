"""Every error that Stylus raises on purpose: one tree, and each message names the value and the remedy.

Foreign exceptions are translated at the seam where they enter, with `raise ... from`.
"""

from pydantic import ValidationError

_LONG = 60
"""Characters of a value that a message quotes."""


class StylusError(Exception):
    """Root of the tree. `str(error)` is fit to be shown to the person or agent who must act."""


class InvalidInput(StylusError):
    """The caller's argument is out of range, of the wrong form or too large."""


class NotFound(StylusError):
    """An id names nothing: the message gives the nearest names where there are any."""


class Busy(StylusError):
    """The queue is full, or one client asks for too much at once: nothing was done, and a later call may succeed."""


class SettingsError(StylusError):
    """A setting (environment variable) has a value that can't be used."""


class DatabaseUnavailable(StylusError):
    """Postgres can't be reached or can't be started; the call may be repeated once it is back."""


class StorageError(StylusError):
    """A file or folder can't be read or written: full disk, read-only home, missing rights."""


class AdapterFileError(StylusError):
    """An adapter's weight file is missing, corrupt, of an unknown key scheme, or made for another base model."""


class UnsupportedAdapter(AdapterFileError):
    """An adapter of a method or a naming scheme that can't be applied; pictures are made without it, and say so."""


class SourceUnavailable(StylusError):
    """A source of adapters (Civitai, a hub) could not be reached, refused us or answered with nonsense."""


class CheckpointError(StylusError):
    """A base model (checkpoint) is not configured, is missing or can't be loaded."""


class ModelUnavailable(StylusError):
    """A language, vision or embedding model could not be reached or gave no usable answer."""


class GenerationError(StylusError):
    """The picture could not be rendered: out of memory, NaN, an unsupported combination."""


class BrokenDown(GenerationError):
    """The numbers of a picture became NaN or infinite, in every precision that was tried."""


class Cancelled(StylusError):
    """The work was cancelled by its owner. A progress callback raises it to stop a generation within a step."""


def flaws(error: ValidationError) -> str:
    """What is wrong with a record, a clause for each field: where, why, and the value, a long one's beginning. What is
    wrong with the record as a whole needs no print of all of it."""
    clauses = []
    for problem in error.errors(include_url=False, include_context=False):
        where, value = ".".join(map(str, problem["loc"])), problem["input"]
        long = f"{len(value):,} characters, " if isinstance(value, str) and len(value) > _LONG else ""
        given = f" (given: {long}{value!r:.{_LONG}})" if where and problem["type"] != "missing" else ""
        clauses.append(f"{where and where + ': '}{problem['msg'].removeprefix('Value error, ')}{given}")
    return "; ".join(dict.fromkeys(clauses))
