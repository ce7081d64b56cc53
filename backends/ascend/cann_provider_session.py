"""A session of the CANN provider: scalars in as one number, what was compiled kept, and the vendor's codes in words.

The provider's exceptions name the call that failed and no code. That stands in a line which it prints to stderr, and the reason in what CANN
remembers for the thread (aclGetRecentErrMsg): both are read where a call fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from porting.ascend.explanations import Explanation, codes_of_line, explain_code
from porting.ascend.graph_facts import GraphFacts
from porting.ascend.rules import judge
from porting.ascend.soc import find_soc
from porting.backends.ascend.acl_codes import kind_of
from porting.backends.ascend.cann_provider_cache import CompiledModels
from porting.backends.ascend.cann_provider_graph import Prepared
from porting.backends.onnxruntime import OrtSession
from porting.errors import DeviceUnavailable, OutOfResources, PortingError, RuntimeFailed, UsageError
from porting.types import State
from porting.verdict import printable

# "CANN failure 507011: text ; NPU=0 ; hostname=... ; expr=aclmdlExecuteAsync(...)"; onnxruntime, core/providers/cann/cann_call.cc
_FAILURE = re.compile(r"CANN failure (\d+): (.*?) ; NPU=.*?expr=(\w+(?:::\w+)*)", re.DOTALL)
_NO_TEXT = "(look for ACL_ERROR_xxx in acl.h)"  # the provider's words for a code that it does not know
_ARENA = re.compile(r"Available memory of \d+ is smaller than requested bytes of \d+")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
COMPILES = "expr=ge::aclgrph"  # of what the provider prints and throws where parsing or building fails
_SHOWN = 500  # characters of what the vendor said


class CannSession:
    """OrtSession over the provider. For one thread at a time, as a worker serves it: stderr is the process's."""

    def __init__(
        self,
        runtime: Any,
        session: Any,
        graph: Prepared,
        placement: Mapping[str, str],
        device: str,
        index: int,
        models: CompiledModels,
        soc: str,
        on_close: Callable[[], None],
    ) -> None:
        """
        models:   open; closed with this session
        on_close: called once
        """
        self.placement = placement
        self._device, self._models, self._on_close = device, models, on_close
        self._scalars, self._facts, self._soc = graph.scalars, graph.facts, soc
        self._inner: OrtSession | None = OrtSession(runtime, session, graph.program, placement, device, "cann", index)
        self._seen: set[tuple] = set()

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        with explaining(self._device):
            return self._require_open().new_state(capacity, batch, grown_from)

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        with explaining(self._device):
            return self._require_open().read_state(state)

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        shapes = tuple((name, array.shape) for name, array in feeds.items())
        if self._scalars:
            feeds = {name: array.reshape(1) if name in self._scalars else array for name, array in feeds.items()}
        try:
            with explaining(self._device):
                outputs = self._require_open().run(feeds, state)
        except RuntimeFailed as error:
            if COMPILES in error.what:
                raise refused_by_rules(error, self._facts, self._soc) from error
            raise
        if shapes not in self._seen:  # the run compiled a model
            self._seen.add(shapes)
            self._models.keep()
        return outputs

    def close(self) -> None:
        """Safe to call twice."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None
            self._models.close()
            self._on_close()

    def _require_open(self) -> OrtSession:
        if self._inner is None:
            raise UsageError("the session is closed")
        return self._inner


@contextlib.contextmanager
def explaining(device: str) -> Iterator[None]:
    """Hear what is printed to stderr, and explain an error by it; where nothing fails it is passed on. One at a time: stderr is the process's."""
    with _listening() as heard:
        failed: PortingError | None = None
        try:
            yield
        except PortingError as error:
            failed = error
            heard.keep = False
    if failed is not None:
        raise explained(failed, f"{heard.text}\n{recent_message()}", device) from failed


class _Heard:
    """text: what was printed; keep: whether it is passed on"""

    text = ""
    keep = True


