"""The fixed inputs of the zoo's goldens: a voice, photographs, tones, drawn text, ids. Every array is what the model is fed."""

from __future__ import annotations

import json
import wave

import numpy as np

from tests.model_zoo import file, speech_wav

THAI = "ทดสอบการตัดคำภาษาไทย"
KHMER = "សួស្តី"
ARABIC = "السلام عليكم ورحمة الله"


def speech() -> np.ndarray:
    """The recorded voice at 16 kHz: (22849,) float32, -1 to 1.

    Every third sample behind a low-pass of 61 taps (Kaiser window, beta 5, cut-off at a third of the band): scipy.signal's resample_poly(x, 1, 3).
    """
    with wave.open(str(speech_wav())) as recording:
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2").astype(np.float64)
    distance = np.arange(-30, 31)
    taps = np.sinc(distance / 3) * np.kaiser(61, 5.0)
    filtered = np.convolve(samples, taps / taps.sum())[30 : 30 + len(samples)]
    return (filtered[::3].astype(np.float32) / 32768).astype(np.float32)


def voice_chunks(count: int, context: int = 64) -> list[np.ndarray]:
    """The voice in chunks of 512 samples, each behind the last samples of the one before: (1, context + 512) float32."""
    samples = np.concatenate([np.zeros(context, np.float32), speech()])
    return [samples[None, start : start + context + 512] for start in range(0, 512 * count, 512)]


def tone(frequency: float, samples: int, rate: int = 16000) -> np.ndarray:
    """A sine, (samples,) float32."""
    return np.sin(2 * np.pi * frequency * np.arange(samples) / rate).astype(np.float32)


def picture(name: str):
    """A photograph of scikit-image ("astronaut", "chelsea", "coffee", "page") as a PIL image in RGB."""
    from PIL import Image

    return Image.open(file("scikit-image", f"skimage/data/{name}.png")).convert("RGB")


def imagenet(name: str) -> np.ndarray:
    """Centre square at 224 x 224, normalised as for ImageNet: (1, 3, 224, 224) float32."""
    from PIL import Image

    image = picture(name)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    scaled = (np.asarray(square, np.float32) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def face(side: int, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """The astronaut, whole or rows and columns [top:bottom, left:right], averaged down to a square: (1, 3, side, side) float32."""
    import torch

    pixels = np.asarray(picture("astronaut"), np.float32)
    if box is not None:
        top, bottom, left, right = box
        pixels = pixels[top:bottom, left:right]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(image, size=(side, side), mode="area").numpy()
    return ((small - 127.5) * 0.0078125).astype(np.float32)


def crepe_frame() -> np.ndarray:
    """1024 samples of 440 Hz, mean 0 and deviation 1: (1, 1024) float32."""
    samples = tone(440, 1024)
    return ((samples - samples.mean()) / samples.std(ddof=1))[None]


def pocket() -> dict[str, np.ndarray]:
    """200 atoms and 64 surface points at random places, as the arguments of the module."""
    rng = np.random.RandomState(0)
    return {
        "ty": np.arange(200) % 150 + 1,
        "xyz": rng.uniform(0, 14, (200, 3)).astype(np.float32),
        "pts": rng.uniform(0, 14, (64, 3)).astype(np.float32),
        "pf": np.sin(np.arange(64 * 39, dtype=np.float32)).reshape(64, 39),
    }


def khmer_word() -> np.ndarray:
    """A Khmer word in black on white: (1, 1, 48, 512) float32, -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (512, 48), 255)
    font = ImageFont.truetype(str(file("khmer-ocr-ocm", "khmer_ocr_ocm/assets/fonts/khmer/KhmerOS.ttf")), 30)
    ImageDraw.Draw(image).text((8, 2), KHMER, font=font, fill=0)
    return ((np.asarray(image, np.float32) / 255 - 0.5) / 0.5)[None, None]


def thai_ids() -> np.ndarray:
    """Characters of THAI, and for each the unknown syllable: (1, 2, 20) int64."""
    folder = "attacut/artifacts/attacut-sc"
    characters = json.loads(file("attacut", f"{folder}/characters.json").read_text(encoding="utf-8"))
    syllables = json.loads(file("attacut", f"{folder}/syllables.json").read_text(encoding="utf-8"))
    return np.array([[[characters[letter] for letter in THAI], [syllables["<UNK>"]] * len(THAI)]])


def drawn_text(text: str) -> np.ndarray:
    """A line of text for the text recogniser: (1, 3, 48, width) float32, -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(36)
    width = int(font.getlength(text)) + 20
    image = Image.new("RGB", (width, 48), "white")
    ImageDraw.Draw(image).text((10, 2), text, font=font, fill="black")
    return np.ascontiguousarray(((np.asarray(image, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None])


def page() -> np.ndarray:
    """A printed page for the text detector: (1, 3, 192, 384) float32, -1 to 1."""
    pixels = np.asarray(picture("page").resize((384, 192)), np.float32)
    return np.ascontiguousarray(((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None])


def nsfw_picture(name: str) -> np.ndarray:
    """256 x 256, the middle 224 x 224 of it, blue first, the means of the training set taken off: (1, 224, 224, 3) float32."""
    from PIL import Image

    pixels = np.asarray(picture(name).resize((256, 256), Image.Resampling.BILINEAR), np.float32)[16:240, 16:240, ::-1]
    return np.ascontiguousarray(pixels - np.array([104, 117, 123], np.float32))[None]


def magika_bytes(content: bytes) -> np.ndarray:
    """First and last 1024 bytes without the space around them, padded with 256 on the inside: (1, 2048) int32."""
    features = np.full((1, 2048), 256, np.int32)
    first, last = content.lstrip()[:1024], content.rstrip()[-1024:]
    features[0, : len(first)] = list(first)
    features[0, 2048 - len(last) :] = list(last)
    return features


def arabic_ids() -> np.ndarray:
    """Letters of ARABIC without its vowel marks, which the model is to add: (1, 23) int64."""
    path = file("text2tashkeel", "text2tashkeel/models/rawi_v2.vocab.json")
    numbers = dict(json.loads(path.read_text(encoding="utf-8"))["char_to_idx"])
    return np.array([[numbers[letter] for letter in ARABIC]])


def random_ids(seed: int, rows: int, limits: dict[str, int]) -> dict[str, np.ndarray]:
    """Windows of 21 ids, which those models take as floats: input name -> (rows, 21) float32, 0 <= id < limit."""
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, limit, (rows, 21)).astype(np.float32) for name, limit in limits.items()}
