"""What a port is compared with: the upstream implementation, a golden, or another port."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from porting.errors import InputError
from porting.identity import config_hash, require_same_facts
from porting.numerics.metrics import compare, require_informative
from porting.numerics.quality import coarse_kl, kl_divergence
from porting.upstream import upstream_logits, upstream_version

if TYPE_CHECKING:
    from porting.golden import Golden
    from porting.port_folder import Port
    from porting.types import Checkpoint

OF_A_PORT = "port "  # how the description of a port's own outputs begins, in goldens too


@dataclass(frozen=True)
class Comparison:
    """Logits of one case against the reference's.

    rel_l2: relative L2 error; of a golden the upper end of its estimate's 95 % interval
    kl:     (positions,) nats; of a golden a lower bound, see `coarse_kl`
    agree:  positions with the same most likely token
    """

    rel_l2: float
    kl: np.ndarray
    agree: int


class Reference(Protocol):
    """Cases, and how logits compare with what they should be.

    kind:        "upstream", "golden" or "self", as the verdict says it
    description: what it is, for the report
    kl_is_exact: whether `kl` is the divergence itself or a lower bound
    """

    kind: str
    kl_is_exact: bool

    @property
    def description(self) -> str: ...
    @property
    def cases(self) -> Mapping[str, np.ndarray]: ...
    def require_model(self, architecture: str, config: Mapping[str, Any]) -> None:
        """Refuse to judge another model than the reference's own. raises: InputError"""

    def prepare(self) -> None:
        """Run what has to be run. Once: what that needs is free again before the port is opened."""

    def compare(self, case: str, logits: np.ndarray) -> Comparison: ...


class _Exact:
    """A reference whose logits are at hand."""

    kl_is_exact = True
    description: str

    def __init__(self, architecture: str, config: Mapping[str, Any], cases: Mapping[str, np.ndarray]) -> None:
        self.architecture = architecture
        self.config = config
        self.cases = dict(cases)

    def require_model(self, architecture: str, config: Mapping[str, Any]) -> None:
        if architecture != self.architecture:
            raise InputError(
                f"the port is a {architecture}, the reference a {self.architecture}",
                where=self.description,
                next="validate against the port's own source or golden",
            )
        require_same_facts(config, self.config, self.description)

    def prepare(self) -> None:
        _ = self.logits

    @cached_property
    def logits(self) -> dict[str, np.ndarray]:
        """Case name -> (batch, sequence, vocab) float32. raises: InputError when they show nothing (NaN, one constant)"""
        found = self._run()
        for name, value in found.items():
            require_informative(value, name)
        return found

    def _run(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def compare(self, case: str, logits: np.ndarray) -> Comparison:
        wanted = self.logits[case]
        difference = compare(wanted, logits, name=case)
        agree = int((wanted.argmax(-1) == logits.argmax(-1)).sum())
        return Comparison(difference.rel_l2, kl_divergence(wanted, logits), agree)


class UpstreamReference(_Exact):
    """transformers' own class in fp32 with the weights of a checkpoint, decoded by us."""

    kind = "upstream"

    def __init__(self, checkpoint: Checkpoint, cases: Mapping[str, np.ndarray]) -> None:
        from porting.conversion import architecture_of

        super().__init__(architecture_of(checkpoint), checkpoint.config, cases)
        self.checkpoint = checkpoint
        self.description = f"transformers {upstream_version()}, {self.architecture}, fp32 on the CPU"

    def _run(self) -> dict[str, np.ndarray]:
        return upstream_logits(self.checkpoint, self.architecture, self.cases)


class PortReference(_Exact):
    """Another port. Both are ours, so agreement shows nothing about being right: the verdict never passes."""

    kind = "self"

    def __init__(self, port: Port, cases: Mapping[str, np.ndarray], device: str) -> None:
        super().__init__(str(port.manifest["architecture"]), port.manifest["config"], cases)
        self.port = port
        self.device = device
        self.description = f"{OF_A_PORT}{port.path.name} ({port.precision}) on {device}"

    def _run(self) -> dict[str, np.ndarray]:
        from porting.session import open_session

        with open_session(self.port.program(), self.device) as session:
            return {name: session.run({"input_ids": ids})["logits"] for name, ids in self.cases.items()}


class GoldenReference:
    """Sketches that were recorded elsewhere. Recorded from a port they are no better than a port: "self"."""

    kl_is_exact = False

    def __init__(self, golden: Golden, name: str) -> None:
        self.golden = golden
        self.kind = "self" if golden.reference.startswith(OF_A_PORT) else "golden"
        self.description = f"{name}: {golden.reference}, {golden.precision} on {golden.device}; {golden.integrity}"
        self.cases: dict[str, np.ndarray] = {}
        for case, recorded in golden.cases.items():
            ids = recorded.inputs.get("input_ids")
            logits = recorded.outputs.get("logits")
            if ids is None or logits is None or logits.top_ids is None or logits.shape[:-1] != ids.shape:
                raise InputError(f"case {case!r} of the golden has no input_ids, or no logits that belong to them", where=name)
            self.cases[case] = ids

    @classmethod
    def load(cls, path: Path) -> GoldenReference:
        """raises: InputError"""
        from porting.golden import Golden

        return cls(Golden.load(path), path.name)

    def require_model(self, architecture: str, config: Mapping[str, Any]) -> None:
        from porting.golden import ModelIdentity

        self.golden.require_model(ModelIdentity(architecture, config_hash(config), {}))

    def prepare(self) -> None:
        """It ran when it was recorded."""

    def compare(self, case: str, logits: np.ndarray) -> Comparison:
        from porting.numerics.sketch import estimate_difference

        kept = self.golden.cases[case].outputs["logits"]
        assert kept.top_ids is not None
        assert kept.top_values is not None
        assert kept.logsumexp is not None
        difference = estimate_difference(kept, logits)
        rows = logits.reshape(-1, logits.shape[-1])
        agree = int((kept.top_ids[:, 0] == rows.argmax(-1)).sum())
        return Comparison(difference.rel_l2_high, coarse_kl(kept.top_ids, kept.top_values, kept.logsumexp, rows), agree)
