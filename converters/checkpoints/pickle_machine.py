"""A machine that reads a pickle of plain data and cannot execute: nothing is imported, nothing from the file is called.

CPython's own unpickler, even with `find_class` overridden, can be made to allocate without bound (a memo index of 2**32)
or to overflow the C stack (a deeply nested tuple as a key), so it is not used; `pickletools.genops` decodes the operations,
and memory grows with their number only.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_OPERATIONS = 4_000_000  # about 80,000 tensors; ten seconds


class Global(NamedTuple):
    """A name that the pickle refers to. It stays a name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:120]  # both come from the file and may be of any length


class Opaque(NamedTuple):
    """An object of a class that `call` knows to carry nothing that is needed. It is not made; what it would hold is dropped."""

    kind: Global


class PickleRefused(Exception):
    """The pickle is damaged, or (`is_code`) wants something executed that is not on the list."""

    def __init__(self, what: str, is_code: bool = False) -> None:
        super().__init__(what)
        self.is_code = is_code


class _Mark:
    """Where a run of items on the stack begins."""


MARK = _Mark()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def state_of(data: bytes, call: Callable[[Global, tuple], Any], refer: Callable[[Any], Any]) -> Any:
    """The value that a pickle describes.

    call:    (name, arguments) -> value, for each REDUCE and each new object of a class; refuses what it does not know
    refer:   persistent id -> value
    raises:  PickleRefused, also out of `call` and `refer`
    """
    machine = _Machine(call, refer)
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if operation.name == "STOP":
                return machine.result()
            if count >= MAX_OPERATIONS:
                raise PickleRefused(f"is not the pickle of a state dict: more than {MAX_OPERATIONS} operations")
            machine.step(operation.name, argument)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeError) as error:
        raise PickleRefused(f"holds a damaged pickle: {type(error).__name__}: {str(error)[:200]}") from error
    raise PickleRefused("holds a damaged pickle: it does not end")


class _Machine:
    def __init__(self, call: Callable[[Global, tuple], Any], refer: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.call = call
        self.refer = refer

    def step(self, name: str, argument: Any) -> None:
        """Do one operation; the names are those of pickletools."""
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name == "MARK":
            stack.append(MARK)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            stack.append(tuple(self.pop(TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self.name_of(argument))
        elif name == "BINPERSID":
            stack.append(self.refer(self.pop(1)[0]))
        elif name in ("REDUCE", "NEWOBJ"):
            function, args = self.pop(2)
            self.expect(isinstance(function, Global) and isinstance(args, tuple), "a call of something that is no name")
            stack.append(self.call(function, args))
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.pop(2) if name == "SETITEM" else self.pop_to_mark())
        elif name in ("APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.pop_to_mark()
            self.expect(isinstance(self.top(), list), "an item added to what is no list")
            self.top().extend(items)
        elif name == "BUILD":  # an OrderedDict carries `_metadata` (version numbers of modules) as an attribute
            attributes = self.pop(1)[0]
            if isinstance(self.top(), Opaque):
                return
            self.expect(isinstance(attributes, dict) and isinstance(self.top(), dict), "attributes of what is no state dict")
        elif name not in ("PROTO", "FRAME"):
            raise PickleRefused(f"holds the pickle operation {name}, which a state dict of plain tensors does not need", True)

    def result(self) -> Any:
        """What is left when the pickle ends."""
        self.expect(len(self.stack) == 1 and self.stack[0] is not MARK, f"{len(self.stack)} values left at its end")
        return self.stack[0]

    def expect(self, holds: bool, what: str) -> None:
        """Raise PickleRefused unless it holds."""
        if not holds:
            raise PickleRefused(f"holds a damaged pickle: {what}")

    def top(self) -> Any:
        """The last value, which stays."""
        self.expect(bool(self.stack) and self.stack[-1] is not MARK, "an operation without its operand")
        return self.stack[-1]

    def pop(self, count: int) -> list[Any]:
        """The last `count` values, first pushed first."""
        items = self.stack[-count:]
        self.expect(len(items) == count and not any(i is MARK for i in items), "an operation without its operands")
        del self.stack[-count:]
        return items

    def pop_to_mark(self) -> list[Any]:
        """The values above the last mark, which goes too."""
        start = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is MARK), -1)
        self.expect(start >= 0, "a run of items without its mark")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def name_of(self, argument: str | None) -> Global:
        """The name that GLOBAL (in its argument) or STACK_GLOBAL (on the stack) gives."""
        parts = argument.split(" ", 1) if argument is not None else self.pop(2)
        self.expect(len(parts) == 2 and all(isinstance(p, str) for p in parts), "a malformed name")
        return Global(*parts)

    def set_items(self, flat: list[Any]) -> None:
        """Put key, value, key, value ... into the dict on top of the stack."""
        target = self.top()
        self.expect(isinstance(target, dict) and len(flat) % 2 == 0, "an entry added to what is no dict")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            self.expect(isinstance(key, (str, int)), "a key that is neither text nor number")
            self.expect(key not in target, f"the key {str(key)[:80]!r} given twice")
            target[key] = value
