"""Images with labels: what is read is what was written, and what cannot be read says which file."""

import io
import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from mano_op import InputError
from mano_op.vision.augment import Augmentation
from mano_op.vision.decode import decoded
from mano_op.vision.images import open_images, stratified
from mano_op.vision.processor import IMAGENET, ImageProcessor, moments
from mano_op.vision.resize import fitted, interpolated, resized

COLOURS = {"blue": (10, 20, 200), "red": (200, 30, 40)}


def paint(path: Path, colour: Any, size: tuple[int, int] = (6, 6), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "L" if isinstance(colour, int) else "RGB"
    Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes in two splits; images of one colour each, which is that of the class plus its number."""
    for split, n in (("train", 4), ("test", 2)):
        for name, (r, g, b) in COLOURS.items():
            for i in range(n):
                paint(tmp_path / "pets" / split / name / f"{i}.png", (r + i, g + i, b + i))
    return tmp_path / "pets"


def all_of(split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    samples = [split[i] for i in range(len(split))]
    return torch.stack([one["x"] for one in samples]), torch.stack([one["y"] for one in samples])


def test_digits_are_scikit_learns() -> None:
    images = open_images("digits")
    found = load_digits()
    x, y = all_of(images["train"])
    assert x.dtype == torch.float32 and x.shape == (1438, 1, 8, 8)
    held = stratified(found.target, 0.2, 0, images.classes)
    np.testing.assert_array_equal(x[:, 0].numpy(), found.images[~held].astype(np.float32) / 16)
    np.testing.assert_array_equal(y.numpy(), found.target[~held])
    x, y = all_of(images["test"])
    np.testing.assert_array_equal(x[:, 0].numpy(), found.images[held].astype(np.float32) / 16)
    assert images.classes == tuple("0123456789")
    colour = open_images("digits", in_channels=3)["test"][0]["x"]
    assert torch.equal(colour, x[0].expand(3, 8, 8))


def test_splits_are_disjoint_stratified_and_drawn_by_the_seed() -> None:
    labels = load_digits().target

    def rows(seed: int) -> dict[str, set[int]]:
        images = open_images("digits", test=0.25, validation=0.2, seed=seed)
        return {name: set(split._rows.tolist()) for name, split in images.splits.items()}

    first, again, other = rows(0), rows(0), rows(1)
    assert first == again
    assert first["test"] != other["test"]
    assert sorted(first["train"] | first["validation"] | first["test"]) == list(range(1797))
    assert sum(map(len, first.values())) == 1797
    for label in range(10):
        n = (labels == label).sum()
        of = {name: sum(labels[row] == label for row in some) for name, some in first.items()}
        assert of["test"] == round(0.25 * n)
        assert of["validation"] == round(0.2 * (n - of["test"]))


def test_the_rarest_class_is_in_both_parts() -> None:
    labels = np.array([0] * 100 + [1] * 2)
    drawn = stratified(labels, 0.01, 0, ["a", "b"])
    assert (drawn[:100].sum(), drawn[100:].sum()) == (1, 1)
    drawn = stratified(labels, 0.999, 0, ["a", "b"])
    assert (drawn[:100].sum(), drawn[100:].sum()) == (99, 1)
    with pytest.raises(InputError, match="class 'b' has one image, which cannot be in two splits"):
        stratified(labels[:-1], 0.5, 0, ["a", "b"])


def test_a_folder_has_the_colours_that_were_painted(folder: Path) -> None:
    images = open_images(folder, image_size=6)
    assert images.classes == ("blue", "red")
    assert (images.channels, images.image_size, list(images.splits)) == (3, (6, 6), ["train", "test"])
    for split, n in (("train", 4), ("test", 2)):
        x, y = all_of(images[split])
        assert y.tolist() == [0] * n + [1] * n
        for row in range(2 * n):
            colour = torch.tensor(COLOURS["blue" if row < n else "red"]) + row % n
            expected = (colour.float() / 255).view(3, 1, 1).expand(3, 6, 6)
            torch.testing.assert_close(x[row], expected, rtol=0, atol=0)


def test_a_folder_without_splits_is_split(folder: Path) -> None:
    images = open_images(folder / "train", image_size=4, test=0.25, seed=3)
    assert {name: len(split) for name, split in images.splits.items()} == {"train": 6, "test": 2}
    assert images["test"].labels.tolist() == [0, 1]
    assert images["test"].image_size == (4, 4)
    # Every colour that was painted is in one of the two, once, and with its class.
    found = [
        (label, *(255 * image[:, 0, 0]).round().int().tolist())
        for split in images.splits.values()
        for image, label in zip(*(one.unbind() for one in all_of(split)), strict=True)
    ]
    painted = [
        (n, *(one + i for one in COLOURS[name])) for n, name in enumerate(images.classes) for i in range(4)
    ]
    assert sorted(found) == painted


def test_what_is_hidden_is_no_image(folder: Path) -> None:
    before = open_images(folder, image_size=6)
    for hidden in (".thumbs/0.png", ".thumbs/more/0.png", "more/.thumbs/0.png", ".0.png"):
        paint(folder / "train" / "red" / hidden, (0, 0, 0))
    assert open_images(folder, image_size=6).origin == before.origin
    paint(folder / "train" / "red" / "more" / "0.png", (0, 0, 0))
    assert len(open_images(folder, image_size=6)["train"]) == len(before["train"]) + 1
    place = folder.parent / ".cache"  # a folder that is hidden itself is as good as any
    place.mkdir()
    assert len(open_images(folder.rename(place / "pets"), image_size=6)["test"]) == len(before["test"])


def test_grey_and_colour_are_what_was_asked_for(tmp_path: Path, folder: Path) -> None:
    grey = open_images(folder, image_size=6, in_channels=1)["train"][0]["x"]
    luminance = round(0.299 * 10 + 0.587 * 20 + 0.114 * 200)
    assert torch.equal(grey, torch.full((1, 6, 6), luminance / 255))
    for name in ("a", "b"):
        for i in range(3):
            paint(tmp_path / "grey" / name / f"{i}.png", 50 + i)
    images = open_images(tmp_path / "grey", image_size=6)
    assert images.channels == 1
    x = torch.cat([all_of(split)[0] for split in images.splits.values()])
    assert (x.unique() * 255).round().tolist() == [50, 51, 52]
    colour = open_images(tmp_path / "grey", image_size=6, in_channels=3)
    assert torch.equal(
        torch.cat([all_of(split)[0] for split in colour.splits.values()]), x.expand(-1, 3, -1, -1)
    )
    paint(tmp_path / "grey" / "b" / "1.png", (1, 2, 3))
    with pytest.raises(InputError, match=r"1\.png is in colour, the first training image is grey: give in_"):
        [all_of(split) for split in open_images(tmp_path / "grey", image_size=6).splits.values()]


def test_images_are_turned_as_the_camera_was(tmp_path: Path) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter, clockwise
    image.save(tmp_path / "turned.png", exif=turned)
    x = decoded(tmp_path / "turned.png", "turned", 1)
    np.testing.assert_array_equal(x[0].numpy(), np.rot90(pixels, -1).astype(np.float32) / 255)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decoded(tmp_path / "clear.png", "clear", 3).flatten().tolist() == [1.0, 1.0, 1.0]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 255]))
    x = decoded(tmp_path / "palette.png", "palette", 3)
    assert x[:, 0].T.tolist() == [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]


def test_the_shorter_side_is_fitted_and_the_middle_taken() -> None:
    """A slope that is linear stays so away from its ends, and the middle of the image stays the middle."""
    height, width = 12, 32
    slope = (torch.arange(width) + 0.5).expand(3, height, width)
    found = fitted(slope, (6, 6))
    expected = 16 + 2 * (torch.arange(6) - 2.5)
    torch.testing.assert_close(found, expected.expand(3, 6, 6))
    assert torch.equal(fitted(slope, (height, width)), slope)
    assert fitted(slope, (7, 5)).shape == (3, 7, 5)


def test_a_strip_is_not_made_huge_before_it_is_cut() -> None:
    strip = torch.zeros(1, 2, 200_000)
    strip[..., 99_990:100_010] = 1.0
    assert torch.equal(fitted(strip, (16, 16)), torch.ones(1, 16, 16))


def test_smaller_images_are_means_of_pixels_and_larger_ones_agree_in_their_middle() -> None:
    """Against the triangle of a pixel's width on each side, written out."""
    x = torch.rand(1, 1, 8, generator=torch.Generator().manual_seed(0)).double()
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8
    found = interpolated(x, (1, 4))
    for i in (1, 2):
        torch.testing.assert_close(found[0, 0, i], (weights * x[0, 0, 2 * i - 1 : 2 * i + 3]).sum())
    finer = interpolated(x, (1, 24))
    torch.testing.assert_close(finer[..., 1::3], x)  # every third pixel has the middle of an old one
    assert finer.min() >= x.min() and finer.max() <= x.max()


def test_another_size_is_read_anew_and_resized_is_not(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)
    for name in ("a", "b"):
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    split = open_images(tmp_path, image_size=4, test=0.5)["train"]
    exact = torch.from_numpy(pixels).float()[None] / 255
    assert torch.equal(split.at(16)[0]["x"], exact)
    assert torch.equal(split[0]["x"], interpolated(exact, (4, 4)))
    assert torch.equal(resized(split, 16)[0]["x"], interpolated(interpolated(exact, (4, 4)), (16, 16)))
    assert resized(split, (3, 5))[1]["y"] == split.labels[1]
    assert len(resized(split, 3)) == len(split)  # type: ignore[arg-type]


def test_workers_read_the_same(folder: Path) -> None:
    split = open_images(folder, image_size=6)["train"]
    here = all_of(split)
    loader = DataLoader(split, batch_size=3, num_workers=1, multiprocessing_context="spawn")
    there = list(loader)
    assert torch.equal(torch.cat([one["x"] for one in there]), here[0])
    assert torch.equal(torch.cat([one["y"] for one in there]), here[1])


def test_a_moved_folder_is_the_same_and_another_is_not(folder: Path, tmp_path: Path) -> None:
    before = open_images(folder, image_size=6).origin
    moved = folder.rename(tmp_path / "moved")
    assert open_images(moved, image_size=6).origin == before
    paint(moved / "train" / "red" / "9.png", (1, 2, 3))
    assert open_images(moved, image_size=6).origin["digest"] != before["digest"]


# Data sets of Hugging Face.


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_set(pixels: np.ndarray, labels: Any, **more: Any) -> datasets.Dataset:
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    content = {"picture": [{"bytes": png(Image.fromarray(one)), "path": None} for one in pixels]}
    content["kind"] = labels
    return datasets.Dataset.from_dict({**content, **more}, datasets.Features({**features}))


PIXELS = np.random.default_rng(1).integers(0, 255, (6, 5, 5, 3), dtype=np.uint8)


def test_a_data_set_on_disk_is_read_back(tmp_path: Path) -> None:
    parts = {"train": data_set(PIXELS[:4], [0, 1, 1, 0]), "test": data_set(PIXELS[4:], [1, 0])}
    datasets.DatasetDict(parts).with_format("torch").save_to_disk(str(tmp_path / "pets"))
    images = open_images(tmp_path / "pets", image_size=5)
    assert (images.classes, images.channels, list(images.splits)) == (("cat", "dog"), 3, ["train", "test"])
    for split, rows, labels in (("train", slice(0, 4), [0, 1, 1, 0]), ("test", slice(4, 6), [1, 0])):
        x, y = all_of(images[split])
        np.testing.assert_array_equal(x.numpy(), PIXELS[rows].transpose(0, 3, 1, 2).astype(np.float32) / 255)
        assert y.tolist() == labels
    copy = pickle.loads(pickle.dumps(images["test"]))  # as for a worker
    assert torch.equal(copy[1]["x"], images["test"][1]["x"])
    assert open_images(tmp_path / "pets", image_size=5).origin == images.origin


def test_a_data_set_without_splits_is_split(tmp_path: Path) -> None:
    data_set(PIXELS, [0, 1, 0, 1, 0, 1]).save_to_disk(str(tmp_path / "pets"))
    images = open_images(tmp_path / "pets", image_size=5, test=0.3, image_column="picture")
    counts = {name: sorted(split.labels.tolist()) for name, split in images.splits.items()}
    assert counts == {"train": [0, 0, 1, 1], "test": [0, 1]}
    x, y = (torch.cat(both) for both in zip(*map(all_of, images.splits.values()), strict=True))
    for image, label in zip(x, y, strict=True):
        places = ((image * 255).round().numpy().transpose(1, 2, 0) == PIXELS).all((1, 2, 3))
        assert [place % 2 for place in np.flatnonzero(places)] == [label]


def test_columns_that_are_not_clear_have_to_be_named(tmp_path: Path) -> None:
    both = data_set(PIXELS, [0, 1, 0, 1, 0, 1])
    both = both.add_column("other", both["kind"], feature=datasets.ClassLabel(names=["x", "y"]))
    both.save_to_disk(str(tmp_path / "two"))
    with pytest.raises(InputError, match="2 columns of ClassLabel among picture, kind, other, expected one"):
        open_images(tmp_path / "two", image_size=5)
    assert open_images(tmp_path / "two", image_size=5, label_column="other").classes == ("x", "y")
    with pytest.raises(InputError, match=r"label_column='picture', but .* name one of ClassLabel"):
        open_images(tmp_path / "two", image_size=5, label_column="picture")
    both.remove_columns(["picture"]).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"0 columns of Image .* cast a column to that feature"):
        open_images(tmp_path / "none", image_size=5)


