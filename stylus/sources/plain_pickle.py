"""A pickle as data: the instructions that make plain values are carried out here, all others are refused.

A pickle is a program (Python's `pickletools` describes its instructions), and Python's own unpickler runs it: it calls,
imports, and reserves memory by numbers in the file. This one knows how to make dict, list, tuple, set, str, bytes,
numbers, booleans and None, and nothing else. An object of a class that the caller names becomes the dict of its
attributes, without the class being looked for.
"""

import mmap
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from stylus.errors import InvalidInput
from stylus.text import clean_line

MOST_BYTES = 8 * 2**30
MOST_INSTRUCTIONS = 100_000_000
"""Each makes one value at most, so that this bounds the memory too. StylusDocs has some tens of millions."""

_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
"""Instructions that push their argument."""
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_KEYS = (str, bytes, bool, type(None))
"""What may be a key or a member of a set, with ints of 60 bits: the hash of nested tuples can take years, and larger
numbers can be made to collide."""


class _Refused(Exception):
    pass


class _Class:
    """Stands for a class that the caller allows."""


def load(path: Path, classes: frozenset[str] = frozenset()) -> Any:
    """What the pickle holds. `classes` are names of classes, wherever they lay, whose objects become dicts of their
    attributes.

    Raises InvalidInput, which says why, for everything that is no plain data.
    """
    size = path.stat().st_size
    if not 0 < size <= MOST_BYTES:
        raise InvalidInput(f"{path} has {size:,} bytes: 1 to {MOST_BYTES:,} are read.")
    position = 0
    stack = _Stack(classes)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for count, (opcode, argument, at) in enumerate(pickletools.genops(cast(IO[bytes], content))):
                position = at or 0
                if count >= MOST_INSTRUCTIONS:
                    raise _Refused(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
                if opcode.name == "STOP":
                    return stack.pop()
                stack.do(opcode.name, argument)
    except _Refused as error:
        raise InvalidInput(f"{path} is refused: {error} (byte {position:,}). Only plain data is read.") from error
    except (ValueError, TypeError, LookupError, AttributeError, MemoryError, OverflowError) as error:
        what = clean_line(str(error), 150) or type(error).__name__
        raise InvalidInput(f"{path} is no whole pickle of plain data: {what} (near byte {position:,}).") from error
    raise InvalidInput(f"{path} is no whole pickle: it ends without a value.")


class _Stack:
    """The machine that pickles are written for, as far as plain data goes."""

    def __init__(self, classes: frozenset[str]) -> None:
        self._classes = classes
        self._values: list[Any] = []
        self._marks: list[int] = []
        """Heights of the stack."""
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def pop(self) -> Any:
        return self._values.pop()

    def do(self, name: str, argument: Any) -> None:
        values = self._values
        if name in _VALUES:
            values.append(argument)
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = values[-1]
        elif name.endswith("GET"):
            values.append(self._memo[int(argument)])
        elif name.endswith("PUT"):
            self._memo[int(argument)] = values[-1]
        elif name in _CONSTANTS:
            values.append(_CONSTANTS[name]())
        elif name == "MARK":
            self._marks.append(len(values))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            length = int(name[-1])
            values[-length:] = [tuple(values[-length:])]
        elif name in ("POP", "DUP"):
            values.pop() if name == "POP" else values.append(values[-1])
        elif name in ("APPEND", "SETITEM"):
            length = 1 if name == "APPEND" else 2
            items = values[-length:]
            del values[-length:]
            self._fill(values[-1], items)
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            items = self._marked()
            self._fill(values[-1], items)
        elif name in ("LIST", "TUPLE", "DICT", "FROZENSET", "POP_MARK"):
            self._gather(name, self._marked())
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._class(argument if name == "GLOBAL" else " ".join(map(_text, (values.pop(-2), values.pop()))))
        elif name in ("NEWOBJ", "BUILD"):
            self._object(name, values.pop())
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"the instruction {name} can run code")

    def _marked(self) -> list[Any]:
        """Takes what was pushed since the last mark."""
        start = self._marks.pop()
        items = self._values[start:]
        del self._values[start:]
        return items

    def _fill(self, into: Any, items: list[Any]) -> None:
        if type(into) is list:
            into.extend(items)
        elif type(into) is set:
            into.update(map(_key, items))
        elif type(into) is dict:
            into.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        else:
            raise _Refused(f"a {type(into).__name__} can't be added to")

    def _gather(self, name: str, items: list[Any]) -> None:
        if name == "DICT":
            self._values.append({})
            self._fill(self._values[-1], items)
        elif name == "FROZENSET":
            self._values.append(frozenset(map(_key, items)))
        elif name != "POP_MARK":
            self._values.append(items if name == "LIST" else tuple(items))

    def _class(self, name: str) -> None:
        if name.rpartition(" ")[2] not in self._classes:
            raise _Refused(f"it asks for {clean_line(name.replace(' ', '.'), 100)}")
        self._values.append(_Class)

    def _object(self, name: str, argument: Any) -> None:
        """An object is made as an empty dict, and given its attributes."""
        if name == "NEWOBJ":
            if self._values.pop() is not _Class or argument != ():
                raise _Refused("it makes an object in a way that is not data")
            self._values.append({})
        elif type(argument) is dict and type(self._values[-1]) is dict:
            # a state that was remembered can be copied again and again by a few bytes
            self._copied += len(argument)
            if self._copied > MOST_INSTRUCTIONS:
                raise _Refused(f"its objects have more than {MOST_INSTRUCTIONS:,} attributes")
            self._values[-1].update(argument)
        else:
            raise _Refused("an object has a state that is not its attributes")


def _key(value: Any) -> Any:
    if not isinstance(value, _KEYS) and not (isinstance(value, int) and abs(value) < 2**60):
        raise _Refused(f"a {type(value).__name__} is a key")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused("a class without a name")
    return value
