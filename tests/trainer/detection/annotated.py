"""Annotated pictures made in milliseconds: squares of a colour that tells their class, in LVIS's form of JSON."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.config import read_recipe
from trainer.detection.recipe import DetectionRecipe

Document = dict[str, Any]
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SIDE = 48


def square(number: int, image: int, category: int, place: tuple[int, int, int]) -> Document:
    """An annotation of a square, placed by its left, its top and its side."""
    x, y, side = place
    ring = [x, y, x + side, y, x + side, y + side, x, y + side]
    box = {"bbox": [x, y, side, side], "area": side * side, "segmentation": [ring]}
    return {"id": number, "image_id": image, "category_id": category, **box}


def document(pictures: int = 4) -> Document:
    """Pictures with two squares each; class 30 is in the first one alone. Ids begin with neither 0 nor 1."""
    images: list[Document] = []
    annotations: list[Document] = []
    for place in range(pictures):
        number = 100 - place
        classes = [10, 30 if place == 0 else 20]
        absent = sorted({10, 20, 30} - set(classes))
        lists = {"neg_category_ids": absent, "not_exhaustive_category_ids": []}
        size = {"height": SIDE, "width": SIDE if place % 2 else SIDE + 16}
        images.append({"id": number, "file_name": f"{number}.png", **size, **lists})
        corners = ((4 + place, 6, 16), (24, 24 - place, 18))
        for category, corner in zip(classes, corners, strict=True):
            annotations.append(square(7 + 2 * len(annotations), number, category, corner))
    names = ((30, "blue", "r"), (10, "red", "f"), (20, "green", "c"))
    categories = [{"id": number, "name": name, "frequency": frequency} for number, name, frequency in names]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(folder: Path, content: Document, name: str = "train.json") -> Path:
    """Write the JSON and the pictures that it speaks of."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(json.dumps(content))
    for image in content["images"]:
        pixels = np.full((image["height"], image["width"], 3), 90, dtype=np.uint8)
        for one in document(len(content["images"]))["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, side, _ = one["bbox"]
                pixels[y : y + side, x : x + side] = COLORS[one["category_id"] // 10 - 1]
        Image.fromarray(pixels).save(folder / image["file_name"])
    return file


def changed(**annotation: Any) -> Document:
    """The document with the first annotation changed; None takes a key away."""
    content = deepcopy(document())
    content["annotations"][0] |= annotation
    content["annotations"][0] = {key: value for key, value in content["annotations"][0].items() if value is not None}
    return content


def tiny_recipe(folder: Path, *settings: str) -> DetectionRecipe:
    """A network of a few thousand weights on 64 pixels, for two epochs."""
    recipe = read_recipe(
        "coco_tail_mini",
        [
            f"data={{source: {folder}, train: {{annotations: train.json}}, test: {{annotations: train.json}}}}",
            f"data.cache={folder}/cache",
            "data.num_workers=0",
            "input.height=64",
            "input.width=64",
            "batch_size=2",
            "precision=fp32",
            "detector.backbone.channels=8",
            "detector.cascade={features: 16, sampled: 8}",
            "detector.mask={stages: 1, channels: [8], pool_size: 4}",
            "detector.detections.max_detections=20",
            "schedule={epochs: 2}",
            "alpha_steps=2",
            *settings,
        ],
    )
    assert isinstance(recipe, DetectionRecipe)
    return recipe
