"""The recipes of large data sets, on small trees of made pictures in the form that their lists are published in."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.test_main import Command, command  # noqa: F401 - a fixture
from trainer.checkpoint import load_checkpoint

CLASSES = 4
SMALLER = (
    "backbone={name: test_resnet}",  # timm's smallest, in place of deeper or pretrained ones
    "input.height=32",
    "input.width=32",
    "input.resize_size=36",
    "batch_size=8",
    "data.num_workers=0",
    "schedule={epochs: 1, decay: cosine}",
)

# How the lists name pictures: training, validation, test; None where there is no such list.
IMAGENET, PLACES = "train/n0144{label}/n0144{label}_{number}.JPEG", "data_256/a/airfield {label}/0000{number}.jpg"
SPECIES = "train_val2018/Aves/{label}/cbf1{number}.jpg"
LAYOUTS = {
    "imagenet_lt": ("ImageNet_LT", (IMAGENET, IMAGENET, "val/ILSVRC2012_val_0000{label}{number}.JPEG")),
    "places_lt": ("Places_LT", (PLACES, PLACES, "val_256/Places365_val_0000{label}{number}.jpg")),
    "inaturalist2018": ("iNaturalist18", (SPECIES, None, SPECIES)),
}


def write_tree(folder: Path, prefix: str, layout: tuple[str | None, ...]) -> None:
    """Pictures of several sizes and forms, most of class 0, and lists of ``path label`` lines."""
    tested = "test" if layout[1] else "val"  # iNaturalist is tested on its validation list
    for name, form, each in zip(("train", "val", tested), layout, ((7, 4, 2, 1), (1,) * 4, (2,) * 4), strict=True):
        if form is None:
            continue
        lines = []
        for label, count in enumerate(each):
            for number in range(count):
                path = form.format(label=label, number=f"{name}{number}")
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                size = (40 + 5 * label, 50 - 3 * number)
                colours = np.random.default_rng(label).integers(0, 256, (*size, 3), dtype=np.uint8)
                image = Image.fromarray(colours)
                (image.convert("L") if number == 1 else image).save(folder / path, "JPEG")
                lines.append(f"{path} {label}\n")
        (folder / f"{prefix}_{name}.txt").write_text("".join(lines))


@pytest.mark.parametrize("recipe", LAYOUTS)
def test_a_recipe_trains_on_its_published_lists_and_is_evaluated(
    tmp_path: Path,
    command: Command,  # noqa: F811 - the fixture
    recipe: str,
) -> None:
    write_tree(tmp_path / "data", *LAYOUTS[recipe])
    settings = [part for setting in SMALLER for part in ("--set", setting)]
    run = tmp_path / "run"
    status, said = command("train", recipe, "--data", tmp_path / "data", "--output", run, "--device", "cpu", *settings)
    assert status == 0, said
    checkpoint = load_checkpoint(run)
    assert checkpoint.class_counts == [7, 4, 2, 1]
    assert len(checkpoint.history[0].losses) == 2  # 14 pictures by 8
    assert checkpoint.recipe.head.momentum_decay == "coupled"
    assert checkpoint.model["head.momentum_direction"].any()
    report = json.loads((run / "evaluation.json").read_text())
    assert report["test_images"] == 8
    assert report["directions"]["ema"]["alpha"] == 3.0