@contextlib.contextmanager
def _listening() -> Iterator[_Heard]:
    heard = _Heard()
    file, kept = _file(), os.dup(2)
    os.dup2(file, 2)
    try:
        yield heard
    finally:
        os.dup2(kept, 2)
        size = os.lseek(file, 0, os.SEEK_CUR)
        if size:
            heard.text = os.pread(file, size, 0).decode(errors="replace")
            os.lseek(file, 0, os.SEEK_SET)
            if heard.keep:
                os.write(kept, heard.text.encode())
        os.close(kept)


@functools.cache
def _file() -> int:
    """A file without a name, as long as the process: a run of a small model takes less than making one."""
    with tempfile.TemporaryFile() as made:
        return os.dup(made.fileno())


def refused_by_rules(error: RuntimeFailed, facts: GraphFacts, soc: str) -> RuntimeFailed:
    """CANN does not compile the graph. Why, it tells the provider, which reads that and throws it away; so what the rules say is said."""
    found = [finding for finding in judge(facts, find_soc(soc)) if finding.rule.effect == "refuses"]
    if not found:
        return RuntimeFailed(
            f"CANN does not compile the graph, and the provider keeps the reason to itself: {error.what}",
            where=error.where,
            next="CANN's log says it: ASCEND_LOG_PRINT_TO_STDOUT=1, ASCEND_SLOG_PRINT_TO_STDOUT=1 in older releases; or compile it with atc: route=om",
        )
    first = next((finding for finding in found if finding.rule.code), found[0])
    code, more = first.rule.code or "no code known", f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    meaning = _meaning(code)
    return RuntimeFailed(
        f"{code}: CANN does not compile the graph; the provider keeps the reason to itself, and by the rules it is node "
        f"{printable(first.node or '', 80)!r} ({first.op}): {first.rule.says} ({first.rule.confidence}){more}",
        where=error.where,
        next=meaning.do if meaning else "`porting check` lists everything that is in the way",
    )


def recent_message() -> str:
    """What CANN says of the last error in this thread, which forgets it by that. "" where there is nothing, or no such function."""
    try:
        library = ctypes.CDLL("libascendcl.so")
        library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        return (library.aclGetRecentErrMsg() or b"").decode(errors="replace")
    except (OSError, AttributeError):
        return ""


def explained(error: PortingError, heard: str, device: str) -> PortingError:
    """An error of the provider with the vendor's codes, what they mean and what to do."""
    heard = _COLOURS.sub("", heard)
    failures = _FAILURE.findall(f"{heard}\n{error.what}")
    codes = list(dict.fromkeys(code for line in (*heard.splitlines(), error.what) for code in codes_of_line(line)))
    codes += [number for number, _, _ in failures if number not in codes]
    known = [found for found in map(_meaning, codes) if found is not None]
    if _ARENA.search(error.what):
        return OutOfResources(
            f"the arena of device memory is full: {error.what}",
            where=error.where,
            next="raise memory_limit=, or use smaller gears",
        )
    if not codes:
        return error
    first = next((one for one in known if one.kind not in ("generic", "note", "warning")), known[0] if known else None)
    said = " | ".join(dict.fromkeys(_told(heard)))
    calls = ", ".join(dict.fromkeys(f"{call} gives {number}" for number, _, call in failures))
    what = "; ".join(filter(None, (calls, f"CANN says: {printable(said, _SHOWN)}" if said else "")))
    if first is None:
        return type(error)(f"{error.what}: {what}", where=error.where, next=f"`porting explain {codes[0]}`")
    kinds = {kind_of(int(code)) for code in codes if code.isdecimal()}
    kind = next((k for k in (OutOfResources, DeviceUnavailable) if k in kinds), RuntimeFailed)
    return kind(
        f"{first.code}: {first.means} ({first.means_status}); {what}", where=error.where or f"run on {device}", next=first.do
    )


def _told(heard: str) -> Iterator[str]:
    """Lines that carry a code, without the frame that onnxruntime puts around its own."""
    for line in heard.splitlines():
        framed = _FAILURE.search(line)
        text = framed[2].replace(_NO_TEXT, "") if framed else line
        if (codes_of_line(text) or framed) and text.strip():
            yield text.strip()


def _meaning(code: str) -> Explanation | None:
    try:
        return explain_code(code)
    except PortingError:  # in no table
        return None