def test_data_sets_that_cannot_be_used(tmp_path: Path) -> None:
    for name, labels, message in (
        ("unlabelled", [0, -1, 1, 0, 1, 0], "image 1 of .* has the label -1, expected 0 to 1"),
        ("missing", [0, 1, None, 0, 1, 0], "image 2 of .* has the label -1"),
        ("empty", [0] * 6, "has no image of the class 'dog'"),
    ):
        data_set(PIXELS, labels).save_to_disk(str(tmp_path / name))
        with pytest.raises(InputError, match=message):
            open_images(tmp_path / name, image_size=5)
    fetched = data_set(PIXELS, [0, 1] * 3).to_dict()
    fetched["picture"][3] = {"bytes": None, "path": "https://example.com/cat.png"}
    kinds = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"picture": kinds, "kind": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict(fetched, features).save_to_disk(str(tmp_path / "far"))
    described = json.loads((tmp_path / "far" / "dataset_info.json").read_text())
    described["features"]["picture"] = {"_type": "Image"}  # which would be fetched while it was saved
    (tmp_path / "far" / "dataset_info.json").write_text(json.dumps(described))
    images = open_images(tmp_path / "far", image_size=5)
    with pytest.raises(
        InputError, match=r"image 3 of .*far is https://example.com/cat.png, and nothing is f"
    ):
        [all_of(split) for split in images.splits.values()]
    datasets.DatasetDict({"fit": data_set(PIXELS, [0, 1] * 3)}).save_to_disk(str(tmp_path / "fit"))
    with pytest.raises(InputError, match="has the splits fit and no 'train'"):
        open_images(tmp_path / "fit", image_size=5)
    parts = {name: data_set(PIXELS, [0, 1] * 3) for name in ("train", "valid", "validation")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(InputError, match="has the splits valid and validation, expected one of them"):
        open_images(tmp_path / "both", image_size=5)
    for file in (tmp_path / "empty").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="empty cannot be read as a data set"):
        open_images(tmp_path / "empty", image_size=5)


