import shutil
import socket
import time

import pytest
import torch
import torch.nn.functional as F

from helpers import data
from helpers.augmentation import holes
from helpers.data import CIFAR10_FOLDER, DataError, augment, batches, load_data, normalize


def test_digits_has_the_promised_shapes(digits):
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1297, 200, 300)
    for split in (digits.train, digits.validation, digits.test):
        assert split.images.dtype == torch.uint8
        assert split.images.shape == (len(split), 3, 32, 32)
        assert split.labels.dtype == torch.int64
    assert digits.classes == tuple("0123456789")
    pixels = normalize(digits.train.images, digits)
    assert pixels.mean().abs() < 1e-4
    assert abs(pixels.std().item() - 1) < 1e-3


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    shrunk = F.interpolate(digits.test.images[:, :1].float() * 16 / 255, size=(8, 8), mode="area").round()
    # Enlarging smooths, so compare by nearest neighbour: each test picture is closest to an original of its own class.
    originals = torch.from_numpy(load_digits().images).float().view(-1, 64)
    nearest = torch.cdist(shrunk.view(-1, 64), originals).argmin(1)
    assert (torch.from_numpy(load_digits().target)[nearest] == digits.test.labels).float().mean() > 0.99


def test_splits_share_no_picture_and_do_not_depend_on_the_seed(digits):
    everything = torch.cat([digits.train.images, digits.validation.images, digits.test.images])
    assert len(everything) == 1797
    other = load_data("digits", seed=7)
    assert torch.equal(other.validation.images, digits.validation.images)
    assert torch.equal(other.train.images, digits.train.images)


def test_cifar10_is_stratified_and_complete(cifar10):
    assert (len(cifar10.train), len(cifar10.validation), len(cifar10.test)) == (45_000, 5_000, 10_000)
    assert cifar10.train.labels.bincount().tolist() == [4_500] * 10
    assert cifar10.validation.labels.bincount().tolist() == [500] * 10
    assert cifar10.test.labels.bincount().tolist() == [1_000] * 10
    pixels = torch.cat([cifar10.train.images, cifar10.validation.images]).double() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(cifar10.mean).double(), atol=5e-4)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(cifar10.std).double(), atol=5e-4)


def test_train_limit_is_stratified_and_seeded():
    first, again, other = (load_data("digits", train_limit=200, seed=seed) for seed in (0, 0, 1))
    assert len(first.train) == 200
    assert first.train.labels.bincount().min() >= 19
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)


