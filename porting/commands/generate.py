"""porting generate PORT "prompt" """

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from porting.errors import EXIT_INTERRUPTED

from . import options


@click.command()
@click.argument("port", type=click.Path(path_type=Path))
@click.argument("prompt")
@options.device
@click.option("--max-new-tokens", default=128, show_default=True)
@click.option(
    "--temperature",
    type=float,
    help="0 is greedy.  [default: 0, or with --top-k or --top-p the model's recommended one, else 1]",
)
@click.option("--top-k", type=int, help="Sample from the k most likely tokens only, greedy no more; 0 is off: sample from all.")
@click.option(
    "--top-p", type=float, help="Sample from the smallest set of tokens with this probability, greedy no more; 1 is off."
)
@click.option("--repetition-penalty", type=float, help="Above 1 makes tokens that were there less likely.")
@click.option(
    "--seed", type=int, help="The same seed draws the same way again; the same tokens, where the logits are the same."
)
@click.option("--stop", multiple=True, help="A text that ends the answer. May be given more than once.")
@click.option(
    "--chat/--no-chat", default=None, help="Put the prompt into the model's chat template. [default: where there is one]"
)
@options.as_json
@options.quiet
def command(
    port: Path,
    prompt: str,
    device: str,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    chat: bool | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Continue PROMPT with a language-model PORT, streaming to the terminal. Ctrl-C ends the answer and exits 130.

    Chat templates run in a sandbox. Control characters that a model makes are not printed.
    """
    from porting.generation import generate

    def show(text: str) -> None:
        if not options.write_stdout(terminal_safe(text)):
            raise click.exceptions.Exit(0)  # the reader has gone: nobody asks for the rest

    result = generate(
        port,
        prompt,
        device,
        max_new_tokens=max_new_tokens,
        chat=chat,
        on_text=None if as_json else show,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
    if as_json:
        options.emit({"schema": "porting.generate/1", **dataclasses.asdict(result)}, True, "")
    else:
        options.write_out("")
    if not quiet:
        rate = f"{result.tokens_per_second:.1f} tokens/s" if len(result.token_ids) > 1 else "one token"
        print(f"[{len(result.token_ids)} tokens, {result.finish_reason}, {rate}]", file=sys.stderr)
    return EXIT_INTERRUPTED if result.finish_reason == "interrupted" else 0


def terminal_safe(text: str) -> str:
    """Text without the control characters that could drive a terminal; newline and tab stay."""
    return "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))
