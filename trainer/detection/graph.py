"""The graph that is served: a picture, its size and alpha in; boxes, scores, labels, masks and their count out."""

from torch import Tensor, nn

from trainer.detection.network import CascadeMaskRCNN

INPUTS = ("image", "image_size", "alpha")
OUTPUTS = ("boxes", "scores", "labels", "masks", "count")


class DetectionGraph(nn.Module):
    """The bundle's contract of detection as a module, for one picture of fixed size.

    Its result is padded to the largest number of detections, as no shape in it may depend on the picture.

    Args:
        model: the trained detector.
    """

    def __init__(self, model: CascadeMaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, image_size: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
        """Map uint8 image [1, H, W, 3], image_size [1, 2] and alpha [1] to the outputs that ``OUTPUTS`` names."""
        branches = self.model.branches_of(self.model.maps(image), image_size[0])
        return tuple(part.unsqueeze(0) for part in self.model.answer(branches, alpha[0]))