# Files that are not what they say.


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60000 x 60000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        code = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", code)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


NOISE = np.random.default_rng(2).integers(0, 255, (40, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an image"),
        (b"no image at all", "cannot be read as an image"),
        (png(Image.fromarray(NOISE))[:2000], "cannot be read as an image .* if it was cut short"),
        (bomb(), "is too large to be read safely"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot be read as an image"),
        (png(Image.new("I;16", (3, 3), 40_000)), "has the mode I;16, more than 8 bits a channel"),
    ],
    ids=["empty", "text", "cut", "bomb", "postscript", "deep"],
)
def test_files_that_cannot_be_read_are_named(content: bytes, message: str, folder: Path) -> None:
    (folder / "train" / "red" / "2.png").write_bytes(content)
    split = open_images(folder, image_size=6)["train"]
    with pytest.raises(InputError, match=rf"red/2\.png {message}"):
        all_of(split)


def test_any_damage_to_a_file_is_an_input_error() -> None:
    """Or an image all the same; every kind of file, cut and with bytes changed at random."""
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(NOISE[:16, :16]).save(buffer, kind)
        whole = buffer.getvalue()
        assert decoded(whole, "whole", 3).shape == (3, 16, 16)
        for _ in range(60):
            damaged = bytearray(whole[: random.integers(1, len(whole) + 1)])
            for place in random.integers(0, len(damaged), 3):
                damaged[place] = random.integers(256)
            try:
                x = decoded(bytes(damaged), "damaged", 3)
                assert x.shape[0] == 3 and 0 <= x.min() <= x.max() <= 1
            except InputError as error:
                assert str(error).startswith("damaged ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has images of any size: give the one to bring them to, image_size=32"),
        ({"image_size": 0}, "image_size=0, expected a whole number, at least 1"),
        ({"image_size": (4, 4, 4)}, r"image_size=\(4, 4, 4\), expected a side or \(height, width\)"),
        ({"image_size": 10**9}, "image_size=1000000000, expected at most 16384 pixels a side"),
        ({"image_size": 6, "in_channels": 2}, "in_channels=2, expected 1 for grey or 3 for colour"),
        ({"image_size": 6, "test": 0.2}, "test=0.2, but .* has a split 'test': leave it out"),
        ({"image_size": 6, "validation": 1.0}, "validation=1.0, expected a part, between 0 and 1"),
        ({"image_size": 6, "validation": True}, "validation=True, expected a part"),
        ({"image_size": 6, "seed": -1}, "seed=-1, expected a whole number"),
        ({"image_size": 6, "label_column": "kind"}, "label_column for .*, which has no columns"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_images(folder, **options)


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"digit is no folder: .*, or 'digits'; did you mean 'digits'\?"):
        open_images("digit")
    with pytest.raises(InputError, match="has no split 'tset'; it has train, test; did you mean 'test'"):
        open_images(folder, image_size=6)["tset"]
    (folder / "train" / "green").mkdir()
    with pytest.raises(
        InputError, match=r"class 'green' has no images in .*, expected files that end in .png"
    ):
        open_images(folder, image_size=6)
    (folder / "train" / "green").rmdir()
    paint(folder / "test" / "green" / "0.png", (0, 255, 0))
    with pytest.raises(
        InputError, match=r"test has the class 'green', which .*train has not: the classes are"
    ):
        open_images(folder, image_size=6)
    (folder / "test" / "green").rename(folder / "extra")
    with pytest.raises(InputError, match=r"extra beside .*train, expected the splits train, test and valid"):
        open_images(folder, image_size=6)
    (folder / "extra").rename(tmp_path / "extra")
    (folder / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="has test and no folder 'train'"):
        open_images(folder, image_size=6)
    paint(tmp_path / "one" / "red" / "0.png", (1, 2, 3))
    with pytest.raises(InputError, match=r"has the classes \['red'\], expected at least two"):
        open_images(tmp_path / "one", image_size=6)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"nothing has no folders: expected one for each class"):
        open_images(tmp_path / "nothing", image_size=6)


