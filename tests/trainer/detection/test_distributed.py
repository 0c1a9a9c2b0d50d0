import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.trainer import torchrun
from tests.trainer.detection import in_two_processes
from tests.trainer.detection.annotated import COLORS, document, square, tiny_recipe
from tests.trainer.detection.in_two_processes import epochs
from trainer.detection import batches
from trainer.detection.data import load_detection_splits
from trainer.detection.training import DetectorTraining
from trainer.errors import TrainerError

PLACES = ((4, 6, 16), (24, 24, 18))


def write_alike(folder: Path) -> None:
    """Four pictures with squares at the same places, in other colours: parts of a batch have as much foreground."""
    content = document()
    content["annotations"] = []
    for number, image in enumerate(content["images"]):
        image |= {"width": 48, "neg_category_ids": []}
        pixels = np.full((48, 48, 3), 90 + 10 * number, dtype=np.uint8)
        for place, (x, y, side) in enumerate(PLACES):
            label = (number + place) % 3
            content["annotations"].append(square(1 + 2 * number + place, image["id"], 10 * (label + 1), PLACES[place]))
            pixels[y : y + side, x : x + side] = COLORS[label]
        Image.fromarray(pixels).save(folder / image["file_name"])
    (folder / "train.json").write_text(json.dumps(content))


def test_two_processes_take_the_steps_that_one_takes_with_the_whole_batch(tmp_path: Path) -> None:
    write_alike(tmp_path)
    one = epochs(tmp_path)
    with torchrun.running(Path(in_two_processes.__file__), tmp_path, tmp_path / "two.safetensors") as launcher:
        assert launcher.wait(timeout=120) == 0
    two = load_file(tmp_path / "two.safetensors")
    assert one["losses"].diff().abs().min() > 1e-3, "steps differ, so that they can be told apart"
    assert torch.allclose(two["losses"], one["losses"], rtol=1e-4)
    for name in ("directions", "moved"):
        assert torch.allclose(two[name], one[name], rtol=1e-3, atol=1e-4), name
    assert float(two["directions_apart"]) == 0
    assert float(two["moved_apart"]) == 0


def test_fewer_pictures_than_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_alike(tmp_path)
    recipe = tiny_recipe(tmp_path)
    training = DetectorTraining(recipe, load_detection_splits(recipe.data), torch.device("cpu"))
    monkeypatch.setattr(batches, "world_size", lambda: 5)
    with pytest.raises(
        TrainerError, match=r"data.train: has 4 pictures, which are no batch for 5 processes; start fewer"
    ):
        training._epoch(0)
