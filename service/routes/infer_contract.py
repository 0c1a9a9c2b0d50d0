"""What goes into the model that is served and what comes out, as the Open Inference Protocol describes tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from service.bundle import InputSpec
from service.detection_predictor import DetectionPredictor
from service.predictor import Predictor
from service.tensors import Shape

IDENTIFIER: Final = "prediction_id"
"""The output that names each prediction for `/feedback`; who names outputs and leaves it out is not kept."""
SIZES: Final = "image_size"
"""The input that says how much of each image is picture: height and width."""


class Tensor(NamedTuple):
    """A tensor's type, and its shape for one picture, -1 where it is free."""

    datatype: str
    row: Shape


@dataclass(frozen=True)
class InferContract:
    """The tensors of one model.

    Attributes:
        inputs: what a request may hold; `image` it must.
        knobs: those inputs that may also be parameters of the whole request.
        outputs: what may be asked for.
        ranked: the outputs with one number per class, which can be had as a ranking.
        on_request: outputs that are only sent if a request names them: they are large.
    """

    spec: InputSpec
    inputs: Mapping[str, Tensor]
    knobs: tuple[str, ...]
    outputs: Mapping[str, Tensor]
    ranked: tuple[str, ...]
    on_request: tuple[str, ...]


def contract_of(predictor: Predictor | DetectionPredictor) -> InferContract:
    """Return the tensors of the model that is served."""
    return _detectors(predictor) if isinstance(predictor, DetectionPredictor) else _classifiers(predictor)


def _image(spec: InputSpec) -> dict[str, Tensor]:
    return {"image": Tensor("UINT8", (spec.height, spec.width, 3)), "alpha": Tensor("FP32", ())}


def _classifiers(predictor: Predictor) -> InferContract:
    manifest, feature_map = predictor.model.manifest, predictor.model.feature_map_shape
    ranked = ("logits", "factual_logits", "counterfactual_logits")
    outputs = dict.fromkeys(ranked, Tensor("FP32", (len(manifest.classes),)))
    outputs["confounder_cosine"] = Tensor("FP32", (manifest.tde.num_heads,))
    outputs[IDENTIFIER] = Tensor("BYTES", (1,))
    if feature_map is not None:
        outputs["feature_map"] = Tensor("FP32", feature_map)
    return InferContract(
        spec=manifest.input,
        inputs=_image(manifest.input) | {"prior_strength": Tensor("FP32", ())},
        knobs=("alpha", "prior_strength"),
        outputs=outputs,
        ranked=ranked,
        on_request=("feature_map",),
    )


def _detectors(predictor: DetectionPredictor) -> InferContract:
    spec, detection = predictor.model.manifest.input, predictor.detection
    rows, side = detection.max_detections, detection.mask_size
    return InferContract(
        spec=spec,
        inputs=_image(spec) | {SIZES: Tensor("FP32", (2,))},
        knobs=("alpha",),
        outputs={
            "boxes": Tensor("FP32", (rows, 4)),
            "scores": Tensor("FP32", (rows,)),
            "labels": Tensor("INT64", (rows,)),
            "masks": Tensor("FP32", (rows, side, side)),
            "count": Tensor("INT64", ()),
        },
        ranked=(),
        on_request=("masks",),
    )
