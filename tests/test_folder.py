"""A folder of pictures as Data, and pixels other than 32 x 32 through everything that takes pictures."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import data, evaluation, folder, low_rank, models, profiling, pruning, quantization
from helpers.data import from_folder
from helpers.evaluation import evaluate, recalibrate
from helpers.training import fit

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


def picture(path, colour=(9, 9, 9), size=(20, 30), mode="RGB", **more):
    """One colour, of ``size`` = (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **more)
    return path


@pytest.fixture
def tree(tmp_path):
    """Two classes of ten pictures, each of another size, and what is no picture."""
    for name, colour in COLOURS.items():
        for number in range(10):
            picture(tmp_path / name / f"{number}.png", colour, (20 + number, 40 - number))
    picture(tmp_path / "red" / ".hidden.png")
    picture(tmp_path / ".git" / "x.png")
    picture(tmp_path / "__MACOSX" / "x.png")
    (tmp_path / "red" / "notes.txt").write_text("x")
    return tmp_path


def whole(found):
    return [getattr(found, part) for part in ("train", "validation", "test")]


def quietly(path, pixels=16, **more):
    return from_folder(path, pixels, progress=False, **more)


def test_a_folder_becomes_data_with_every_picture_in_one_split(tree):
    found = quietly(tree, (24, 16), validation=0.2, test=0.1)
    assert found.classes == ("blue", "red")
    assert found.name == tree.name
    assert [len(split) for split in whole(found)] == [14, 4, 2]
    for split in whole(found):
        assert split.images.dtype == torch.uint8
        assert split.images.shape == (len(split), 3, 24, 16)
        assert split.labels.bincount().tolist() == [len(split) // 2] * 2  # stratified
        for image, label in zip(split.images, split.labels, strict=True):
            assert image.amax((1, 2)).tolist() == list(COLOURS[found.classes[label]])
    assert found.train.mean == pytest.approx((0.5, 0, 0.5))
    assert found.train.std == pytest.approx((0.5, 1 / 255, 0.5))
    assert len(found.train.labels[:7].unique()) == 2  # in no order of classes


def test_both_shares_are_of_the_whole_folder(tree):
    assert [len(split) for split in whole(quietly(tree, validation=0.3, test=0.3))] == [8, 6, 6]


def test_the_seed_decides_which_pictures_are_held_out(tmp_path):
    for number in range(12):
        picture(tmp_path / "ab"[number % 2] / f"{number}.png", (number, 0, 0))

    def values(seed):
        return [split.images[:, 0, 0, 0].tolist() for split in whole(quietly(tmp_path, seed=seed))]

    assert values(0) == values(0)
    assert values(0) != values(1)
    assert sorted(value for split in values(1) for value in split) == list(range(12))


def test_pictures_are_scaled_to_cover_and_cropped_about_the_middle(tmp_path):
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200  # the middle square
    for number in range(6):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(wide).save(path)
    assert (quietly(tmp_path, 10).train.images[..., 1:-1] == 200).all()
    tall = quietly(tmp_path, (10, 20)).train.images[0, 0]  # all of it
    assert (tall[:, 6:14] == 200).all()
    assert (tall[:, :4] == 0).all()


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", 76), ("P", None), ("RGBA", None), ("LA", 76), ("1", None), ("CMYK", None)]
)
def test_every_kind_of_picture_becomes_rgb(mode, expected, tmp_path):
    for number in range(6):
        ending = "tif" if mode == "CMYK" else "png"
        picture(tmp_path / "ab"[number % 2] / f"{number}.{ending}", (255, 0, 0), mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixel = quietly(tmp_path).train.images[0].float().mean((1, 2)).round().tolist()
    if mode != "1":  # dithered
        assert pixel == ([expected] * 3 if expected else [255, 0, 0])


def test_sixteen_bits_of_grey_and_turned_cameras(tmp_path):
    for number in range(6):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 9), 100 * 257, np.uint16)).save(path)
    assert (quietly(tmp_path).train.images == 100).all()
    turned = np.zeros((20, 20, 3), np.uint8)
    turned[:10] = 255  # white above; to be turned by a quarter clockwise, so white on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in tmp_path.glob("?/*.png"):
        Image.fromarray(turned).save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    image = quietly(tmp_path).train.images[0, 0]
    assert image[:, 10:].float().mean() > 240 > 15 > image[:, :6].float().mean()


