from __future__ import annotations

import io
import tarfile
import wave
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from experiments.errors import ConfigError
from experiments.precision.data import PARTS, DataError, DataSet, Part, load_data, split_by_hash
from experiments.precision.readers import EUROSAT, FASHION, FSDD, FSDD_CALIBRATION, FSDD_VALIDATION
from runtime.precision.chain_fsdd import SAMPLES


def jpeg(rng: np.random.Generator, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    pixels = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def wav(samples: NDArray[np.int16], rate: int = 8000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def pack(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def satellite_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {f"Class{k}/image_{i}.jpg": jpeg(rng) for k in range(10) for i in range(20)}


def digit_files() -> dict[str, bytes]:
    rng = np.random.default_rng(1)
    return {
        f"{digit}_{speaker}_{index}.wav": wav(rng.integers(-99, 99, size=900 * (1 + index)))
        for digit in range(3)
        for speaker in ("ann", "bob")
        for index in (5, 9, 10, 14, 15, 20)
    }


def clothes(n: int) -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(n)
    x = rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
    return {"x": x, "y": rng.integers(10, size=n, dtype=np.uint8)}


def write_clothes(path: Path, **arrays: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small data root of the right form."""
    write_clothes(tmp_path / FASHION.format(part="train"), **clothes(5200))
    write_clothes(tmp_path / FASHION.format(part="valid"), **clothes(30))
    pack(tmp_path / EUROSAT, satellite_files())
    pack(tmp_path / FSDD, digit_files())
    return tmp_path


def check_form(data: DataSet, shape: tuple[int, ...], low: float) -> None:
    hashes = []
    for name in PARTS:
        part: Part = getattr(data, name)
        assert part.x.shape == (len(part), *shape)
        assert part.x.dtype == np.float32
        assert part.y.dtype == np.int64
        assert part.x.min() >= low
        assert part.x.max() <= 1.0
        assert part.y.min() >= 0
        assert part.y.max() < len(data.classes)
        hashes += [sample.tobytes() for sample in part.x]
    assert len(set(hashes)) == len(hashes), "a sample is in two parts"


def test_digits_need_no_data_root() -> None:
    data = load_data("digits", None)
    check_form(data, (1, 8, 8), 0.0)
    assert [len(getattr(data, name)) for name in PARTS] == [1258, 180, 359]
    assert data.sha256() == load_data("digits", None).sha256()
    assert len(data.first(7).validation) == 7
    # Any beginning is a fair sample.
    assert len(np.unique(data.train.first(60).y)) == 10


def test_small_sets_of_the_right_form_are_read(root: Path) -> None:
    check_form(load_data("fashion_mnist", root), (1, 28, 28), 0.0)
    satellite = load_data("eurosat", root)
    check_form(satellite, (3, 64, 64), 0.0)
    assert satellite.classes == tuple(f"Class{k}" for k in range(10))
    for name, count in (("train", 13), ("calibration", 3), ("validation", 4)):
        assert (np.bincount(getattr(satellite, name).y) == count).all()
    spoken = load_data("fsdd", root)
    check_form(spoken, (1, SAMPLES), -1.0)
    assert [len(getattr(spoken, name)) for name in PARTS] == [12, 12, 12]


def test_recordings_are_scaled_filled_with_silence_and_cut(root: Path) -> None:
    ramp = np.arange(-16384, 16384, 4, dtype=np.int16)
    new = {"7_eve_30.wav": wav(ramp[:4000]), "8_eve_30.wav": wav(np.tile(ramp, 2))}
    pack(root / FSDD, digit_files() | new)
    train = load_data("fsdd", root).train
    short = train.x[train.y == 7][0, 0]
    np.testing.assert_array_equal(short[:4000], ramp[:4000] / np.float32(32768.0))
    assert (short[4000:] == 0.0).all()
    assert train.x[train.y == 8].shape == (1, 1, SAMPLES)


def test_splits_ignore_the_order_of_files(root: Path) -> None:
    before = {name: load_data(name, root).sha256() for name in ("eurosat", "fsdd")}
    pack(root / EUROSAT, dict(reversed(satellite_files().items())))
    pack(root / FSDD, dict(reversed(digit_files().items())))
    assert {name: load_data(name, root).sha256() for name in before} == before


def test_split_by_hash_takes_shares_of_every_class() -> None:
    rng = np.random.default_rng(0)
    part = Part(rng.random((100, 1, 2, 2), dtype=np.float32), np.repeat([0, 1], [20, 80]))
    pieces = split_by_hash(part, (0.7, 0.1))
    assert [np.bincount(piece.y).tolist() for piece in pieces] == [[14, 56], [2, 8], [4, 16]]
    joined = np.concatenate([piece.x for piece in pieces])
    np.testing.assert_array_equal(np.sort(joined, None), np.sort(part.x, None))


def test_real_sets(data_root: Path) -> None:
    data = load_data("fsdd", data_root)
    check_form(data, (1, SAMPLES), -1.0)
    assert [len(getattr(data, name)) for name in PARTS] == [2100, 300, 300]
    assert (len(FSDD_VALIDATION), len(FSDD_CALIBRATION)) == (5, 5)
    for name, count in zip(PARTS, (210, 30, 30), strict=True):
        assert (np.bincount(getattr(data, name).y) == count).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eurosat", "'eurosat' needs the data root: set RHEOSTAT_DATA or data.root"),
        ("eurosta", "unknown data set 'eurosta'; did you mean 'eurosat'"),
    ],
)
def test_without_a_data_root(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_data(name, None)


def clothes_with(**changed: NDArray[np.generic]) -> Callable[[Path], None]:
    return lambda root: write_clothes(
        root / FASHION.format(part="valid"), **{**clothes(30), **changed}
    )


def satellite_with(files: Mapping[str, bytes]) -> Callable[[Path], None]:
    return lambda root: pack(root / EUROSAT, satellite_files() | files)


def spoken_with(files: Mapping[str, bytes]) -> Callable[[Path], None]:
    return lambda root: pack(root / FSDD, digit_files() | files)


def cut(file: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        content = (root / file).read_bytes()
        (root / file).write_bytes(content[: len(content) // 2])

    return apply


QUIET = np.zeros(900, np.int16)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("fashion_mnist", lambda r: (r / FASHION.format(part="valid")).unlink(), "is missing"),
        ("fashion_mnist", cut(FASHION.format(part="train")), "cannot be read"),
        ("fashion_mnist", clothes_with(y=np.zeros(29, np.uint8)), r"y is uint8 \(29,\)"),
        ("fashion_mnist", clothes_with(x=np.zeros((30, 8, 8), np.uint8)), r"\(30, 8, 8\); expec"),
        ("fashion_mnist", clothes_with(x=np.zeros((30, 28, 28))), r"x is float64"),
        ("fashion_mnist", clothes_with(y=np.full(30, 11, np.uint8)), "row 0 has label 11; expec"),
        ("fashion_mnist", clothes_with(y=np.array([{}] * 30)), "not a plain npz file"),
        ("eurosat", lambda r: (r / EUROSAT).unlink(), "is missing; the README says"),
        ("eurosat", cut(EUROSAT), "cannot be read"),
        ("eurosat", satellite_with({"Class0/x.jpg": b"no image"}), "Class0/x.jpg is no readable"),
        (
            "eurosat",
            satellite_with({"Class0/x.jpg": jpeg(np.random.default_rng(0), (32, 32))}),
            r"Class0/x.jpg has shape \(32, 32, 3\); expected \(64, 64, 3\)",
        ),
        ("eurosat", satellite_with({"x.jpg": b""}), "x.jpg lies in no folder"),
        (
            "eurosat",
            satellite_with({"Extra/x.jpg": jpeg(np.random.default_rng(0))}),
            "has 11 classes; expected 10",
        ),
        ("eurosat", lambda r: pack(r / EUROSAT, {"readme.txt": b""}), "holds no .jpg file"),
        ("fsdd", spoken_with({"1_ann_x.wav": wav(QUIET)}), "not named <digit>_<speaker>"),
        ("fsdd", spoken_with({"1_ann_30.wav": b"RIFF"}), "1_ann_30.wav is no readable recording"),
        ("fsdd", spoken_with({"1_ann_30.wav": wav(QUIET, 16000)}), r"rate \(1, 2, 16000\)"),
        ("fsdd", spoken_with({"1_ann_30.wav": wav(QUIET, 8000, 2)}), r"rate \(2, 2, 8000\)"),
        ("fsdd", lambda r: pack(r / FSDD, {"1_a_5.wav": wav(QUIET)}), "lacks recordings of a part"),
    ],
)
def test_damaged_data_are_refused(
    root: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(root)
    with pytest.raises(DataError, match=message):
        load_data(name, root)
