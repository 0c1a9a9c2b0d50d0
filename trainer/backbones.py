"""Images to features: timm's models by name, the CIFAR ResNet-32 of BBN and a small CNN for tiny pictures.

A backbone maps normalised images [N, 3, H, W] to pooled features [N, D] and the feature map [N, D, h, w] that they
are pooled from, and says D as ``num_features``. It knows nothing of classes.
"""

from itertools import pairwise

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import BackboneConfig
from trainer.errors import TrainerError


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, H / stride, W / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.padding == 0:
            return x
        before = self.padding // 2
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.padding - before))


class CifarResNet32(nn.Module):
    """ResNet-32 for 32x32 pictures as BBN (Zhou et al., CVPR 2020) uses it.

    A 3x3 stem to 16 channels; stages of 5 blocks at 16, 5 at 32 and 4 at 64 channels; then two 64-channel blocks side
    by side on the same input, concatenated to 128 features and averaged over the picture.
    """

    num_features = 128

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.Sequential(
            *_stage(16, 16, blocks=5, stride=1),
            *_stage(16, 32, blocks=5, stride=2),
            *_stage(32, 64, blocks=4, stride=2),
        )
        self.left, self.right = ResidualBlock(64, 64, 1), ResidualBlock(64, 64, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, 3, 32, 32] to features [N, 128] and feature map [N, 128, 8, 8]."""
        x = self.stages(self.stem(images))
        return _average(torch.cat((self.left(x), self.right(x)), dim=1))


def _stage(in_channels: int, channels: int, *, blocks: int, stride: int) -> list[nn.Module]:
    rest = (ResidualBlock(channels, channels, 1) for _ in range(blocks - 1))
    return [ResidualBlock(in_channels, channels, stride), *rest]


class SmallCnn(nn.Module):
    """Three convolutions for pictures of a few pixels, such as 8x8 digits."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 64)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, 3, H, W] to features [N, 64] and feature map [N, 64, H, W]."""
        return _average(self.layers(images))


class TimmBackbone(nn.Module):
    """Any model of timm without its classifier; features are pooled as the model itself pools them."""

    num_features: int

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        self.model = timm.create_model(name, pretrained=pretrained, num_classes=0)
        self.num_features = getattr(self.model, "head_hidden_size", self.model.num_features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, 3, H, W] to features [N, D] and feature map [N, D', h, w] (D' = D but for models with a neck)."""
        feature_map = self.model.forward_features(images)
        return self.model.forward_head(feature_map, pre_logits=True), self._channels_first(feature_map)

    def _channels_first(self, feature_map: Tensor) -> Tensor:
        if feature_map.ndim == 3:  # tokens [N, T, D] of a transformer: class and register tokens first
            patches = feature_map[:, getattr(self.model, "num_prefix_tokens", 0) :]
            return patches.transpose(1, 2).unsqueeze(-1)
        is_channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return feature_map.permute(0, 3, 1, 2) if is_channels_last else feature_map


Backbone = CifarResNet32 | SmallCnn | TimmBackbone

OWN_BACKBONES: dict[str, type[CifarResNet32 | SmallCnn]] = {"resnet32_cifar": CifarResNet32, "small_cnn": SmallCnn}


def create_backbone(config: BackboneConfig) -> Backbone:
    """Make the backbone that the recipe names.

    Raises:
        TrainerError: a name that neither evenkeel nor timm knows, or pretrained weights that cannot be had.
    """
    if config.name in OWN_BACKBONES:
        if config.pretrained:
            raise TrainerError(
                f"backbone.pretrained: {config.name} has no pretrained weights; set backbone.pretrained=false"
            )
        return OWN_BACKBONES[config.name]()
    if not timm.is_model(config.name):
        raise TrainerError(_unknown_backbone(config.name))
    try:
        return TimmBackbone(config.name, pretrained=config.pretrained)
    except (OSError, RuntimeError) as error:
        raise TrainerError(
            f"backbone {config.name!r}: its weights could not be loaded ({error}); "
            "check the network, set backbone.weights to a file in its place, or set backbone.pretrained=false"
        ) from error


def _unknown_backbone(name: str) -> str:
    stem = name.split(".", maxsplit=1)[0].rstrip("0123456789")
    similar = timm.list_models(f"*{stem}*")[:5] if stem else []
    hint = f"; similar in timm: {', '.join(similar)}" if similar else ""
    return f"backbone.name: {name!r} is neither of {', '.join(OWN_BACKBONES)} nor a timm model{hint}"


def _average(feature_map: Tensor) -> tuple[Tensor, Tensor]:
    return feature_map.mean(dim=(2, 3)), feature_map