# What is done to images of a batch.


def test_statistics_are_numpys() -> None:
    split = open_images("digits")["train"]
    x = all_of(split)[0].double().numpy()
    found = moments(split)
    assert found["mean"] == [pytest.approx(x.mean(), rel=1e-12)]
    assert found["std"] == [pytest.approx(x.std(), rel=1e-12)]
    processor = ImageProcessor(found["mean"], found["std"], 10)
    normal = processor.preprocess({"x": torch.from_numpy(x).float()})["x"]
    np.testing.assert_allclose(normal, (x - x.mean()) / x.std(), rtol=0, atol=1e-5)


def test_each_channel_has_its_own_statistics(folder: Path) -> None:
    split = open_images(folder, image_size=6)["train"]
    x = all_of(split)[0].double().numpy()
    found = moments(split)
    np.testing.assert_allclose(found["mean"], x.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found["std"], x.std((0, 2, 3)), rtol=1e-9)
    processor = ImageProcessor(IMAGENET["mean"], IMAGENET["std"], 2)
    normal = processor.preprocess({"x": torch.full((1, 3, 1, 1), 0.5)})["x"].flatten()
    expected = (0.5 - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])
    np.testing.assert_allclose(normal, expected, rtol=1e-5)


def test_targets_are_smoothed_in_training_alone() -> None:
    processor = ImageProcessor([0.0], [1.0], n_classes=4, smoothing=0.2)
    batch = {"x": torch.zeros(2, 1, 1, 1), "y": torch.tensor([3, 0])}
    smoothed = torch.tensor([[[0.05, 0.05, 0.05, 0.85]], [[0.85, 0.05, 0.05, 0.05]]])
    torch.testing.assert_close(processor.train().preprocess(batch)["y"], smoothed)
    assert torch.equal(processor.eval().preprocess(batch)["y"].argmax(-1).flatten(), batch["y"])
    assert batch["y"].tolist() == [3, 0]
    shares = {"x": batch["x"], "y": torch.tensor([[[0.5, 0.5, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]])}
    mixed = processor.train().preprocess(shares)["y"]
    torch.testing.assert_close(mixed[0, 0], torch.tensor([0.45, 0.45, 0.05, 0.05]))
    one = processor.preprocess({"x": torch.zeros(1, 2, 2), "y": torch.tensor(1)}, batched=False)
    torch.testing.assert_close(one["y"], torch.tensor([[0.05, 0.85, 0.05, 0.05]]))
    logits = torch.randn(2, 4)
    assert processor.postprocess(logits, batch)[0] is logits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.tensor([0, 4])}, r"labels of shape \(2,\) from 0 to 4, expected \(batch,\) from 0 to 3"),
        ({"y": torch.tensor([-1, 0])}, "from -1 to 0"),
        ({"y": torch.ones(2, 1, 3)}, r"shares of shape \(2, 1, 3\), expected \(batch, 1, 4\)"),
        ({"x": torch.zeros(2, 3, 4, 4)}, r"images of shape \(2, 3, 4, 4\) .* expected 1 channels"),
        ({"x": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, "torch.uint8 .* divide bytes by 255"),
        ({"x": torch.zeros(1, 4, 4)}, r"images of shape \(1, 4, 4\)"),
    ],
)
def test_batches_that_do_not_fit(change: dict[str, torch.Tensor], message: str) -> None:
    batch = {"x": torch.zeros(2, 1, 4, 4), "y": torch.tensor([0, 1]), **change}
    with pytest.raises(InputError, match=message):
        ImageProcessor([0.0], [1.0], n_classes=4).preprocess(batch)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"mean": [float("nan")]}, "mean=.*expected finite numbers"),
        ({"std": [-1.0]}, "std of at least 0"),
        ({"std": [1.0, 1.0]}, "expected one of each channel"),
        ({"n_classes": 1}, "n_classes=1, expected a whole number, at least 2"),
        ({"smoothing": 1.0}, "smoothing=1.0, expected 0 or more and less than 1"),
        ({"mean": "0"}, "mean='0', expected finite numbers"),
    ],
)
def test_processors_that_there_are_not(state: dict[str, Any], message: str) -> None:
    whole = {"mean": [0.0], "std": [1.0], "n_classes": 4, "smoothing": 0.0}
    with pytest.raises(InputError, match=message):
        ImageProcessor.from_dict(whole | state)


