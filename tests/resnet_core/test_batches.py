"""Batches: every image once, in an order and with an augmentation that follow from seed and epoch alone."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core import ConfigError, DataConfig, Dataset, OptimConfig, RunSpec
from resnet_core.data.batches import Batches, crop_and_flip
from resnet_core.data.datasets import Split

CPU = torch.device("cpu")


def numbered(train: int = 70, test: int = 50, size: int = 5) -> Dataset:
    """Random images whose label is their place in the data set."""
    random = np.random.default_rng(0)

    def split(count: int) -> Split:
        return Split(random.integers(0, 256, (count, 3, size, size)).astype(np.uint8), np.arange(count))

    return Dataset("numbered", ("a", "b"), split(train), split(test), "1", (120.0, 125.0, 130.0), (50.0, 60.0, 70.0))


def make(dataset: Dataset, *, rank: int = 0, world_size: int = 1, seed: int = 0, batch: int = 32, **data: Any) -> Batches:
    optim = OptimConfig(global_batch_size=batch)
    spec = RunSpec(data=DataConfig(name="synthetic", **data), optim=optim, seed=seed, world_size=world_size)
    return Batches(dataset, spec, device=CPU, rank=rank)


def order(batches: Batches, epoch: int = 0) -> list[int]:
    return [int(label) for _, labels in batches.train_epoch(epoch) for label in labels]


def normalized(split: Any) -> Tensor:
    assert isinstance(split, Split)
    pixels = (split.images - np.array([120, 125, 130]).reshape(3, 1, 1)) / np.array([50, 60, 70]).reshape(3, 1, 1)
    return torch.from_numpy(pixels.astype(np.float32))


def test_an_epoch_has_every_image_once_up_to_a_rest_that_changes() -> None:
    batches = make(numbered(train=70))
    epochs = [order(batches, epoch) for epoch in range(5)]
    assert batches.steps_per_epoch == 2
    assert all(len(seen) == len(set(seen)) == 64 for seen in epochs)
    assert set().union(*epochs) == set(range(70))
    assert len({frozenset(seen) for seen in epochs}) > 1


def test_the_order_follows_from_seed_and_epoch() -> None:
    data = numbered()
    orders = {(seed, epoch): order(make(data, seed=seed), epoch) for seed in (0, 1, 2**32, 2**64) for epoch in (0, 1)}
    assert len({tuple(seen) for seen in orders.values()}) == len(orders)
    assert order(make(data, seed=1), 1) == orders[1, 1]


def test_an_epoch_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    order(make(numbered()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("size", "pad"), [(4, 1), (5, 2), (8, 4), (3, 0), (1, 1)])
def test_crop_and_flip_is_the_loop_over_images(size: int, pad: int) -> None:
    generator = torch.Generator().manual_seed(0)
    padded = torch.randn(64, 3, size + 2 * pad, size + 2 * pad, generator=generator)
    offsets = torch.randint(2 * pad + 1, (2, 64), generator=generator)
    flips = torch.rand(64, generator=generator) < 0.5
    expected = []
    for image, row, column, flip in zip(padded, *offsets.tolist(), flips, strict=True):
        square = image[:, row : row + size, column : column + size]
        expected.append(square.flip(2) if flip else square)
    assert torch.equal(crop_and_flip(padded, offsets, flips, size), torch.stack(expected))


@pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (1, False), (2, True)])
def test_training_images_are_crops_of_the_padded_image_each_equally_likely(pad: int, flip: bool) -> None:
    data = numbered(train=4000, size=3)
    (batch,) = make(data, batch=4000, pad=pad, flip=flip).train_epoch(0)
    padded = F.pad(normalized(data.train)[batch[1]], (pad,) * 4)  # by the mean
    corners = itertools.product((padded, padded.flip(3)) if flip else (padded,), range(2 * pad + 1), range(2 * pad + 1))
    crops = (image[:, :, row : row + 3, column : column + 3] for image, row, column in corners)
    counts = [int(torch.isclose(crop, batch[0]).all((1, 2, 3)).sum()) for crop in crops]
    assert sum(counts) == pytest.approx(4000, abs=20), "some crops look alike"
    np.testing.assert_allclose(counts, 4000 / len(counts), rtol=0.35)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shares_of_all_workers_make_the_global_batches(world_size: int) -> None:
    data = numbered()
    shares = zip(*(make(data, rank=rank, world_size=world_size).train_epoch(3) for rank in range(world_size)), strict=True)
    for (images, labels), parts in zip(make(data).train_epoch(3), shares, strict=True):
        assert {len(part[1]) for part in parts} == {32 // world_size}
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


@pytest.mark.parametrize(("images", "world_size"), [(50, 1), (50, 3), (50, 4), (1100, 1), (1025, 2), (3, 4)])
def test_all_workers_together_see_every_test_image_once_and_as_it_is(images: int, world_size: int) -> None:
    data = numbered(test=images)
    found = [batch for rank in range(world_size) for batch in make(data, rank=rank, world_size=world_size, batch=12).test()]
    assert all(0 < len(labels) <= 512 for _, labels in found)
    labels = torch.cat([labels for _, labels in found])
    assert sorted(labels.tolist()) == list(range(images))
    torch.testing.assert_close(torch.cat([batch for batch, _ in found]), normalized(data.test)[labels])


@pytest.mark.parametrize(("channels_last", "memory_format"), [(True, torch.channels_last), (False, torch.contiguous_format)])
def test_batches_have_the_memory_layout_of_the_spec(channels_last: bool, memory_format: torch.memory_format) -> None:
    spec = RunSpec(optim=OptimConfig(global_batch_size=32), channels_last=channels_last)
    batches = Batches(numbered(), spec, device=CPU)
    assert all(x.is_contiguous(memory_format=memory_format) for x, _ in (*batches.train_epoch(0), *batches.test()))


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_mean_image_of_the_training_images_is_subtracted_and_borders_stay_zero(world_size: int) -> None:
    data = numbered()
    assert isinstance(data.train, Split)
    assert isinstance(data.test, Split)
    mean, std = data.train.images.astype(np.float64).mean(0), np.array(data.std).reshape(3, 1, 1)
    batches = make(data, world_size=world_size, normalize="pixel", pad=5, flip=False)
    images, labels = next(batches.test())
    np.testing.assert_allclose(images, (data.test.images[labels] - mean) / std, atol=1e-5)
    images, labels = next(batches.train_epoch(0))
    padded = F.pad(torch.from_numpy((data.train.images[labels] - mean) / std), (5,) * 4)
    crops = padded.float().unfold(2, 5, 1).unfold(3, 5, 1)  # (N, C, row, column, 5, 5)
    assert torch.isclose(crops, images[:, :, None, None], atol=1e-5).all((1, 4, 5)).any((1, 2)).all()


@pytest.mark.parametrize("world_size", [1, 3])
def test_ten_crops_are_corners_and_centre_of_the_padded_image_and_their_mirror_images(world_size: int) -> None:
    data, seen = numbered(), []
    for rank in range(world_size):
        for views, labels in make(data, rank=rank, world_size=world_size, batch=12, pad=2).views("ten_crop"):
            padded = F.pad(normalized(data.test), (2,) * 4)[labels]
            found = list(views)
            assert len(found) == 10
            for i, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]):
                expected = padded[:, :, row : row + 5, column : column + 5]
                torch.testing.assert_close(found[2 * i], expected)
                torch.testing.assert_close(found[2 * i + 1], expected.flip(3))
            seen += labels.tolist()
    assert sorted(seen) == list(range(50))


def test_images_in_memory_cannot_be_seen_at_several_scales() -> None:
    with pytest.raises(ConfigError, match=r"^data\.extra_tests=multi_scale: accepted for images in memory: ten_crop$"):
        next(make(numbered()).views("multi_scale"))


def test_training_never_waits_for_images_in_memory() -> None:
    batches = make(numbered())
    order(batches)
    assert batches.wait_seconds == 0.0
