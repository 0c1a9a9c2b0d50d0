import pickle

import kornia.augmentation as kornia
import pytest
import torch
from PIL import Image

from service.bundle import InputSpec
from tests.trainer.tiny import pixels
from trainer.augment import (
    batch_augmentation,
    crop_and_flip,
    cutout,
    policy_augmentation,
    sample_augmentation,
    to_unit_range,
)
from trainer.config import AugmentConfig
from trainer.pixels import to_pixels

SPEC = InputSpec(height=8, width=8, resize="exact", mean=(0, 0, 0), std=(1, 1, 1))
BATCH = torch.stack([torch.from_numpy(pixels(seed)).permute(2, 0, 1) for seed in range(16)])
EVERYTHING = AugmentConfig(
    crop_padding=2, random_resized_crop=True, horizontal_flip=True, color_jitter=0.4, policy="auto", cutout=3
)


def test_nothing_switched_on_changes_nothing() -> None:
    plain = to_unit_range(BATCH)
    assert torch.equal(batch_augmentation(AugmentConfig(), SPEC)(plain), plain)
    assert policy_augmentation(AugmentConfig(), SPEC)(BATCH) is BATCH
    image = Image.fromarray(pixels(0))
    assert torch.equal(sample_augmentation(AugmentConfig(), SPEC)(image), BATCH[0])


def test_the_unit_range_is_exact_at_its_ends() -> None:
    assert to_unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


def crops(image: torch.Tensor, padding: int) -> list[torch.Tensor]:
    padded = torch.nn.functional.pad(image, [padding] * 4)
    steps = range(2 * padding + 1)
    return [padded[:, top : top + 8, left : left + 8] for top in steps for left in steps]


def test_a_padded_crop_is_a_window_of_the_picture_on_black() -> None:
    torch.manual_seed(0)
    plain = to_unit_range(BATCH)
    changed = batch_augmentation(AugmentConfig(crop_padding=2), SPEC)(plain)
    found = [
        next(place for place, crop in enumerate(crops(before, 2)) if torch.allclose(after, crop, atol=1e-6))
        for before, after in zip(plain, changed, strict=True)
    ]
    assert len(set(found)) > 4, "each picture draws its own crop"
    one = sample_augmentation(AugmentConfig(crop_padding=2), SPEC)(Image.fromarray(pixels(0)))
    assert any(torch.equal(one, crop) for crop in crops(BATCH[0], 2))


def test_a_flip_mirrors_about_half_of_the_pictures() -> None:
    torch.manual_seed(0)
    plain = to_unit_range(BATCH)
    changed = batch_augmentation(AugmentConfig(horizontal_flip=True), SPEC)(plain)
    flipped = [torch.allclose(after, before.flip(-1)) for before, after in zip(plain, changed, strict=True)]
    kept = [torch.allclose(after, before) for before, after in zip(plain, changed, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 2 < sum(flipped) < 14


@pytest.mark.parametrize(("padding", "flip"), [(2, False), (0, True), (3, True)])
def test_crops_and_flips_are_drawn_and_made_as_kornia_does_one_by_one(padding: int, flip: bool) -> None:
    plain = to_unit_range(BATCH)
    crop = kornia.RandomCrop((8, 8), padding=padding, cropping_mode="slice")
    theirs = torch.nn.Sequential(*[crop] * (padding > 0), *[kornia.RandomHorizontalFlip()] * flip)
    results = []
    for change in (theirs, lambda pixels: crop_and_flip(pixels, padding, flip=flip)):
        torch.manual_seed(4)
        results.append((change(plain), torch.rand(())))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1], "what is drawn next stays too"


def test_colours_change_within_the_unit_range_and_differ_between_pictures() -> None:
    torch.manual_seed(0)
    plain = to_unit_range(BATCH[:1]).repeat(4, 1, 1, 1)
    changed = batch_augmentation(AugmentConfig(color_jitter=0.4), SPEC)(plain)
    assert changed.shape == plain.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert not torch.allclose(changed[0], changed[1])


@pytest.mark.parametrize("size", [(40, 30), (9, 200), (3, 3)])
def test_one_picture_of_any_size_becomes_the_models_pixels(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    transform = sample_augmentation(EVERYTHING, SPEC)
    changed = transform(Image.fromarray(pixels(1, *size)))
    assert (changed.shape, changed.dtype) == ((3, 8, 8), torch.uint8)
    assert not torch.equal(changed, transform(Image.fromarray(pixels(1, *size))))


@pytest.mark.parametrize("crop", ["after_resize", "with_resize"])
@pytest.mark.parametrize("size", [(16, 64), (40, 9), (8, 8)])
def test_where_no_crop_is_drawn_training_sees_what_evaluation_and_serving_see(crop: str, size: tuple[int, int]) -> None:
    spec = InputSpec(
        height=8, width=8, resize="shortest_side", resize_size=10, crop=crop, mean=(0, 0, 0), std=(1, 1, 1)
    )
    image = Image.fromarray(pixels(1, *size))
    seen = sample_augmentation(AugmentConfig(), spec)(image)
    assert torch.equal(seen, torch.from_numpy(to_pixels(image, spec).copy()).permute(2, 0, 1))


def test_cutout_puts_one_square_of_the_mean_colour_on_each_picture() -> None:
    torch.manual_seed(0)
    fill = torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1)
    pictures = torch.rand(400, 3, 8, 10)
    hidden = (cutout(pictures, 4, fill) == fill).all(dim=1)
    areas = hidden.sum(dim=(1, 2))
    assert areas.max() == 16, "the whole square"
    assert areas.min() == 4, "its middle on a corner: a quarter"
    rows, columns = hidden.any(dim=2).sum(dim=1), hidden.any(dim=1).sum(dim=1)
    assert torch.equal(rows * columns, areas), "one rectangle"
    assert hidden.any(dim=0).all(), "anywhere"
    assert torch.equal(cutout(pictures, 0, fill), pictures)


@pytest.mark.parametrize("white", [1, 255])
def test_batches_and_single_pictures_get_the_same_colour(white: int) -> None:
    spec = SPEC.model_copy(update={"mean": (0.2, 0.4, 0.6)})
    config = AugmentConfig(cutout=16)  # covers all of 8x8 pixels, wherever its middle is
    colour = torch.tensor([0.2, 0.4, 0.6])
    if white == 1:
        changed = batch_augmentation(config, spec)(to_unit_range(BATCH))
    else:
        changed = sample_augmentation(config, spec)(Image.fromarray(pixels(0))).unsqueeze(0)
        colour = (255 * colour).to(torch.uint8)
    assert all((one == colour.view(3, 1, 1)).all() for one in changed)


def test_a_transform_can_be_sent_to_a_worker_process() -> None:
    transform = pickle.loads(pickle.dumps(sample_augmentation(EVERYTHING, SPEC)))
    results = []
    for one in (transform, sample_augmentation(EVERYTHING, SPEC)):
        torch.manual_seed(5)
        results.append(one(Image.fromarray(pixels(0, 20, 20))))
    assert torch.equal(*results)