def augmented(x: torch.Tensor, y: torch.Tensor, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    augment = Augmentation(**options).bound(4, torch.Generator().manual_seed(seed))
    assert augment is not None
    return augment(x, y)


def test_shifts_are_all_as_often_and_repeat_the_edge() -> None:
    n = 4000
    x = (torch.arange(5.0) * 10 + torch.arange(5.0)[:, None]).expand(n, 1, 5, 5)
    found, y = augmented(x, torch.zeros(n, dtype=torch.int64), shift=1)
    assert y.sum() == 0
    middle = found[:, 0, 2, 2]  # 22, moved
    values, counts = middle.unique(return_counts=True)
    assert values.tolist() == [11, 12, 13, 21, 22, 23, 31, 32, 33]
    assert (counts - n / 9).abs().max() < 5 * (n / 9) ** 0.5
    corner = found[middle == 11][0, 0]
    expected = x[0, 0][[0, 0, 1, 2, 3]][:, [0, 0, 1, 2, 3]]
    assert torch.equal(corner, expected)


def test_half_of_the_images_are_mirrored() -> None:
    x = torch.arange(3.0).expand(1000, 1, 2, 3)
    found, _ = augmented(x, torch.zeros(1000, dtype=torch.int64), flip=True)
    mirrored = found[:, 0, 0, 0] == 2
    assert torch.equal(found, torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x))
    assert abs(int(mirrored.sum()) - 500) < 80


