"""What a port is held against: chosen by what the port is (a language model, an encoder, a graph) and by what is at hand.

the source      language model, encoder: transformers' own class    graph: the untouched file, or the torch module itself
a golden        what one of those computed, recorded
another port    never a pass
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from porting.conversion import GRAPH, LANGUAGE_MODEL, Canonical, canonical_graph
from porting.cuts import cut_config
from porting.encoder_validation import judgement_of_encoder, judgement_of_encoder_golden, judgement_of_encoder_port
from porting.errors import EvidenceUnavailable, InputError, UsageError
from porting.gear_runs import Gear
from porting.golden import Golden
from porting.golden_file import ModelIdentity
from porting.graph_golden import GraphGolden
from porting.graph_judgement import judgement_of_graph, judgement_of_graph_golden, judgement_of_graph_port
from porting.inputs import cases_of
from porting.language_validation import LanguageJudgement
from porting.npz import read_npz
from porting.port_folder import EVIDENCE, MANIFEST, Port, open_port
from porting.progress import silent
from porting.reference import GoldenReference, PortReference, UpstreamReference
from porting.sources import begins_like_torch, opened
from porting.types import Checkpoint, GraphSource, TensorSpec, is_checkpoint, is_graph
from porting.upstream import upstream_version
from porting.verdict import Check, Verdict

GOLDEN_FILE = f"{EVIDENCE}/golden.json"


class Judgement(Protocol):
    """A reference with its inputs."""

    description: str

    @property
    def case_feeds(self) -> Mapping[str, Any]:
        """Case -> input -> array; of a language model case -> token ids, (batch, sequence) int64."""

    def require_model(self, architecture: str, config: Mapping[str, Any]) -> None:
        """Refuse to judge another model than the reference's own. raises: InputError"""

    def prepare(self) -> None:
        """Run what has to be run; what that needs is free again before the port is opened."""

    def judge(
        self, port: Port, device: str, *, command: str = "validate", progress: Any = silent, more: Sequence[Check] = ()
    ) -> Verdict:
        """more: checks of the same port that were made elsewhere"""
        ...

    def golden(self, identity: ModelIdentity, device: str = "cpu") -> Golden | GraphGolden:
        """What the reference computed, or the golden that it came from."""


def judgement_of_source(canonical: Canonical, inputs: Sequence[Path], gears: Sequence[Gear] = ()) -> Judgement:
    """With the source at hand.

    gears:  the shapes that the port knows, () for all
    raises: EvidenceUnavailable (transformers is missing), InputError (inputs that do not fit)
    """
    source = canonical.source
    if canonical.kind == LANGUAGE_MODEL:
        assert is_checkpoint(source)
        require_upstream()
        cases = cases_of(source.config, source.side_files().get("tokenizer.json"), inputs)
        return LanguageJudgement(UpstreamReference(source, cases), source)
    if is_graph(source):
        return judgement_of_graph(canonical, source, inputs, gears)
    require_upstream()
    return judgement_of_encoder(canonical, source, inputs, gears)


def judgement_of_golden(
    path: Path, inputs: Sequence[Path], kind: str, source: Checkpoint | GraphSource | None = None
) -> Judgement:
    """What was recorded.

    source: where it is at hand; the weights of a port are then compared with it
    raises: InputError, UsageError
    """
    if not path.is_file():
        raise InputError(f"no such golden: {path}", where="--against", next="`porting record` makes one")
    if inputs:
        raise UsageError("a golden has its own inputs", where="--inputs", next="leave --inputs out")
    if kind == GRAPH:
        return judgement_of_graph_golden(path)
    assert source is None or is_checkpoint(source)
    if kind == LANGUAGE_MODEL:
        return LanguageJudgement(GoldenReference.load(path), source)
    return judgement_of_encoder_golden(path, source)


def judgement_of_port(port: Port, inputs: Sequence[Path], device: str) -> Judgement:
    """Another port, or a port to be recorded. raises: InputError"""
    if port.manifest["kind"] == LANGUAGE_MODEL:
        cases = cases_of(port.manifest["config"], port.side_file("tokenizer.json"), inputs)
        return LanguageJudgement(PortReference(port, cases, device))
    return (judgement_of_graph_port if port.manifest["kind"] == GRAPH else judgement_of_encoder_port)(port, inputs, device)


