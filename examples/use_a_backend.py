"""Run a port from a library: numpy in and out, torch in and out, and a KV cache that stays on the device.

    python examples/use_a_backend.py PORT [--device cpu]

Any port of a language model will do. torch is used when it is installed.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec

import numpy as np

import porting
from porting.session import Session


def whole(session: Session, ids: np.ndarray) -> np.ndarray:
    """Logits of every position, (batch, sequence, vocabulary). Without a state each call starts from nothing."""
    return session.run({"input_ids": ids})["logits"]


def step_by_step(session: Session, ids: np.ndarray) -> np.ndarray:
    """The same logits, one position at a time: what a decoder does.

    The state holds the cache in buffers on the device. `run` updates them in place and returns only what is not state; the
    buffers grow by themselves when more positions are needed than were asked for.
    """
    state = session.new_state(capacity=64, batch=len(ids))
    keep_last = np.array(1, np.int64)  # an input with a default (0: all positions); for prompts it saves the head's work
    steps = [
        session.run({"input_ids": np.ascontiguousarray(ids[:, i : i + 1]), "logits_to_keep": keep_last}, state)["logits"]
        for i in range(ids.shape[1])
    ]
    assert state.length.tolist() == [ids.shape[1]] * len(ids)
    state.length = state.length - 1  # rewind by one position: the next run writes it again
    again = session.run({"input_ids": np.ascontiguousarray(ids[:, -1:])}, state)["logits"]
    assert np.array_equal(again, steps[-1])
    return np.concatenate(steps, axis=1)


def with_torch(session: Session, ids: np.ndarray) -> None:
    """The caller's kind of array goes in, the same kind comes out. Any library that speaks DLPack works like this."""
    import torch

    logits = session.run({"input_ids": torch.from_numpy(ids)})["logits"]
    print(f"torch in, torch out: {type(logits).__name__} {tuple(logits.shape)} on {logits.device}")


def main() -> None:
    """Run all three and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("port")
    parser.add_argument("--device", default="cpu")
    wanted = parser.parse_args()

    with porting.load(wanted.port, device=wanted.device) as session:
        for spec in session.inputs:  # TensorSpec: name, dtype, shape; state is left out
            print(f"input  {spec}")
        for spec in session.outputs:
            print(f"output {spec}")
        devices = sorted(set(session.placement.values()))
        print(f"{len(session.placement)} nodes run on {', '.join(devices)}")

        ids = np.random.default_rng(0).integers(0, 100, (2, 12))  # 2 rows of 12 token ids, int64
        at_once, stepwise = whole(session, ids), step_by_step(session, ids)
        print(f"numpy in, numpy out: {at_once.dtype} {at_once.shape}")
        scale = np.abs(at_once).max()
        print(f"at once against step by step: {np.abs(at_once - stepwise).max() / scale:.1e} of the largest logit")
        if find_spec("torch"):
            with_torch(session, ids)


if __name__ == "__main__":
    main()
