"""Hear where somebody speaks, chunk by chunk as a microphone gives them: a recurrent model whose state the session keeps.

    python examples/streaming_vad.py [SOUND.wav] [--folder .cache]

SOUND is 16-bit mono at 16 kHz or a multiple; without one, three sung vowels between two silences are made up. The model is silero-vad (MIT),
fetched the first time. Its net is fed 512 new samples behind the last 64 of the chunk before, and its own memory:

    input: float32[1, 64 + 512], sr: int64[], state: float32[2, 1, 128]  ->  output: float32[1, 1], stateN: float32[2, 1, 128]

`state={"state": "stateN"}` makes that memory the session's: it starts from zeros, and every run goes on where the last one stopped.
On the command line: porting port silero_vad.onnx -o silero_vad.port --state state=stateN --inputs example.npz
"""

from __future__ import annotations

import argparse
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from get_models import fetch

import porting
from porting.session import Session

RATE, CHUNK, CONTEXT = 16000, 512, 64
BEGINS, ENDS = 0.5, 0.35  # probabilities; two of them, so that speech does not flicker


def ported(folder: Path) -> Path:
    """The model as a port, compared with the untouched file in onnxruntime: a few seconds."""
    source, example, port = fetch("silero_vad", folder), folder / "silero_vad.npz", folder / "silero_vad.port"
    # what the net takes cannot be guessed from names and shapes: two rates, and one length for each
    noise = np.random.default_rng(0).normal(0, 0.1, (1, CONTEXT + CHUNK)).astype(np.float32)
    np.savez(example, input=noise, sr=np.array(RATE), state=np.zeros((2, 1, 128), np.float32))
    verdict = porting.port(source, port, state={"state": "stateN"}, inputs=[example], force=True)
    print(verdict.line(), file=sys.stderr)
    verdict.require()
    return port


def microphone(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Chunks in order, the last one filled up with silence: (512,) float32 each."""
    for start in range(0, len(samples), CHUNK):
        chunk = samples[start : start + CHUNK]
        yield np.pad(chunk, (0, CHUNK - len(chunk)))


def probabilities(session: Session, chunks: Iterator[np.ndarray]) -> Iterator[float]:
    """For each chunk, as soon as it is there, how likely somebody speaks in it."""
    state = session.new_state()
    heard = np.zeros(CONTEXT, np.float32)
    for chunk in chunks:
        window = np.concatenate([heard, chunk])[None]  # (1, 64 + 512)
        yield session.run({"input": window, "sr": np.array(RATE)}, state)["output"].item()
        heard = chunk[-CONTEXT:]


def read_wav(path: Path) -> np.ndarray:
    """16-bit mono as float32 between -1 and 1, at 16 kHz: of each group of samples the mean."""
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2 or file.getnchannels() != 1 or file.getframerate() % RATE:
            sys.exit(f"{path}: expected 16-bit mono at a multiple of {RATE} Hz")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    group = file.getframerate() // RATE
    return samples[: len(samples) // group * group].reshape(-1, group).mean(axis=1)


def sung() -> np.ndarray:
    """Silence, a, i, u, silence: two seconds of harmonics behind the resonances of a throat."""
    vowels = [(0.25, 130, (700, 1220, 2600)), (0.2, 140, (300, 2300, 3000)), (0.3, 115, (320, 870, 2250))]
    parts = [np.zeros(10000)]
    for seconds, pitch, formants in vowels:
        time = np.arange(int(seconds * RATE)) / RATE
        phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.08 * np.sin(6 * np.pi * time))) / RATE
        harmonics = np.arange(1, 30)[:, None]
        below = harmonics * pitch / np.array(formants)  # (harmonic, formant)
        loudness = 1 / np.sqrt((1 - below**2) ** 2 + (0.1 * below) ** 2).prod(axis=1, keepdims=True) / harmonics
        voice = (loudness * np.sin(harmonics * phase)).sum(axis=0) * np.sin(np.pi * time / seconds) ** 0.3
        parts.append(0.3 * voice / np.abs(voice).max())
    sound = np.concatenate([*parts, np.zeros(10000)])
    return (sound + np.random.default_rng(0).normal(0, 0.002, len(sound))).astype(np.float32)


def main() -> None:
    """Print a line for each chunk, and one where speech begins and ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sound", type=Path, nargs="?", help="a .wav file (default: a made-up voice)")
    parser.add_argument("--folder", type=Path, default=Path(".cache"), help="where model and port are kept (default: .cache)")
    wanted = parser.parse_args()
    samples = sung() if wanted.sound is None else read_wav(wanted.sound)

    speaking = False
    with porting.load(ported(wanted.folder)) as session:
        for number, probability in enumerate(probabilities(session, microphone(samples))):
            seconds = number * CHUNK / RATE
            print(f"{seconds:6.2f} s  {probability:.2f} {'#' * round(30 * probability)}")
            if speaking != (probability >= (ENDS if speaking else BEGINS)):
                speaking = not speaking
                print(f"speech {'begins' if speaking else 'ends'} at {seconds:.2f} s")


if __name__ == "__main__":
    try:
        main()
    except porting.PortingError as error:
        sys.exit(str(error))
