"""The bodies of requests to a detector and of its answers, as pydantic models; used as those of `service.schemas`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas import ClassReference, ModelReference, Number
from service.settings import MOST_IMAGES


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class DetectionImage(_Closed):
    """A picture in a JSON request to a detector, with its own alpha where it differs from the request's."""

    data: str = Field(strict=True, description="the picture's file in base64 (RFC 4648, with padding)")
    alpha: Number | None = Field(None, description="this picture's alpha; else the request's, else the model's")


class DetectRequest(_Closed):
    """A JSON request to a detector. Options may stand here or in the query string, each in one place."""

    images: list[DetectionImage] = Field(min_length=1, max_length=MOST_IMAGES)
    alpha: Number | None = None
    score_threshold: Number | None = None
    top_k: Annotated[int, Field(strict=True)] | None = None
    masks: Annotated[bool, Field(strict=True)] | None = None


class Mask(_Closed):
    """The pixels of an object in COCO's run-length encoding, over the whole picture."""

    size: tuple[int, int] = Field(description="height and width of the picture")
    counts: str = Field(description="lengths of runs of zeros and ones, column by column, packed as COCO's API does")


class Detection(ClassReference):
    """An object: where it is, what it is, and how sure."""

    box: tuple[float, float, float, float] = Field(
        description="x1, y1, x2, y2 in the picture's own pixels, from its top left, upright"
    )
    score: float = Field(description="its probability at the alpha used: background-exempted, mean over the stages")
    mask: Mask | None = Field(None, description="its pixels; missing where masks=false")


class DetectionAnswer(_Closed):
    """What is said of one picture."""

    alpha: float = Field(description="the alpha used")
    alpha_source: Literal["request", "client", "model"] = Field(description="who chose it")
    width: int = Field(description="of the picture in pixels, upright, as is height")
    height: int
    detections: list[Detection] = Field(description="the best first")


class DetectResponse(_Closed):
    """A detector's answer in any form: one entry per picture, in the request's order."""

    model: ModelReference
    images: list[DetectionAnswer]