@contextmanager
def judgement_for(
    port: Port, against: Any, device: str, inputs: Sequence[Path], options: Mapping[str, Any]
) -> Iterator[Judgement]:
    """What `against` names, for `porting.validate`. raises: EvidenceUnavailable, InputError, UsageError"""
    if against is None and not options.get("model"):
        own = port.path / GOLDEN_FILE
        if not own.is_file():
            raise EvidenceUnavailable(
                "nothing to compare with: the port carries no golden",
                where=str(port.path),
                next="--against its source (a checkpoint needs transformers) or --against a golden",
            )
        against = own
    if against is not None and options.get("model"):
        raise UsageError("a reference is given twice: --against and --model", where="validate", next="give one of them")
    kind = port.manifest["kind"]
    path = Path(against) if isinstance(against, (str, Path)) else None
    if path is not None and not path.exists():
        raise InputError(f"no such source, port or golden: {path}", where="--against")
    if path is not None and (path / MANIFEST).is_file():
        yield judgement_of_port(open_port(path), inputs, device)
    elif path is not None and path.is_file() and path.suffix == ".json":
        yield judgement_of_golden(path, inputs, kind)
    else:
        module = not (against is None or path is not None or is_graph(against) or is_checkpoint(against))
        same = _as_the_port(port, path, module or (path is not None and begins_like_torch(path)), options)
        if "input_specs" in same and not options.get("input_specs"):
            _require_sizes_of_port(port, same["input_specs"], inputs)
        with opened(against, inputs=inputs, **same) as source:
            canonical = canonical_graph(source)
            if canonical.kind != kind:
                raise InputError(
                    f"the port is a {kind}, the reference a {canonical.kind}",
                    where="--against",
                    next="validate against the port's own source or golden",
                )
            yield judgement_of_source(canonical, inputs, port.program().gears)


def _as_the_port(port: Port, path: Path | None, torch: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for the source of a port: what it takes and carries is what the port takes and carries, unless said otherwise. A file is cut as
    the port's was.

    path:  of the source, where it has one
    torch: whether the source is a torch module or a file of torch, which is exported again for the inputs it is given
    """
    program, given = port.program(), {name: value for name, value in options.items() if value not in (None, [], (), {})}
    if port.manifest["kind"] != GRAPH:
        return given
    if program.state.pairs:
        given.setdefault("state", {pair.input: pair.output for pair in program.state.pairs})
    if path is not None and not torch:
        cut = cut_config(port.manifest["config"])
        cuts = {"outputs": cut.outputs, "fix": cut.fixed}
        given = {**{name: value for name, value in cuts.items() if value}, **given}
    if given.get("model") or torch:
        hidden = {pair.input for pair in program.state.pairs}
        given.setdefault("input_specs", [spec for spec in program.inputs if spec.name not in hidden])
    return given


def _require_sizes_of_port(port: Port, specs: Sequence[TensorSpec], inputs: Sequence[Path]) -> None:
    """The user's arrays have the sizes that are fixed in the port. raises: InputError saying how to free one"""
    for path in inputs:
        arrays = read_npz(path, text=True)
        for spec in specs:
            shape = arrays[spec.name].shape if spec.name in arrays else ()
            if len(shape) != len(spec.shape):
                continue  # whoever opens the module says so
            wrong = [i for i, dim in enumerate(spec.shape) if isinstance(dim, int) and dim != shape[i]]
            if wrong:
                dims = {i: f"size{i}" if i in wrong else dim for i, dim in enumerate(spec.shape)}
                shown = f"{spec.name}: {spec.dtype}[{', '.join(map(str, dims.values()))}]"
                dynamic = {spec.name: {i: dim for i, dim in dims.items() if isinstance(dim, str)}}
                raise InputError(
                    f"{spec.name} is {list(shape)}, and the port takes {spec}: dimension {wrong[0]} is fixed at {spec.shape[wrong[0]]}",
                    where=f"{path}, {port.path}",
                    next=f'give inputs of that size, or port again with it free: --input "{shown}", in Python dynamic={dynamic}',
                )


def require_upstream() -> None:
    """raises: EvidenceUnavailable when transformers is not installed"""
    if upstream_version() is None:
        raise EvidenceUnavailable(
            "the upstream implementation is not installed, and no golden was given: nothing could show that the port is right",
            where="reference",
            next='--against a golden, or pip install "porting[torch]"; `porting convert` converts without comparing',
        )
