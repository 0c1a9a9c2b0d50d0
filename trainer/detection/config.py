"""What a recipe may say about detection. It knows no data and no network."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.config import HeadConfig, Positive, Section, Share, UpToOne

Count = Annotated[int, Field(ge=1, le=2**20)]
Overlap = Annotated[float, Field(gt=0, le=1)]

DetectorBackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d"]


class PyramidConfig(Section):
    """The backbone, where its weights come from, and the feature pyramid on top of it (strides 4 to 64)."""

    name: DetectorBackboneName = "resnet50"
    pretrained: bool = Field(False, description="fetch torchvision's ImageNet weights from its hub")
    weights: str | None = Field(
        None, min_length=1, description="ImageNet weights from a safetensors or torch file in torchvision's layout"
    )
    trainable_layers: int = Field(
        3, ge=0, le=5, description="of pretrained weights, counted from the last; without any, all are trained"
    )
    channels: int = Field(256, ge=8, le=2**12, multiple_of=8, description="of each level of the pyramid")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.pretrained and self.weights:
            raise ValueError(f"pretrained=true and weights={self.weights!r} are two sources of weights; give one")
        return self

    def has_weights(self) -> bool:
        """Tell whether the backbone starts from weights: then its normalisation is frozen."""
        return self.pretrained or self.weights is not None


class ProposalConfig(Section):
    """The region proposal network: anchors, how many proposals are kept, and what it is trained on."""

    anchor_scale: Positive = Field(8, description="side of the square anchor, in strides of its level")
    anchor_ratios: tuple[Positive, ...] = Field((0.5, 1.0, 2.0), min_length=1, description="height / width")
    training_before_nms: Count = Field(2000, description="best anchors of each level")
    training_after_nms: Count = Field(2000, description="proposals of a picture")
    before_nms: Count = Field(1000, description="in inference: best anchors of each level")
    after_nms: Count = Field(1000, description="in inference: proposals of a picture")
    nms_iou: Overlap = 0.7
    foreground_iou: Overlap = 0.7
    background_iou: Overlap = 0.3
    sampled: Count = Field(256, description="anchors of a picture in the loss")
    positive_share: UpToOne = 0.5


class CascadeConfig(Section):
    """The stages, each trained on the boxes that the one before it made."""

    ious: tuple[Overlap, ...] = Field((0.5, 0.6, 0.7), min_length=1, description="foreground from this overlap on")
    loss_weights: tuple[Positive, ...] = Field(
        (1.0, 0.5, 0.25), min_length=1, description="of the stages, and of as many mask heads, each from the first on"
    )
    sampled: Count = Field(512, description="regions of a picture in the loss of a stage")
    positive_share: UpToOne = 0.25
    pool_size: Count = 7
    features: Count = Field(1024, description="D, the size of the features that are classified")

    @model_validator(mode="after")
    def _a_weight_for_each_stage(self) -> Self:
        if len(self.ious) != len(self.loss_weights):
            raise ValueError(
                f"loss_weights must have one number for each of ious, got {len(self.loss_weights)} for "
                f"{len(self.ious)} stages"
            )
        return self


class MaskConfig(Section):
    """The mask heads: one for each of the last stages, averaged in inference."""

    stages: int = Field(3, ge=1, le=16, description="how many of the last stages have one")
    channels: tuple[Count, ...] = Field((256, 256, 256, 256), min_length=1, description="of its convolutions")
    pool_size: int = Field(14, ge=1, le=128, description="half the side of a mask")


class DetectionsConfig(Section):
    """Which of the scored boxes are detections."""

    max_detections: int = Field(300, ge=1, le=2000, description="of a picture")
    score_threshold: Share = Field(1e-4, description="what is returned scores above it")
    nms_iou: Overlap = 0.5
    mask_threshold: float = Field(
        0.5, gt=0, lt=1, description="probability from which on a pixel belongs to the object"
    )


class DetectorConfig(Section):
    """Cascade Mask R-CNN whose stages classify by the head that ``trainer.classifiers`` offers."""

    backbone: PyramidConfig = PyramidConfig()
    head: HeadConfig = HeadConfig()
    proposals: ProposalConfig = ProposalConfig()
    cascade: CascadeConfig = CascadeConfig()
    mask: MaskConfig = MaskConfig()
    detections: DetectionsConfig = DetectionsConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.cascade.features % self.head.num_heads:
            raise ValueError(
                f"head.num_heads must divide cascade.features {self.cascade.features}, got {self.head.num_heads}"
            )
        if self.mask.stages > len(self.cascade.ious):
            raise ValueError(
                f"mask.stages must be at most the cascade's {len(self.cascade.ious)}, got {self.mask.stages}"
            )
        return self
