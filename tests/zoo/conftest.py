"""One way to make ports of the zoo: the public command line, in this process, with its verdict."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from porting import cli

Feeds = Mapping[str, np.ndarray]


def command(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `porting` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
        cli.main([str(a) for a in arguments])
    assert isinstance(done.value.code, int)
    return done.value.code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session")
def ported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A port that passed, made once for each key: `ported(key, *arguments, inputs=[feeds, ...])`."""
    made: dict[str, Path] = {}

    def port(key: str, *arguments: object, inputs: Sequence[Feeds] = ()) -> Path:
        if key not in made:
            folder = tmp_path_factory.mktemp(key)
            options: list[object] = []
            for number, feeds in enumerate(inputs):
                np.savez(folder / f"{number}.npz", **feeds)
                options += ["--inputs", folder / f"{number}.npz"]
            target = folder / f"{key}.port"
            code, out, err = command("port", *arguments, *options, "-o", target, "--json", "--quiet")
            assert code == 0, f"{out}\n{err}"
            verdict = json.loads(out)
            assert (verdict["verdict"], verdict["reference"]) == ("pass", "upstream"), out
            made[key] = target
        return made[key]

    return port


@pytest.fixture(scope="session")
def porting_command() -> Callable[..., tuple[int, str, str]]:
    """`porting` in this process."""
    return command
