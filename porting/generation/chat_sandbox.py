"""The process that renders a chat template: jinja2's immutable sandbox, under limits of the operating system.

A template is code from a stranger. The sandbox keeps it from Python's internals, but not from `{{ 'x' * 10**10 }}`,
`{{ 9**9**9 }}` or nested loops; those are stopped by limits on memory and processor time, which can only be set for a whole
process. So chat.py runs this file as a script: a job as JSON on stdin, an answer as JSON on stdout. It imports jinja2 and the
standard library only, on the import path that the job names.

job:    {"import_path": [...], "template": "...", "variables": {...}, "seconds": int, "memory_bytes": int, "characters": int}
answer: {"text": "..."} or {"kind": "syntax" | "refused" | "sandbox" | "size" | "memory" | "failed", "message": "..."}
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any


def limit_process(seconds: int, memory_bytes: int) -> None:
    """Cap this process: processor time from now on, address space in all, no core file."""
    try:
        import resource
    except ImportError:  # Windows has none: there the parent's timeout is the only limit
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = int(used.ru_utime + used.ru_stime) + 1 + seconds
    for kind, wanted in ((resource.RLIMIT_CPU, total), (resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses to limit the address space
            resource.setrlimit(kind, (value, hard))


def make_environment() -> Any:
    """The environment that chat templates are written for.

    source: transformers 5.23, utils/chat_template_utils.py (names, filters and block options it gives to a template)
    """
    from datetime import datetime

    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.ext import loopcontrols as LoopControls
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
            """Refuse at once: jinja2 itself lets `{{ ''.__class__ }}` pass as an empty string."""
            raise jinja2.exceptions.SecurityError(f"access to {attribute!r} of a {type(obj).__name__}")

    class GenerationBlock(Extension):
        """`{% generation %}` marks the assistant's words for training; here it only shows its body."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class Namespace(jinja2.utils.Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(f"attribute {name!r} on a namespace")
            super().__setitem__(name, value)

    def new_namespace(*args: Any, **kwargs: Any) -> Namespace:
        namespace = Namespace()
        for name, value in dict(*args, **kwargs).items():
            namespace[name] = value
        return namespace

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, LoopControls])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = new_namespace
    return environment


def render(template: str, variables: dict[str, Any], characters: int) -> dict[str, str]:
    """Render piece by piece, and stop at `characters`. Returns the answer described at the top of this file."""
    import jinja2

    pieces: list[str] = []
    size = 0
    try:
        for piece in make_environment().from_string(template).generate(variables):
            size += len(piece)
            if size > characters:
                return {"kind": "size", "message": f"its output exceeds {characters} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except jinja2.TemplateSyntaxError as error:
        return {"kind": "syntax", "message": f"line {error.lineno}: {error.message}"}
    except jinja2.exceptions.SecurityError as error:
        return {"kind": "sandbox", "message": str(error)}
    except MemoryError:
        pieces.clear()
        return {"kind": "memory", "message": ""}
    except jinja2.TemplateError as error:
        return {"kind": "refused", "message": str(error)}
    except Exception as error:  # whatever a template's own code can raise, RecursionError included
        return {"kind": "failed", "message": f"{type(error).__name__}: {error}"}


def main() -> None:
    job = json.load(sys.stdin.buffer)
    sys.path[:] = job["import_path"]
    import jinja2.sandbox  # noqa: F401 - before the limits, so that they count the template's work alone

    limit_process(job["seconds"], job["memory_bytes"])
    answer = render(job["template"], job["variables"], job["characters"])
    sys.stdout.write(json.dumps(answer))  # ASCII, whatever the locale


if __name__ == "__main__":
    main()