def test_broken_files_are_named_and_left_out(tree):
    for number in range(12):
        (tree / "red" / f"broken{number:02}.jpg").write_bytes(b"no picture")
    good = picture(tree / "red" / "half.jpg", size=(200, 200)).read_bytes()
    (tree / "red" / "half.jpg").write_bytes(good[: len(good) // 2])
    with pytest.warns(UserWarning, match=r"^13 of 33 files cannot be read.*broken.*and 3 more$") as caught:
        found = quietly(tree)
    assert str(caught[0].message).count("red") == 10
    assert caught[0].filename == __file__
    assert sum(len(split) for split in whole(found)) == 20


def test_folders_of_their_own_are_the_splits(tree, tmp_path_factory):
    root = tmp_path_factory.mktemp("split")
    (root / "train").mkdir()
    for name in COLOURS:
        (tree / name).rename(root / "train" / name)
        for number in range(3):
            picture(root / "test" / name / f"{number}.png", COLOURS[name])
    assert [len(split) for split in whole(quietly(root))] == [18, 2, 6]
    (root / "test").rename(root / "val")
    assert [len(split) for split in whole(quietly(root))] == [18, 6, 2]
    (root / "val").rename(root.parent / f"{root.name}-val")
    assert [len(split) for split in whole(quietly(root))] == [16, 2, 2]  # a folder train alone
    (root.parent / f"{root.name}-val").rename(root / "val")
    (root / "validation").mkdir()
    with pytest.raises(
        ValueError, match=r"path must hold one folder for each split, got .*val and .*validation"
    ):
        quietly(root)
    (root / "validation").rmdir()
    picture(root / "val" / "green" / "1.png")
    with pytest.raises(ValueError, match=r"path must hold the classes of validation in train.*\['green'\]"):
        quietly(root)
    (root / "train").rename(root / "test")
    with pytest.raises(ValueError, match="path must hold train beside validation and test"):
        quietly(root)


def test_what_is_too_large_is_mapped_and_found_again(tree, tmp_path_factory, monkeypatch, capsys):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (tree / "red" / "broken.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of 21"):
        expected = quietly(tree)
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 21"):
            found = quietly(tree, memory_gb=1e-6, cache=elsewhere / "cache")
        assert "streamed from" in capsys.readouterr().out
        for mine, other in zip(whole(found), whole(expected), strict=True):
            assert torch.equal(mine.images, other.images)
            assert torch.equal(mine.labels, other.labels)
        assert (found.mean, found.std) == (expected.mean, expected.std)
        monkeypatch.setattr(folder, "_read", None)  # not read again
    assert found.train.images.untyped_storage().data_ptr() == found.test.images.untyped_storage().data_ptr()
    assert len(list((elsewhere / "cache").iterdir())) == 2
    (elsewhere / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        quietly(tree, memory_gb=1e-6, cache=elsewhere / "file")


def make(tmp_path, counts, ending="png", broken=False):
    for name, count in counts.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            path = picture(tmp_path / name / f"{number}.{ending}")
            if broken:
                path.write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("counts", "broken", "said"),
    [
        ({}, False, r"a folder for each of two or more classes, got \[\]"),
        ({"one": 9}, False, r"two or more classes, got \['one'\]"),
        ({"a": 1, "b": 1}, False, r"at least 3 pictures of each class, got 1 of 'a'"),
        ({"a": 5, "b": 0}, False, r"at least 3 pictures of each class, got 0 of 'b'"),
        ({"a": 3, "b": 3}, True, "readable pictures, got none of 6"),
    ],
)
def test_folders_that_are_no_data_set_are_refused(counts, broken, said, tmp_path):
    with pytest.raises(ValueError, match=f"path must hold .*{said}"):
        quietly(make(tmp_path, counts, broken=broken))


def test_a_class_without_a_readable_picture_is_named(tmp_path):
    make(tmp_path, {"a": 4, "b": 4})
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(b"x")
    with (
        pytest.warns(UserWarning, match="4 of 8"),
        pytest.raises(ValueError, match="for train, got none of 'b'"),
    ):
        quietly(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"path": "nowhere"}, "path must be a folder, got nowhere"),
        ({"pixels": 7}, "pixels must .* 8.*got 7"),
        ({"pixels": (64, 5000)}, r"pixels must .* 4096.*got \(64, 5000\)"),
        ({"pixels": "64"}, "pixels must"),
        ({"validation": 0.5, "test": 0.5}, "validation must leave"),
        ({"memory_gb": 0}, "memory_gb must"),
    ],
)
def test_bad_arguments_are_named(arguments, said, tree):
    with pytest.raises((ValueError, TypeError), match=said):
        quietly(**{"path": tree, **arguments})


