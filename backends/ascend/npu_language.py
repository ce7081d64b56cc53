"""A language model's upstream class on an NPU, with the key/value cache of the port: static buffers on the device, rows of their own length.

transformers is given the positions, the mask and the cache; what a position may look at is worked out here, on the host, as the port's graph
does it. Windows are those of the config, layer by layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from porting.backends.ascend.npu_errors import broken_by, npu_errors
from porting.backends.ascend.npu_module import give_back, moved, placement_of
from porting.backends.ascend.npu_setup import NpuDevice
from porting.backends.ascend.npu_source import PortSource
from porting.errors import PortingError, RuntimeFailed, UsageError
from porting.state import filled, state_buffers
from porting.types import Program, State
from porting.upstream import load_upstream

FULL, SLIDING = "full_attention", "sliding_attention"  # what transformers calls layers


class _Cache:
    """What transformers' attention writes keys and values to, one run long.

    buffers: of a State, (B, K, M, D) on the device
    past:    positions that each row had before the run
    """

    def __init__(self, buffers: Mapping[str, Any], past: list[int], step: int) -> None:
        self._buffers, self._past = buffers, past
        self._step, self._total = step, max(past) + step

    def update(self, keys: Any, values: Any, layer: int, *rest: Any, **more: Any) -> tuple[Any, Any]:
        return self._written(f"cache.{layer}.key", keys), self._written(f"cache.{layer}.value", values)

    def _written(self, name: str, new: Any) -> Any:
        """All positions up to the longest row's; what lies behind a shorter row's is masked."""
        buffer = self._buffers[name]
        if len(set(self._past)) == 1:
            buffer[:, :, self._past[0] : self._total] = new
        else:
            for row, start in enumerate(self._past):
                buffer[row, :, start : start + self._step] = new[row]
        return buffer[:, :, : self._total]

    def get_seq_length(self, layer: int = 0) -> int:
        return max(self._past)


class NpuLanguageModel:
    """A BackendSession over transformers' model on the device."""

    def __init__(self, program: Program, model: Any, device: NpuDevice) -> None:
        self._program, self._device = program, device
        self._model: Any = moved(model, device)
        self.placement: Mapping[str, str] = placement_of(self._model, device)
        self._by_kind = hasattr(model.model, "has_sliding_layers")  # transformers then takes a mask for each kind of layer
        self._windows = _windows(model.config, self._by_kind)
        self._broken: PortingError | None = None
        self._states: weakref.WeakSet[State] = weakref.WeakSet()  # whose buffers are given back when this is closed

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        self._require_usable()
        torch, buffers = self._device.torch, {}
        with npu_errors(torch, self._device.name, "make room for the cache"):
            for name, buffer in state_buffers(self._program, capacity, batch, grown_from).items():
                made = torch.zeros(buffer.shape, dtype=self._device.dtype, device=self._device.place)
                if grown_from is not None:
                    part = filled(grown_from, buffer)
                    made[part] = self._on_device(grown_from.buffers[name])[part]
                buffers[name] = made
            torch.npu.synchronize()
        length = np.zeros(batch, np.int64) if grown_from is None else grown_from.length
        state = State(buffers, length, capacity)
        self._states.add(state)
        return state

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        self._require_usable()
        with npu_errors(self._device.torch, self._device.name, "read the cache"):
            self._device.torch.npu.synchronize()
            return {name: value.float().cpu().numpy() for name, value in state.buffers.items()}

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        self._require_usable()
        assert state is not None, "a language model's program keeps state"
        torch = self._device.torch
        try:
            with npu_errors(torch, self._device.name, "run the model"), torch.inference_mode():
                return {"logits": self._logits(feeds, state)}
        except PortingError as error:
            if error.__cause__ is not None and broken_by(error.__cause__):
                self._broken = error
            raise

    def close(self) -> None:
        """Safe to call twice."""
        if self._model is not None:
            self._model = None
            for state in self._states:
                state.buffers.clear()
            give_back(self._device)

    def _logits(self, feeds: Mapping[str, np.ndarray], state: State) -> np.ndarray:
        torch, place = self._device.torch, self._device.place
        ids, past = feeds["input_ids"], feeds["past_length"]
        positions = past[:, None] + np.arange(ids.shape[1])  # (B, S)
        found = self._model(
            input_ids=torch.from_numpy(np.array(ids)).to(place),
            position_ids=torch.from_numpy(positions).to(place),
            attention_mask=self._masks(positions, int(past.max()) + ids.shape[1]),
            past_key_values=_Cache(state.buffers, past.tolist(), ids.shape[1]),
            use_cache=True,
            logits_to_keep=min(int(feeds.get("logits_to_keep", 0)), ids.shape[1]),
        )
        torch.npu.synchronize()  # says what went wrong; a copy to the host would say its code alone
        return np.asarray(found.logits.float().cpu().numpy())

    def _masks(self, positions: np.ndarray, total: int) -> Any:
        """(B, 1, S, total), added to the scores: 0, or the lowest number of the dtype; one mask, or one for each kind of layer."""
        made = {kind: self._mask(positions, total, window) for kind, window in self._windows.items()}
        return made if self._by_kind else next(iter(made.values()))

    def _mask(self, positions: np.ndarray, total: int, window: int | None) -> Any:
        torch = self._device.torch
        columns, rows = np.arange(total), positions[:, None, :, None]
        shown = columns <= rows
        if window is not None:
            shown &= columns > rows - window
        lowest = torch.finfo(self._device.dtype).min
        mask = np.where(shown, np.float32(0), np.float32(lowest))
        return torch.from_numpy(mask).to(self._device.dtype).to(self._device.place)

    def _on_device(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = self._device.torch.from_numpy(np.array(value)).to(self._device.dtype)
        return value.to(self._device.place)

    def _require_usable(self) -> None:
        if self._model is None:
            raise UsageError("the session is closed")
        if self._broken is not None:
            raise RuntimeFailed(f"the session is broken: {self._broken.what}", where=self._device.name, next="open another")


def open_language_model(program: Program, source: PortSource, device: NpuDevice) -> NpuLanguageModel:
    """raises: EvidenceUnavailable (transformers disagrees about the checkpoint), RuntimeFailed, OutOfResources"""
    return NpuLanguageModel(program, load_upstream(source.checkpoint, source.architecture), device)


def _windows(config: Any, by_kind: bool) -> dict[str, int | None]:
    """Kind of layer -> how many positions it looks back at, its own among them; None: all. raises: RuntimeFailed for a kind that is unknown"""
    window = getattr(config, "sliding_window", None)
    if not by_kind:
        return {FULL if window is None else SLIDING: window}
    kinds = dict.fromkeys(config.layer_types)
    unknown = [kind for kind in kinds if kind not in (FULL, SLIDING)]
    if unknown:
        raise RuntimeFailed(f"layers of the kind {unknown[0]!r} are not covered", where="route npu", next="use route=om")
    return {kind: None if kind == FULL else window for kind in kinds}
