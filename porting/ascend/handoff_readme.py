"""README.txt of a hand-off: what lies there, what to type, what it takes and gives, and what is to be known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from porting.ascend.atc_command import MODEL, AtcCommand
from porting.ascend.handoff_contents import Contents, in_words

SIDE_FILES: Mapping[str, str] = {  # option of atc -> what its file says
    "keep_dtype": "nodes that keep the precision they have in the graph, one a line; a forecast on the CPU named them",
    "modify_mixlist": "operators that a mixed precision mode shall or shall not take in half floats",
    "customize_dtypes": "dtypes of single nodes, one a line",
    "insert_op_conf": "AIPP: how the device makes an input from uint8 pixels",
    "compress_weight_conf": "layers whose weights are compressed",
}


def readme(
    command: AtcCommand,
    cann: str | None,
    names: Sequence[str],
    contents: Contents,
    notes: Sequence[str],
    build: str,
    own: Mapping[str, str],
) -> str:
    """
    names: of all files in the folder
    build: the script's name
    own:   file -> what it is, of those that every hand-off has
    """
    soc, host = command.value("soc_version"), command.host_cpu
    where = "the machine that build.sh runs on" if host == "any" else f"a machine with {host}"
    release = (
        f"CANN {cann}"
        if cann
        else "CANN; which release was not said, so the rules of all that are known were held against the graph"
    )
    lines = [
        f"A graph for {soc}, to be compiled by atc of {release}. The compiled model is for {where}.",
        "It was judged against documents and sources of the vendor. It was never compiled and never run on hardware.",
        "",
        "What compiling takes: a Linux machine with the CANN toolkit and, from CANN 8.5 on, the ops package for this chip. No NPU.",
        "",
        f"    bash {build}                                    in this folder; all of it may be copied anywhere first",
        f"    ASCEND_HOME_PATH=/where/cann/is bash {build}    when CANN lies in no usual place",
        f"    CANN_PYTHON=/folder/with/python3 bash {build}   when CANN was installed for another Python than the first on PATH",
        "",
        "It leaves model.om (or model_linux_aarch64.om and the like), model.om.sha256 and atc.log. When it fails:",
        "",
        "    porting explain atc.log                          what the codes in it mean; --lang zh for Chinese",
        "",
        "Where the port lies, `porting compile PORT` does the same and records the result; after this folder was copied back",
        "with a model.om in it, `porting compile PORT --record` records that.",
        "",
        "What lies here:",
        "",
        *_files(command, names, own),
        "",
        "The command, word for word (atc.txt):",
        "",
        *(f"    {line}" for line in command.text().splitlines()),
        *in_words(contents),
    ]
    if notes:
        lines += ["", "To be known:", "", *(f"  - {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _files(command: AtcCommand, names: Sequence[str], own: Mapping[str, str]) -> Iterator[str]:
    asked = {name: SIDE_FILES.get(option, f"what --{option} reads") for option, name in command.files.items() if name != MODEL}
    said = {**own, **asked}
    folders = sorted({name.split("/")[0] + "/" for name in names if "/" in name})
    flat = sorted({*(name for name in names if "/" not in name), *own} - set(folders))
    width = max(map(len, (*flat, *folders)))
    for name in (*flat, *folders):
        yield f"    {name:{width}}  {said.get(name, 'read by another of these files')}"
