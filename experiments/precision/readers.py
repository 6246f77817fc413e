"""Readers of the data sets' files; a file that is not what its source describes is refused."""

from __future__ import annotations

import io
import re
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from experiments.precision.data import DataError, DataSet, Floats, Part, ordered, split_by_hash
from runtime.precision.chain_fsdd import RATE_HZ, SAMPLES

FASHION: Final = "fashion_mnist/{part}.npz"
EUROSAT: Final = "eurosat/dev.tar.gz"
FSDD: Final = "fsdd/dev.tar.gz"
FASHION_CLASSES: Final = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
FASHION_CALIBRATION: Final = 2500
"""Images at the end of the training file; it is in hash order, so they are a fair sample."""
EUROSAT_SPLIT: Final = (0.65, 0.15)
DIGITS_SPLIT: Final = (0.7, 0.1)
FSDD_VALIDATION: Final = range(5, 10)
"""Recording indices held out (0 to 4 are upstream's test set and not in the file)."""
FSDD_CALIBRATION: Final = range(10, 15)

_WAV = re.compile(r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\.wav")


def digits() -> DataSet:
    """Return scikit-learn's handwritten digits: 1,797 images of 8x8, bundled with it."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images[:, None] / 16.0).astype(np.float32)
    parts = split_by_hash(Part(x, bunch.target.astype(np.int64)), DIGITS_SPLIT)
    return DataSet("digits", tuple(str(k) for k in range(10)), *parts)


def fashion_mnist(root: Path) -> DataSet:
    """Read Fashion-MNIST: the file `valid` is held out, the end of `train` calibrates.

    Raises:
        DataError: See `data.load_data`.
    """
    train = _read_fashion(root / FASHION.format(part="train"))
    validation = _read_fashion(root / FASHION.format(part="valid"))
    cut = len(train) - FASHION_CALIBRATION
    if cut < FASHION_CALIBRATION:
        raise DataError(
            f"{root / FASHION.format(part='train')} has {len(train)} images; expected at least "
            f"{2 * FASHION_CALIBRATION}"
        )
    calibration = Part(train.x[cut:], train.y[cut:])
    return DataSet("fashion_mnist", FASHION_CLASSES, train.first(cut), calibration, validation)


def eurosat(root: Path) -> DataSet:
    """Read EuroSAT's RGB images: 75 % train, 5 % calibrate, 20 % are held out, by content hash.

    Raises:
        DataError: See `data.load_data`.
    """
    path = root / EUROSAT
    images, names = [], []
    for member, content in _members(path, ".jpg"):
        name, separator, _ = member.rpartition("/")
        if not separator:
            raise DataError(f"{path}: {member} lies in no folder; expected <class>/<file>.jpg")
        images.append(_decode_image(content, f"{path}: {member}"))
        names.append(name)
    classes, y = np.unique(names, return_inverse=True)
    if len(classes) != 10:
        raise DataError(f"{path} has {len(classes)} classes; expected 10")
    x = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255.0)
    parts = split_by_hash(Part(x, y.astype(np.int64)), EUROSAT_SPLIT)
    return DataSet("eurosat", tuple(str(name) for name in classes), *parts)


def fsdd(root: Path) -> DataSet:
    """Read the spoken digits, split by recording index (of each digit and speaker).

    Recordings are cut to, or filled up with silence to, 1.024 s.

    Raises:
        DataError: See `data.load_data`.
    """
    path = root / FSDD
    waves, labels, indices = [], [], []
    for member, content in _members(path, ".wav"):
        named = _WAV.fullmatch(member.rpartition("/")[2])
        if named is None:
            raise DataError(f"{path}: {member} is not named <digit>_<speaker>_<index>.wav")
        waves.append(_decode_wave(content, f"{path}: {member}"))
        labels.append(int(named["digit"]))
        indices.append(int(named["index"]))
    x, y, index = np.stack(waves)[:, None], np.array(labels, np.int64), np.array(indices)
    held_out = np.isin(index, FSDD_VALIDATION)
    calibrates = np.isin(index, FSDD_CALIBRATION)
    parts = []
    for chosen in (~held_out & ~calibrates, calibrates, held_out):
        if not chosen.any():
            raise DataError(
                f"{path} lacks recordings of a part; expected indices of at least "
                f"{FSDD_VALIDATION.start} to {FSDD_CALIBRATION.stop}"
            )
        parts.append(ordered(Part(x[chosen], y[chosen])))
    return DataSet("fsdd", tuple(str(k) for k in range(10)), *parts)


def _read_fashion(path: Path) -> Part:
    _need(path)
    try:
        # Opened here: numpy leaves a file open that turns out to be damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = [key for key in ("x", "y") if key not in file]
            if missing:
                raise DataError(f"{path} lacks the array {missing[0]!r}; expected x and y")
            x, y = file["x"], file["y"]
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}; fetch it again") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a plain npz file: {error}; fetch it again") from error
    _check_fashion(path, x, y)
    return Part(x[:, None].astype(np.float32) / np.float32(255.0), y.astype(np.int64))


def _check_fashion(path: Path, x: NDArray[np.generic], y: NDArray[np.generic]) -> None:
    if x.dtype != np.uint8 or x.ndim != 3 or x.shape[1:] != (28, 28):
        raise DataError(f"{path}: x is {x.dtype} {x.shape}; expected uint8 (n, 28, 28)")
    if y.dtype != np.uint8 or y.shape != x.shape[:1]:
        raise DataError(f"{path}: y is {y.dtype} {y.shape}; expected uint8 {x.shape[:1]}")
    wrong = np.flatnonzero(y >= len(FASHION_CLASSES))
    if len(wrong):
        raise DataError(f"{path}: row {wrong[0]} has label {y[wrong[0]]}; expected 0 to 9")


def _need(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing; the README says where this set comes from")


def _members(path: Path, ending: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of an archive's files, at least one."""
    _need(path)
    found = False
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and member.name.endswith(ending):
                    found = True
                    yield member.name, file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; fetch it again") from error
    if not found:
        raise DataError(f"{path} holds no {ending} file")


def _decode_image(content: bytes, where: str) -> NDArray[np.uint8]:
    """Decode an image to uint8 [64, 64, 3]."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{where} is no readable image: {error}") from error
    if pixels.shape != (64, 64, 3):
        raise DataError(f"{where} has shape {pixels.shape}; expected (64, 64, 3)")
    return pixels


def _decode_wave(content: bytes, where: str) -> Floats:
    """Decode a recording to float32 [SAMPLES] in [-1, 1]."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise DataError(f"{where} is no readable recording: {error}") from error
    if form != (1, 2, RATE_HZ):
        raise DataError(f"{where} has channels, bytes, rate {form}; expected {(1, 2, RATE_HZ)}")
    samples = np.frombuffer(frames, "<i2")[:SAMPLES].astype(np.float32) / np.float32(32768.0)
    return np.pad(samples, (0, SAMPLES - len(samples)))
