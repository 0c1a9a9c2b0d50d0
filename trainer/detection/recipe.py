"""A detector's recipe: its data, pixels, augmentation and schedule. What the network is, ``config`` says."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.config import BaseRecipe, Positive, Section
from trainer.detection.config import DetectorConfig

Side = Annotated[int, Field(ge=1, le=8192)]


class AnnotatedPictures(Section):
    """One split: a file in the JSON form of LVIS v1 or COCO, and the folder of its pictures."""

    annotations: str = Field(min_length=1, description="the JSON file, relative to data.source")
    pictures: str = Field(
        ".", min_length=1, description="folder of the pictures, relative to data.source; file_name begins there"
    )


class DetectionData(Section):
    """Where annotated pictures come from, and what becomes of those with faults."""

    source: str = Field(min_length=1, description="the folder that all else is relative to")
    train: AnnotatedPictures
    test: AnnotatedPictures
    cache: str | None = Field(
        None, min_length=1, description="folder of the packed annotations; null: evenkeel's in the user's cache folder"
    )
    faults: Literal["skip", "refuse"] = Field(
        "skip",
        description="what becomes of missing, damaged or other pictures, degenerate boxes, empty masks; they are named",
    )
    repeat_threshold: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="t of repeat-factor sampling (LVIS: 0.001): pictures of rarer classes come repeatedly"
    )
    num_workers: int = Field(4, ge=0, le=1024)


class DetectionAugment(Section):
    """Training transforms."""

    horizontal_flip: bool = False
    shortest_sides: tuple[Side, ...] = Field(
        (), description="a picture's shorter side is drawn of these; none: it is scaled as in serving"
    )
    longest_side: Side = Field(1333, description="with shortest_sides: the longer side is at most so long")
    smallest_object: Positive = Field(1.0, description="objects with a shorter side in pixels are left out")


class DetectionRecipe(BaseRecipe):
    """A detector's recipe; a classifier's is ``trainer.config.Recipe``."""

    task: Literal["detection"]
    data: DetectionData
    augment: DetectionAugment = DetectionAugment()
    detector: DetectorConfig = DetectorConfig()
    gradient_norm: Positive | None = Field(None, description="gradients with a larger norm are shortened to it")
    alpha_steps: int = Field(13, ge=2, le=1001, description="alphas over the range at which evaluate measures AP")

    @model_validator(mode="after")
    def _parts_belong(self) -> Self:
        if self.input.resize != "longest_side":
            raise ValueError(f"input.resize must be longest_side for task=detection, got {self.input.resize!r}")
        if self.alpha.choose != "recipe":
            raise ValueError(
                f"alpha.choose must be recipe for task=detection, got {self.alpha.choose!r}; set alpha.value as well"
            )
        for key in ("sharpness_rho", "backbone_learning_rate"):
            if value := getattr(self.optimizer, key):
                raise ValueError(f"optimizer.{key}={value} is for task=classification; leave it out")
        return self
