"""What a running service finds in whole splits, beside what PyTorch finds: their AP must be one.

As a command it sends each picture's own file to ``POST /predict`` at each alpha:

    python -m tests.end_to_end.http_detections RUN http://127.0.0.1:8000 --split train --alpha 0 --alpha 1.5

``--data`` names the folder of the data where it has moved. The status is 1 where an AP differs by more than 0.002.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from tests import plain_http
from trainer.detection.checkpoints import finished_detection_checkpoint
from trainer.detection.data import DetectionSplit, DetectionSplits, ground_truth, load_detection_splits
from trainer.detection.detecting import as_results, detect_split
from trainer.detection.evaluate import KINDS
from trainer.detection.precision import MEASURES, Precision
from trainer.detection.runs import restore_detector, with_source

TOLERANCE = 0.002
MOST = 300
"""Detections of a picture that count by LVIS's rules."""
MEDIA_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
Result = dict[str, Any]


def predict_split(url: str, split: DetectionSplit, alpha: float) -> list[Result]:
    """Ask a service for every picture of a split, and read its answers as the evaluation takes them."""
    results: list[Result] = []
    with plain_http.Client(base_url=url, timeout=120) as client:
        most = min(MOST, client.get("/model").json()["detection"]["max_detections"])
        options = {"alpha": alpha, "score_threshold": 0, "top_k": most}
        for row in range(len(split)):
            file = split.file(row)
            headers = {"Content-Type": MEDIA_TYPES[file.suffix.lower()]}
            response = client.post("/predict", params=options, content=file.read_bytes(), headers=headers)
            assert response.status_code == 200, response.text
            (image,) = response.json()["images"]
            picture = split.picture(row)
            assert (image["width"], image["height"]) == (picture.width, picture.height)
            results += [_result(one, split, picture.id) for one in image["detections"]]
    return results


def _result(detection: dict[str, Any], split: DetectionSplit, image: int) -> Result:
    x1, y1, x2, y2 = detection["box"]
    category = split.packed.categories[detection["index"]]
    assert detection["label"] == category.name
    return {
        "image_id": image,
        "category_id": category.id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": detection["score"],
        "segmentation": detection["mask"],
    }


def precision_of(splits: DetectionSplits, split: DetectionSplit) -> Precision:
    """Make what measures a split."""
    truth = ground_truth(split, splits.shot_groups)
    return Precision(truth, splits.shot_groups, is_federated=split.packed.is_federated)


def largest_gap(own: dict[str, float | None], theirs: dict[str, float | None]) -> float:
    """Compare measures; one that only one side has is a gap of 1."""
    gaps = []
    for name in MEASURES:
        pair = (own[name], theirs[name])
        known = [value for value in pair if value is not None]
        gaps.append(abs(known[0] - known[1]) if len(known) == 2 else float(len(known)))
    return max(gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a service's AP with PyTorch's.")
    parser.add_argument("run", type=Path)
    parser.add_argument("url")
    parser.add_argument("--data")
    parser.add_argument("--split", choices=["test", "train"], default="test")
    parser.add_argument("--alpha", type=float, action="append", required=True)
    arguments = parser.parse_args()
    checkpoint, device = finished_detection_checkpoint(arguments.run), torch.device("cpu")
    recipe = with_source(checkpoint.recipe, arguments.data)
    splits = load_detection_splits(recipe.data)
    split = splits.train if arguments.split == "train" else splits.test
    found = detect_split(restore_detector(checkpoint, device), split, recipe, arguments.alpha, device)
    worst = 0.0
    for alpha, its in zip(arguments.alpha, found, strict=True):
        began = time.monotonic()
        answers = predict_split(arguments.url, split, alpha)
        seconds = time.monotonic() - began
        own = as_results(its, split)
        print(
            f"alpha {alpha:g}: {len(split)} {split.name} pictures, {len(answers)} detections through HTTP in", end=" "
        )
        print(f"{seconds:.1f} s, {len(own)} in PyTorch")
        for kind in KINDS:
            pair = [precision_of(splits, split).measure(results, kind) for results in (own, answers)]
            gap = largest_gap(*pair)
            worst = max(worst, gap)
            for name, values in zip(("PyTorch", "HTTP"), pair, strict=True):
                numbers = (f"{key} {'-' if value is None else f'{100 * value:.2f}'}" for key, value in values.items())
                print(f"  {kind:4} {name:8}", "  ".join(numbers))
            print(f"  {kind:4} largest difference {gap:.2g} ({TOLERANCE:g} is allowed)")
    raise SystemExit(int(worst > TOLERANCE))


if __name__ == "__main__":
    main()