def test_augment_equals_pad_and_crop():
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    shifted = augment(images, torch.Generator().manual_seed(3), shift=4, mirror=False)
    padded = F.pad(images.float(), (4,) * 4, mode="reflect").to(torch.uint8)
    for picture, source in zip(shifted, padded, strict=True):
        crops = [source[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
        assert any(torch.equal(picture, crop) for crop in crops)


def test_augment_mirrors_about_half_and_is_seeded():
    images = torch.randint(0, 256, (400, 3, 32, 32), dtype=torch.uint8)
    out = augment(images, torch.Generator().manual_seed(0), shift=0)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert ((out == images).flatten(1).all(1) | mirrored).all()
    assert 150 < mirrored.sum() < 250
    assert torch.equal(out, augment(images, torch.Generator().manual_seed(0), shift=0))
    assert not torch.equal(
        augment(images, torch.Generator().manual_seed(1)), augment(images, torch.Generator().manual_seed(2))
    )


def test_every_picture_has_its_own_shift():
    images = torch.arange(32 * 32).remainder(251).to(torch.uint8).view(1, 1, 32, 32).expand(64, 3, 32, 32)
    out = augment(images, torch.Generator().manual_seed(0), mirror=False)
    assert len({picture.numpy().tobytes() for picture in out}) > 30


def test_one_square_of_every_picture_is_hidden_and_nothing_else():
    images = torch.rand(300, 3, 12, 10)
    hidden = holes(images, torch.Generator().manual_seed(0), 4)
    assert hidden.shape == (300, 1, 12, 10)
    for gone in hidden[:, 0]:
        rows, columns = gone.any(1), gone.any(0)
        assert torch.equal(gone, rows[:, None] & columns)
        for line in (rows, columns):
            places = line.nonzero().flatten()
            assert (
                2 <= len(places) <= 4
            )  # all of the square, or at least the half that does not hang over the border
            assert places[-1] - places[0] + 1 == len(places)
    # how often each pixel is hidden: 4 x 4 of 12 x 10 places, less at the border
    middles = hidden[:, 0].float().mean(0)
    assert middles[4:8, 4:6].mean() == pytest.approx(16 / 120, abs=0.03)
    assert torch.equal(hidden, holes(images, torch.Generator().manual_seed(0), 4))
    assert not torch.equal(hidden, holes(images, torch.Generator().manual_seed(1), 4))
    assert not holes(images, torch.Generator(), 0).any()


def test_batches_hide_a_square_of_each_picture(digits):
    plain, hidden = (
        next(batches(digits.train, 64, generator=torch.Generator().manual_seed(1), hole=size))
        for size in (0, 9)
    )
    generator = torch.Generator().manual_seed(1)
    torch.randperm(len(digits.train), generator=generator)  # the order is drawn first
    assert torch.equal(hidden[0], plain[0].masked_fill(holes(plain[0], generator, 9), 0))
    assert torch.equal(hidden[1], plain[1])
    assert hidden[0].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(hidden[0], plain[0])


def test_batches_in_order_and_shuffled(digits):
    images, labels = zip(*batches(digits.validation, 64), strict=True)
    assert torch.equal(torch.cat(labels), digits.validation.labels)
    assert torch.equal(torch.cat(images), normalize(digits.validation.images, digits))
    assert images[0].is_contiguous(memory_format=torch.channels_last)
    shuffled = [
        labels for _, labels in batches(digits.validation, 64, generator=torch.Generator().manual_seed(0))
    ]
    assert [len(one) for one in shuffled] == [64, 64, 64]
    assert not torch.equal(torch.cat(shuffled), digits.validation.labels[:192])


def test_shares_of_two_processes_make_up_the_batch(digits):
    whole, first, second = (
        list(
            batches(
                digits.train, 64, generator=torch.Generator().manual_seed(1), augmented=True, hole=8, **share
            )
        )
        for share in ({}, {"rank": 0, "world": 2}, {"rank": 1, "world": 2})
    )
    for (images, _), (even, _), (odd, _) in zip(whole, first, second, strict=True):
        assert torch.equal(images[0::2], even)
        assert torch.equal(images[1::2], odd)
        assert even.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "arguments", [{"name": "mnist"}, {"name": 3}, {"train_limit": 0}, {"train_limit": 10**9}, {"seed": -1}]
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        load_data(**{"name": "digits", **arguments})


@pytest.fixture
def copy_of_cifar10(tmp_path, cifar10):
    from tests.conftest import CIFAR10

    shutil.copytree(CIFAR10 / CIFAR10_FOLDER, tmp_path / CIFAR10_FOLDER)
    return tmp_path


def test_a_missing_batch_file_is_named(copy_of_cifar10):
    (copy_of_cifar10 / CIFAR10_FOLDER / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3 is missing.*Way out: delete the folder"):
        load_data("cifar10", root=copy_of_cifar10)


def test_a_truncated_or_altered_batch_file_is_named(copy_of_cifar10):
    path = copy_of_cifar10 / CIFAR10_FOLDER / "test_batch"
    content = bytearray(path.read_bytes())
    content[5_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"test_batch .*altered.*Way out"):
        load_data("auto", root=copy_of_cifar10)
    path.write_bytes(content[:1000])
    with pytest.raises(DataError, match=r"test_batch \(1,000 bytes\) is truncated"):
        load_data("cifar10", root=copy_of_cifar10)


def test_unreachable_cifar10_falls_back_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "CIFAR10_URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    assert load_data("auto", root=tmp_path).name == "digits"
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(DataError, match=r"CIFAR10_ROOT.*load_data\(\"digits\"\)"):
        load_data("cifar10", root=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["host", "name look-up"])
def test_a_silent_host_is_given_up_after_the_limit(place, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PATIENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(data, "CIFAR10_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        if place == "name look-up":
            monkeypatch.setattr(data.urllib.request, "urlopen", lambda *_, **__: time.sleep(3))
        begun = time.monotonic()
        with pytest.raises(DataError, match="could not be fetched"):
            load_data("cifar10", root=tmp_path)
    assert time.monotonic() - begun < 2


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        load_data("cifar10", root=tmp_path / "file")