def test_data_says_what_it_does_not_have():
    assert data.from_folder is folder.from_folder
    with pytest.raises(AttributeError, match=r"helpers\.data.*no attribute 'nothing'"):
        data.nothing  # noqa: B018


# -- 48 x 64 pixels through everything -------------------------------------------------------------------------


@pytest.fixture
def oblong(tree):
    return quietly(tree, (48, 64), validation=0.3)


def flat():
    """Takes 48 x 64 and nothing else."""
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 4, 1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 6 * 8, 2))


MACS = 24 * 32 * 8 * 27 + 6 * 8 * 8 * 72 + 8 * 6 * 8 * 2


def test_fit_and_what_measures_take_other_pixels(oblong):
    model = flat()
    fit(model, oblong, epochs=6, batch_size=7, lr=0.02, cutout=8, precision="bf16", progress=False)
    again = recalibrate(model, oblong.train)
    assert float(evaluate(again, oblong.validation)) == 1.0
    for name in ("vgg11", "resnet18", "micro_convnet", "mobilenet_student"):
        ours = models.build(name, num_classes=2, width=0.1)
        assert evaluation.predict(ours, oblong.test, precision="bf16").shape == (2, 2)


def test_costs_are_counted_at_the_pictures_size(oblong):
    model = flat()
    assert profiling.summarize(model, oblong, repeats=3)["macs"] == MACS
    assert profiling.summarize(model, oblong.test, repeats=3)["macs"] == MACS
    table = profiling.compare({"flat": model}, oblong, repeats=3)
    assert table.loc["flat", "macs"] == MACS
    assert profiling.profile(model, (1, 3, 48, 64))["macs"].sum() == MACS
    with pytest.raises(
        ValueError, match=r"input_shape must be one that the model takes, got \(1, 3, 32, 32\)"
    ):
        profiling.summarize(model, repeats=3)


@pytest.mark.filterwarnings("ignore")
def test_techniques_take_other_pixels(oblong):
    model, train, split = flat(), oblong.train, oblong.validation
    table = low_rank.analyze(model, pictures=train)
    assert table["macs"].sum() == MACS
    small = low_rank.factorize(model, budget=0.5, count="macs", pictures=train)
    assert profiling.count_macs(small, (1, 3, 48, 64)) < MACS
    assert low_rank.sweep(model, split, [0.5], calibration=train)["macs"].iloc[0] < MACS
    narrow = pruning.prune_channels(model, split.images[:1].float(), 0.5, round_to=1)
    assert narrow(torch.zeros(1, 3, 48, 64)).shape == (1, 2)
    assert narrow[0].out_channels == 4
    assert len(pruning.sweep(model, split, [0.5], calibration=train)) == 1
    assert len(quantization.sweep(model, split, [4], calibration=train)) == 1
    for unit in ("weight", "channel"):
        rows = pruning.sensitivity(model, split, [0.5], calibration=train, unit=unit, only=["0"])
        assert len(rows) == 2


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("Train", "Test"), ("train", "testing"), ("train", "eval")]
)
def test_splits_are_found_by_their_usual_names(names, tmp_path):
    for name in names:
        for kind, colour in COLOURS.items():
            for number in range(10):
                picture(tmp_path / name / kind / f"{number}.png", colour)
    found = from_folder(tmp_path, pixels=8, progress=False)
    assert found.classes == ("blue", "red")
    other = found.validation if names[1] == "eval" else found.test
    assert len(other) == 20


def test_classes_that_look_like_splits_are_named(tmp_path):
    for name in ("fold1", "fold2"):
        for kind, colour in COLOURS.items():
            for number in range(10):
                picture(tmp_path / name / kind / f"{number}.png", colour)
    with pytest.warns(UserWarning, match="fold1, fold2 are taken for classes.*blue, red") as caught:
        from_folder(tmp_path, pixels=8, progress=False)
    assert caught[0].filename == __file__


def test_grey_of_no_known_scale_is_left_out_and_named(tree):
    for mode in ("F", "I"):
        Image.new(mode, (20, 20), 1).save(tree / "red" / f"{mode}.tiff")
    with pytest.warns(UserWarning, match=r"^2 of 22 files cannot be read.*tiff.*tiff"):
        quietly(tree)
