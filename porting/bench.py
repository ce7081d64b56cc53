"""How fast a port is: a language model's load, prefill and decode here, one run of any other in graph_bench.py.

A/B in one run, because a shared machine drifts: each round measures every port in turn; medians over rounds, a ratio per round and its
spread. Prompts are fresh random ids each round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from porting.errors import UsageError
from porting.evidence import evidence_level
from porting.gear_runs import run_tokens
from porting.graph_bench import bench_graph, measured_program, ratio
from porting.port_folder import Port, open_port
from porting.progress import silent
from porting.session import Session, open_session
from porting.verdict import peak_rss_of_this_process

SCHEMA = "porting.bench/1"
LANGUAGE_MODEL = "causal-lm"  # the kind in port.json


@dataclass(frozen=True)
class Rates:
    """One round: tokens per second in prefill, milliseconds per decoded token."""

    prefill: float
    decode_ms: float


def bench(
    port: str | Path,
    device: str = "cpu",
    *,
    compare: str | Path | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    rounds: int | None = None,
    sizes: Mapping[str, int] | None = None,
    progress: Any = silent,
) -> dict[str, Any]:
    """Measure a port, and with `compare` a second one in the same run.

    compare: another port, run on the same device; for a port of a graph also an .onnx file, run in plain onnxruntime with all
             optimisations and as many threads
    rounds:  None is 5 of a language model, and of any other as many as fit into four seconds, 15 to 200
    sizes:   dimension -> size of the generated inputs, of a port that is no language model
    returns: a JSON-able object: of a language model load_seconds, prefill_tokens_per_second and decode_ms (p50, p90 over rounds),
             decode_tokens_per_second; of any other load_seconds, run_ms, runs_per_second and the shapes of its inputs; peak_rss_bytes;
             with `compare` the same for it, and the ratios of each round, above 1 where the first is quicker
    raises:  UsageError when the context does not hold the run, PortError, DeviceUnavailable
    """
    if min(prompt_tokens, new_tokens, 1 if rounds is None else rounds) < 1:
        raise UsageError("tokens and rounds must be at least 1", where="bench", next="give 1 or more of each")
    untouched = Path(compare) if compare is not None and Path(compare).suffix == ".onnx" else None
    ports = [open_port(p) for p in ([port] if compare is None or untouched else [port, compare])]
    language = [p.manifest["kind"] == LANGUAGE_MODEL for p in ports]
    if any(language) and (untouched or not all(language)):
        raise UsageError(
            "a language model and something else cannot be compared", where="bench", next="compare two ports of language models"
        )
    if not any(language):
        return _bench_graph(ports, untouched, device, sizes or {}, rounds, progress)
    if sizes:
        raise UsageError("a language model has no --size", where="bench", next="give --prompt-tokens and --new-tokens")
    rounds = 5 if rounds is None else rounds
    for p in ports:
        limit = p.manifest["config"].get("max_position_embeddings")
        if limit is not None and prompt_tokens + new_tokens > limit:
            raise UsageError(
                f"{prompt_tokens} + {new_tokens} tokens exceed the context of {limit}",
                where=f"bench {p.path}",
                next="lower --prompt-tokens or --new-tokens",
            )
    loaded = [_timed_load(p, device) for p in ports]
    sessions = [session for session, _ in loaded]
    rng = np.random.default_rng(0)
    results: list[list[Rates]] = [[] for _ in ports]
    try:
        with progress("bench", rounds + 1, unit="rounds") as advance:
            for round_ in range(rounds + 1):
                for i, (p, session) in enumerate(zip(ports, sessions, strict=True)):
                    rates = _one_round(session, p, rng, prompt_tokens, new_tokens)
                    if round_ > 0:  # the first warms up
                        results[i].append(rates)
                advance(1)
    finally:
        for session in sessions:
            session.close()
    measured = [_summary(p, load, rates) for p, (_, load), rates in zip(ports, loaded, results, strict=True)]
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "device": device,
        "evidence_level": evidence_level(device, ports[0].manifest["target"]),
        "policy": f"{rounds} rounds after one to warm up, medians; {prompt_tokens} prompt and {new_tokens} new tokens, fresh random ids",
        "port": measured[0],
        "peak_rss_bytes": peak_rss_of_this_process(),
    }
    if compare is not None:
        report["compare"] = measured[1]
        report["decode_speed_ratio"] = ratio([b.decode_ms / a.decode_ms for a, b in zip(*results, strict=True)])
        report["prefill_speed_ratio"] = ratio([a.prefill / b.prefill for a, b in zip(*results, strict=True)])
    return report


def _bench_graph(
    ports: Sequence[Port], untouched: Path | None, device: str, sizes: Mapping[str, int], rounds: int | None, progress: Any
) -> dict[str, Any]:
    opened = []
    try:
        for p in ports:
            session, seconds = _timed_load(p, device)
            opened.append((p, session, seconds))
        parts = bench_graph(opened, untouched, device, sizes, rounds, progress)
    finally:
        for _, session, _ in opened:
            session.close()
    level = evidence_level(device, ports[0].manifest["target"])
    return {"schema": SCHEMA, "device": device, "evidence_level": level, **parts, "peak_rss_bytes": peak_rss_of_this_process()}


def _timed_load(port: Port, device: str) -> tuple[Session, float]:
    start = time.perf_counter()
    session = open_session(measured_program(port.program()), device)
    return session, time.perf_counter() - start


def _one_round(session: Session, port: Port, rng: np.random.Generator, prompt_tokens: int, new_tokens: int) -> Rates:
    vocab = int(port.manifest["config"]["vocab_size"])
    state = session.new_state(prompt_tokens + new_tokens)
    asked = {"logits_to_keep": np.array(1, np.int64)} if "logits_to_keep" in {i.name for i in session.inputs} else {}
    ids = rng.integers(0, vocab, (1, prompt_tokens), dtype=np.int64)
    start = time.perf_counter()
    logits = run_tokens(session, ids, state, asked)
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(new_tokens):
        token = logits[0, -1].argmax()
        logits = run_tokens(session, np.array([[token]], np.int64), state, asked)
    return Rates(prompt_tokens / prefill, (time.perf_counter() - start) / new_tokens * 1e3)


def _summary(port: Port, load_seconds: float, rates: Sequence[Rates]) -> dict[str, Any]:
    decode = sorted(r.decode_ms for r in rates)
    return {
        "name": port.path.name,
        "precision": port.precision,
        "load_seconds": round(load_seconds, 3),
        "prefill_tokens_per_second": round(statistics.median(r.prefill for r in rates), 1),
        "decode_ms": {"p50": round(statistics.median(decode), 3), "p90": round(decode[int(0.9 * (len(decode) - 1) + 0.5)], 3)},
        "decode_tokens_per_second": round(1e3 / statistics.median(decode), 1),
    }
