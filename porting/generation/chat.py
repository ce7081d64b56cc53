"""Chat templates: messages -> the text that the model was trained on.

The template comes with the checkpoint and is code from a stranger. It is rendered in jinja2's immutable sandbox, in a process
of its own with a limit on time, memory and output (chat_sandbox.py). Whatever goes wrong there is an error about the input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from porting.errors import InputError, RuntimeFailed, UsageError

RUN_WITHOUT = "run without it (chat=False, on the command line --no-chat), or correct the template in the port's source"
# Python itself may need the first two to start; the last two are what a date in a template depends on.
KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "SYSTEMROOT", "TZ", "LC_TIME")


@dataclass(frozen=True)
class RenderLimits:
    """What one rendering may use. The largest public templates take a hundredth of each.

    template_bytes: size of the template itself
    characters:     of output
    cpu_seconds:    processor time; wall time is limited to ten times as much, for busy machines
    memory_bytes:   address space of the process, Python included
    """

    template_bytes: int = 1 << 20
    characters: int = 8 << 20
    cpu_seconds: int = 5
    memory_bytes: int = 1 << 30


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens it may name.

    source:         jinja2
    where:          the file it comes from, for errors
    special_tokens: "bos_token", "eos_token", ... -> text
    """

    source: str
    where: str = "chat_template.jinja"
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        limits: RenderLimits = RenderLimits(),
    ) -> str:
        """The text of a conversation; encode it without adding special tokens, it holds its own.

        messages: [{"role": "user", "content": "..."}, ...]: JSON types only. No system message is added here; some
                  templates bring one. Special tokens written in a message are not escaped: they count as special tokens
        raises:   UsageError for messages of another form; InputError for a template that is too large, has a syntax error,
                  refuses these messages, reaches for what the sandbox forbids, or exceeds a limit; RuntimeFailed when its
                  process cannot be started
        """
        conversation = _checked_messages(messages)
        size = len(self.source.encode("utf-8", "surrogatepass"))
        if size > limits.template_bytes:
            raise self._error(f"it has {size} bytes, allowed are {limits.template_bytes}")
        variables = {
            **self.special_tokens,
            "messages": conversation,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        answer = self._in_own_process(variables, limits)
        if "text" in answer:
            return answer["text"]
        message = "".join(c if c.isprintable() else " " for c in answer["message"])[:300]
        raise self._error(
            {
                "syntax": f"syntax error at {message}",
                "refused": f"it refuses these messages: {message}",
                "sandbox": f"it reaches for what the sandbox forbids: {message}",
                "memory": f"it needs more than {limits.memory_bytes >> 20} MiB",
            }.get(answer["kind"], message)
        )

    def _error(self, reason: str) -> InputError:
        return InputError(f"the chat template cannot be used: {reason}", where=self.where, next=RUN_WITHOUT)

    def _in_own_process(self, variables: dict[str, Any], limits: RenderLimits) -> dict[str, str]:
        job = {
            "import_path": sys.path,
            "template": self.source,
            "variables": variables,
            "seconds": limits.cpu_seconds,
            "memory_bytes": limits.memory_bytes,
            "characters": limits.characters,
        }
        # -I -S: no user folders and no .pth files; the job names the import path
        command = [sys.executable or "", "-I", "-S", str(Path(__file__).with_name("chat_sandbox.py"))]
        environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        try:
            done = subprocess.run(
                command,
                input=json.dumps(job).encode("ascii"),
                capture_output=True,
                env=environment,
                timeout=10 * limits.cpu_seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise self._error(f"it did not finish within {10 * limits.cpu_seconds} s") from error
        except OSError as error:
            raise RuntimeFailed(
                f"the process for the chat template cannot be started: {error}", where=command[0], next=RUN_WITHOUT
            ) from error
        if done.returncode < 0 and signal.Signals(-done.returncode).name == "SIGXCPU":
            raise self._error(f"it took more than {limits.cpu_seconds} s of processor time")
        if done.returncode < 0:
            raise self._error(f"it ended its process (signal {-done.returncode})")
        try:
            return json.loads(done.stdout)
        except ValueError as error:
            last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise RuntimeFailed(
                f"the process for the chat template broke (exit {done.returncode}): {last}",
                where=command[-1],
                next=RUN_WITHOUT,
            ) from error


def _checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """`messages` as JSON gives them back: a template sees plain data and no object of ours."""
    form = '[{"role": "user", "content": "..."}]'
    if isinstance(messages, str) or not messages or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        raise UsageError("messages are no list of roles and contents", where="chat", next=f"the form is {form}")
    try:
        return json.loads(json.dumps([dict(m) for m in messages], allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"messages hold what is no JSON: {error}", where="chat", next=f"the form is {form}") from error


def chat_template_from(side_files: Mapping[str, bytes], name: str = "default") -> ChatTemplate | None:
    """The chat template among a port's side files, None when there is none.

    side_files: chat_template.jinja, which goes first, and tokenizer_config.json, whose "chat_template" is one template or a
                list of named ones, and which names the special tokens
    name:       which of several
    raises:     InputError for a file that cannot be read, or when none of several has this name
    """
    config = json_object(side_files, "tokenizer_config.json")
    tokens = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    if "chat_template.jinja" in side_files:
        try:
            source = side_files["chat_template.jinja"].decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"the chat template is not UTF-8: {error}", where="chat_template.jinja") from error
        return ChatTemplate(source, "chat_template.jinja", tokens)
    stored = config.get("chat_template")
    if stored is None:
        return None
    if isinstance(stored, str):
        return ChatTemplate(stored, "tokenizer_config.json", tokens)
    named: dict[str, str] = {}
    for entry in stored if isinstance(stored, list) else []:
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str):
            named[entry["name"]] = entry["template"]
    if name not in named:
        raise InputError(
            f"there is no chat template called {name!r}",
            where="tokenizer_config.json, chat_template",
            next=f"it has: {', '.join(sorted(named)) or 'none'}; put one into chat_template.jinja, or use chat=False",
        )
    return ChatTemplate(named[name], "tokenizer_config.json", tokens)


def json_object(side_files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A side file that holds one JSON object; {} when it is absent.

    raises: InputError when it holds anything else
    """
    try:
        content = json.loads(side_files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is no JSON: {error}", where=name, next="convert again from an undamaged checkpoint") from error
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object, got {type(content).__name__}", where=name)
    return content
