"""What a batch is put together from."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.predictor import Predictor, Work
from service.scoring import Branches, Knobs
from tests.service.fakes import FakeModel

Pictures = Sequence[NDArray[np.uint8]]
SHAPE = (4, 8, 8, 3)


class Watched(FakeModel):
    """Remembers the batch that it was run with."""

    def branches(self, images: NDArray[np.uint8]) -> Branches:
        self.images = images
        return super().branches(images)


def received() -> NDArray[np.uint8]:
    """Return pictures as the binary tensors of a request hold them."""
    pixels = np.random.default_rng(0).integers(0, 50, SHAPE, dtype=np.uint8).tobytes()
    return np.frombuffer(memoryview(b"{}" + pixels)[2:], np.uint8).reshape(SHAPE)


@pytest.mark.parametrize(
    ("chosen", "copied"),
    [
        (list, False),
        (lambda pictures: list(pictures[::-1]), True),
        (lambda pictures: list(pictures[:2]), True),
        (lambda pictures: [pictures[0]] * 4, True),
        (lambda pictures: [*pictures[:2], *received()[2:]], True),
        (lambda pictures: [picture.copy() for picture in pictures], True),
    ],
    ids=["whole", "turned round", "a part", "one again and again", "of two requests", "each by itself"],
)
def test_a_batch_is_what_was_sent_and_is_copied_only_where_it_must(
    chosen: Callable[[NDArray[np.uint8]], Pictures], copied: bool
) -> None:
    model, pictures = Watched(), received()
    predictor, batch = Predictor(model), chosen(pictures)
    works: list[Any] = [Work(predictor, pixels, Knobs(1.0)) for pixels in batch]
    predictor.run(works)
    np.testing.assert_array_equal(model.images, np.stack(batch))
    assert np.shares_memory(model.images, pictures) is not copied
