"""Read the text in a picture: two ported models, a detector and a recogniser, and what has to be done around them.

    python examples/ocr.py [PICTURE] [--folder .cache]

Without a picture it draws one. The models are PP-OCRv4 (Apache-2.0), fetched the first time; Pillow has to be installed.

    detector    x: float32[1, 3, height, width], multiples of 32  ->  the probability of text at each pixel, [1, 1, height, width]
    recogniser  x: float32[1, 3, 48, width]  ->  the probability of each character, [1, about width / 8, characters]

Both take blue, green, red between -1 and 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from get_models import fetch
from PIL import Image, ImageDraw, ImageFont

import porting
from porting.session import Session

TEXT = 0.3  # a pixel with this probability belongs to text
SURE = 0.5  # the mean that a box needs
GROW = 1.6  # the detector was trained to find the middle of a line: its boxes are let out by this much of area / perimeter


def ported(name: str, folder: Path, example: np.ndarray) -> Path:
    """The model as a port, compared with the untouched file in onnxruntime on a picture with text in it: on noise a detector shows nothing."""
    port = folder / f"{name}.port"
    np.savez(folder / f"{name}.npz", x=example)
    verdict = porting.port(fetch(name, folder), port, inputs=folder / f"{name}.npz", force=True)
    print(verdict.line(), file=sys.stderr)
    verdict.require()
    return port


def pixels(picture: Image.Image) -> np.ndarray:
    """What both nets take, (1, 3, height, width) float32."""
    blue_first = np.asarray(picture, np.float32)[:, :, ::-1] / 127.5 - 1
    return np.ascontiguousarray(blue_first.transpose(2, 0, 1)[None])


def boxes(mask: np.ndarray, top: int = 0, left: int = 0) -> list[tuple[int, int, int, int]]:
    """(top, left, bottom, right) of the parts that empty rows or columns set apart, in reading order. Cuts until nothing can be cut."""
    for axis in (0, 1):
        used = np.flatnonzero(mask.any(axis=1 - axis))
        parts = np.split(used, np.flatnonzero(np.diff(used) > 1) + 1)
        if len(parts) > 1:
            found = []
            for part in parts:
                start, stop = int(part[0]), int(part[-1]) + 1
                inner = (mask[start:stop], top + start, left) if axis == 0 else (mask[:, start:stop], top, left + start)
                found += boxes(*inner)
            return found
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    return [(top + int(rows[0]), left + int(columns[0]), top + int(rows[-1]) + 1, left + int(columns[-1]) + 1)]


def lines(detector: Session, picture: Image.Image) -> list[Image.Image]:
    """The lines of text, cut out, from top to bottom."""
    width, height = (max(32, round(side / 32) * 32) for side in picture.size)
    x = pixels(picture.resize((width, height), Image.Resampling.BILINEAR))
    (probability,) = detector.run({"x": x}).values()
    text = probability[0, 0]  # (1, 1, H, W) -> (H, W)
    across, down = picture.width / width, picture.height / height
    found = []
    for top, left, bottom, right in boxes(text > TEXT):
        if text[top:bottom, left:right].mean() < SURE:
            continue
        by = GROW * (bottom - top) * (right - left) / (2 * (bottom - top + right - left))
        found.append(
            picture.crop(
                (
                    round((left - by) * across),
                    round((top - by) * down),
                    round((right + by) * across),
                    round((bottom + by) * down),
                )
            )
        )
    return found


def characters(path: Path) -> list[str]:
    """What the recogniser's classes stand for: nothing, then the list that the .onnx file carries, then the space."""
    stored = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    return ["", *stored["character"].splitlines(), " "]


def read(recogniser: Session, names: list[str], line: Image.Image) -> str:
    """CTC: the best class of each step, of a run of equal ones the first."""
    small = line.resize((max(8, round(line.width * 48 / line.height)), 48), Image.Resampling.BILINEAR)
    (probability,) = recogniser.run({"x": pixels(small)}).values()
    best = probability[0].argmax(axis=-1)
    return "".join(names[now] for now, before in zip(best, [0, *best[:-1]], strict=True) if now != before)


def drawn() -> Image.Image:
    """Something to read."""
    picture = Image.new("RGB", (480, 160), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((40, 30), "Hello World 42", font=ImageFont.load_default(36), fill="black")
    draw.text((60, 95), "ported, not guessed", font=ImageFont.load_default(28), fill="navy")
    return picture


def main() -> None:
    """Print the text, line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path, nargs="?", help="a picture with text (default: one is drawn)")
    parser.add_argument("--folder", type=Path, default=Path(".cache"), help="where models and ports are kept (default: .cache)")
    wanted = parser.parse_args()
    picture = drawn() if wanted.picture is None else Image.open(wanted.picture).convert("RGB")

    names = characters(fetch("text_recogniser", wanted.folder))
    detector = ported("text_detector", wanted.folder, pixels(drawn()))
    recogniser = ported("text_recogniser", wanted.folder, pixels(drawn().crop((40, 26, 320, 74))))
    with porting.load(detector) as finds, porting.load(recogniser) as reads:
        for line in lines(finds, picture):
            print(read(reads, names, line))


if __name__ == "__main__":
    try:
        main()
    except porting.PortingError as error:
        sys.exit(str(error))