def test_what_is_cut_out_is_a_part_of_the_image() -> None:
    """A slope stays a slope, of a steepness that is the part of the width, and within its values."""
    n = 200
    x = ((torch.arange(32) + 0.5) / 32).expand(n, 1, 32, 32)
    found, _ = augmented(x, torch.zeros(n, dtype=torch.int64), crop=0.25)
    assert found.shape == x.shape
    assert found.min() >= x.min() and found.max() <= x.max()
    steps = (found[:, 0, 16, 20] - found[:, 0, 16, 12]) * 4  # the part of the width
    assert 0.4 < steps.min() < 0.6 and 0.9 < steps.max() < 1.001


def test_mixed_images_have_mixed_labels() -> None:
    y = torch.tensor([0, 1, 2, 3])
    x = torch.eye(4).view(4, 4, 1, 1)  # an image that says its class
    for seed in range(5):
        images, shares = augmented(x, y, seed=seed, mixup=0.4)
        assert shares.shape == (4, 1, 4)
        torch.testing.assert_close(images.view(4, 4), shares[:, 0])
        torch.testing.assert_close(shares.sum(-1), torch.ones(4, 1))
    assert torch.equal(augmented(x, y, mixup=0.4)[1], augmented(x, y, mixup=0.4)[1])


def test_the_same_seed_does_the_same() -> None:
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 4
    options = {"crop": 0.5, "shift": 2, "flip": True, "mixup": 1.0}
    first, again, other = (augmented(x, y, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert Augmentation().bound(4, torch.Generator()) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotate": 3}, "there is no augmentation 'rotate'; there are crop, shift, flip, mixup"),
        ({"flips": True}, "did you mean 'flip'"),
        ({"shift": -1}, "shift=-1, expected a whole number, at least 0"),
        ({"crop": 0.0}, "crop=0.0, expected a finite number, more than 0"),
        ({"crop": 1.5}, "crop=1.5, expected a part of the image"),
        ({"flip": 1}, "flip=1, expected True or False"),
        ({"mixup": -0.1}, "mixup=-0.1, expected a finite number, 0 or more"),
    ],
)
def test_augmentations_that_there_are_not(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation.from_options(options)


def test_images_are_not_shifted_away() -> None:
    with pytest.raises(InputError, match="shift=8 for images of 8 x 9 pixels, which may leave nothing"):
        Augmentation(shift=8).check((8, 9), has_hand=False)
