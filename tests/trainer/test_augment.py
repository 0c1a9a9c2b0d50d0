import pytest
import torch
from PIL import Image

from service.bundle import InputSpec
from tests.trainer.tiny import pixels
from trainer.augment import batch_augmentation, sample_augmentation, to_unit_range
from trainer.config import AugmentConfig

SPEC = InputSpec(height=8, width=8, resize="exact", mean=(0, 0, 0), std=(1, 1, 1))
BATCH = torch.stack([torch.from_numpy(pixels(seed)).permute(2, 0, 1) for seed in range(16)])
EVERYTHING = AugmentConfig(crop_padding=2, random_resized_crop=True, horizontal_flip=True, color_jitter=0.4)


def test_nothing_switched_on_changes_nothing() -> None:
    plain = to_unit_range(BATCH)
    assert torch.equal(batch_augmentation(AugmentConfig(), SPEC)(plain), plain)
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
