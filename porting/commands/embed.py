"""porting embed PORT TEXT..."""

from __future__ import annotations

from pathlib import Path

import click

from porting.errors import InputError, UsageError

from . import options

SHOWN = 4  # numbers of a vector that a terminal gets


@click.command()
@click.argument("port", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--input-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Texts from a UTF-8 file, one a line, after those named.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="NPY",
    help="Write the vectors as .npy, (texts, dimensions) float32.",
)
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "max", "mean_sqrt_len"]),
    help="How hidden states become one vector, for a port whose checkpoint does not say.",
)
@click.option("--normalize", is_flag=True, help="With --pooling: vectors of length 1.")
@click.option("--batch-size", default=32, show_default=True, help="Texts that run together.")
@options.device
@options.force
@options.as_json
@options.quiet
def command(
    port: Path,
    texts: tuple[str, ...],
    input_file: Path | None,
    output: Path | None,
    pooling: str | None,
    normalize: bool,
    batch_size: int,
    device: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """One vector per TEXT with the PORT of an encoder.

    On a terminal the first numbers of each, and its cosine to the first text; --json and -o give them all.
    """
    from porting.embedding import Embedder

    if output is not None:
        from porting.outputs import require_new_file

        require_new_file(output, force)
    wanted = [*texts, *(_lines(input_file) if input_file is not None else [])]
    if not wanted:
        raise UsageError("there is no text", where="porting embed", next="name one, or give a file of them with --input-file")
    with Embedder(port, device, pooling=pooling, normalize=normalize or None) as embedder:
        vectors = embedder(wanted, batch_size=batch_size)
        ran_on = embedder.device
    result = {"schema": "porting.embed/1", "device": ran_on, "shape": list(vectors.shape)}
    if output is not None:
        import numpy as np

        from porting.port_staging import os_errors

        with os_errors(output), output.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
        options.emit({**result, "output": str(output)}, as_json, f"wrote {output}: {list(vectors.shape)}")
    else:
        text = "" if as_json else _table(wanted, vectors)
        options.emit({**result, "embeddings": vectors.tolist()} if as_json else result, as_json, text)
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}", where=str(path)) from error


def _table(texts: list[str], vectors: object) -> str:
    """A line per text."""
    import numpy as np

    found = np.asarray(vectors, np.float64)
    lengths = np.maximum(np.linalg.norm(found, axis=1), 1e-30)
    cosines = found @ found[0] / (lengths * lengths[0])
    rows = []
    for text, vector, cosine in zip(texts, found, cosines, strict=True):
        first = " ".join(f"{x:+.5f}" for x in vector[:SHOWN])
        one_line = " ".join(text.split())
        rows.append(f"{cosine:+.4f}  [{first} ...]  {one_line[:60]}{'...' if len(one_line) > 60 else ''}")
    return "\n".join([f"cosine to the first, first {SHOWN} of {found.shape[1]} numbers, text", *rows])
