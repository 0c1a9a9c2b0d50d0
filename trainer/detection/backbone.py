"""Pictures to a pyramid of feature maps: torchvision's residual networks with a feature pyramid on top.

Batches of detectors are small, two pictures or so on each device, so batch normalisation has no good statistics to
train with. Weights that come trained keep theirs for good (``FrozenBatchNorm2d``); without such weights frozen
statistics would normalise nothing, so there every norm is a ``GroupNorm``, which looks at one picture alone (Wu and He,
ECCV 2018; He, Girshick and Dollár, *Rethinking ImageNet Pre-training*, ICCV 2019). It knows nothing of boxes.
"""

import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from trainer.detection.config import PyramidConfig
from trainer.errors import TrainerError
from trainer.matching import key_faults
from trainer.pretrained import read_weights

STRIDES = (4, 8, 16, 32, 64)
"""Input pixels to a step, of each level."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.Module:
    """Make a group normalisation of 32 groups, or of as many as divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def norm_of(config: PyramidConfig) -> Norm | None:
    """Choose the norm of all that is trained from nothing: none beside a frozen backbone, else by groups."""
    return None if config.has_weights() else group_norm


class Pyramid(nn.Module):
    """Normalised pictures [N, 3, H, W] to feature maps [N, channels, H / stride, W / stride], one for each stride.

    Args:
        config: backbone, weights and channels.
        fetch_weights: load the weights that the recipe asks for; not needed where a checkpoint follows.

    Raises:
        TrainerError: weights that cannot be had or do not fit.
    """

    def __init__(self, config: PyramidConfig, *, fetch_weights: bool = True) -> None:
        super().__init__()
        body = get_model(
            config.name, weights=None, norm_layer=FrozenBatchNorm2d if config.has_weights() else group_norm
        )
        if config.has_weights():
            if fetch_weights:
                _load(body, config)
            _freeze(body, config.trainable_layers)
        widths = [body.inplanes // 8 * 2**level for level in range(4)]
        self.maps = BackboneWithFPN(
            body,
            {f"layer{level + 1}": str(level) for level in range(4)},
            widths,
            config.channels,
            norm_layer=norm_of(config),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of all levels, the finest first."""
        return list(self.maps(images).values())


def _load(body: nn.Module, config: PyramidConfig) -> None:
    if config.pretrained:
        weights = _hub_weights(config.name)
    else:
        weights = read_weights(Path(str(config.weights)), "detector.backbone.weights")
    found = {
        key: (key, value)
        for key, value in weights.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    wanted = {key: value for key, value in body.state_dict().items() if not key.startswith("fc.")}
    if faults := key_faults(wanted, found):
        listed = "\n  ".join(faults)
        raise TrainerError(
            f"detector.backbone.weights {config.weights}: do not fit {config.name} ({len(faults)} faults):"
            f"\n  {listed}\n"
            "set detector.backbone.name to the network that they were trained with"
        )
    body.load_state_dict({key: value for key, (_, value) in found.items()}, strict=False)


def _hub_weights(name: str) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = get_model(name, weights="IMAGENET1K_V1").state_dict()
    except (OSError, RuntimeError) as error:
        raise TrainerError(
            f"detector.backbone {name!r}: its weights could not be loaded ({error}); check the network, set "
            "detector.backbone.pretrained=false, and detector.backbone.weights to a file in their place if there is one"
        ) from error
    return weights


def _freeze(body: nn.Module, trainable_layers: int) -> None:
    """Leave only the last layers trainable; the norms are frozen by themselves."""
    trained = ("layer4", "layer3", "layer2", "layer1", "conv1")[:trainable_layers]
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
