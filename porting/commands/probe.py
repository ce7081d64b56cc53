"""porting probe"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from porting.ascend.facts_file import Facts

UNAVAILABLE = 3  # the device was lost before all was asked


@click.command()
@click.option(
    "--device",
    required=True,
    metavar="DEVICE",
    help="ascend:0; or ascend-sim,soc=Ascend310P3 to rehearse it, which shows nothing of the chip.",
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FACTS", help="Write the facts into a new file."
)
@click.option("--only", multiple=True, metavar="ID", help="Ask for this rule or trap alone; again for more.  [default: all]")
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PRIVATE_KEY",
    help="Sign the facts with this Ed25519 key, a PEM file without a password.  [default: a hash inside, integrity only]",
)
@options.force
@options.as_json
@options.quiet
def command(
    device: str, output: Path | None, only: tuple[str, ...], key: Path | None, force: bool, as_json: bool, quiet: bool
) -> int:
    """What an Ascend NPU does, held against the rule base: one small graph per rule and per trap, compiled with atc and run.

    Says of each what was expected, what was seen, the codes and numbers, and a verdict: confirmed, refuted or undecided; of what is not probed,
    why. Takes minutes where CANN's toolkit, the ops package of the chip and the NPU are. `check --facts` and ascend-sim,facts=FILE follow the file.

    Exit 0 with all facts, whatever they say; 3 when there is no device or it was lost on the way: then the file holds what was gathered, marked
    incomplete. This project never ran it on hardware.
    """
    from dataclasses import replace

    from porting.ascend.facts_file import file_of, signed
    from porting.ascend.probe import probe
    from porting.outputs import require_new_file
    from porting.port_staging import os_errors, write_synced

    if output is not None:
        require_new_file(output, force)
    if key is not None:
        from porting.ascend.facts_keys import private_key

        private_key(key)
    facts = probe(device, only=only, progress=options.progress(quiet))
    if key is not None:
        facts = signed(facts, key)
    if output is not None:
        with os_errors(output):
            write_synced(output, file_of(facts))
        facts = replace(facts, path=str(output))
    options.emit(facts.document(), as_json, _text(facts))
    return 0 if facts.complete else UNAVAILABLE


def _text(facts: Facts) -> str:
    from porting.ascend.facts_file import CONFIRMED, NOT_PROBED, REFUTED, RULE, TRAP, UNDECIDED
    from porting.ascend.probe import summary

    counts = {
        kind: ", ".join(f"{found.get(verdict, 0)} {verdict}" for verdict in (CONFIRMED, REFUTED, UNDECIDED, NOT_PROBED))
        for kind, found in summary(facts).items()
    }
    lines = [facts.named(), f"rules: {counts[RULE]}", f"traps: {counts[TRAP]}"]
    if facts.stopped:
        lines.append(f"INCOMPLETE: {facts.stopped}")
    for fact in facts.results:
        if fact.verdict == REFUTED or (fact.kind == TRAP and fact.verdict != NOT_PROBED):
            said = f"expected {fact.expected or 'nothing'}, seen {fact.seen or 'nothing'}" + (
                f" ({fact.code_seen})" if fact.code_seen else ""
            )
            lines.append(f"  {fact.verdict.upper():9} {fact.id}: {said}" + (f"; {fact.why}" if fact.why else ""))
    if not facts.is_hardware:
        lines.append("SIMULATED: this shows what the simulator models, and nothing of a chip")
    return "\n".join(lines)
