"""Pooling, sampling, anchors and the backbone's weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model
from torchvision.ops import FrozenBatchNorm2d

from trainer.config import read_recipe
from trainer.detection import backbone
from trainer.detection.backbone import STRIDES, Pyramid
from trainer.detection.config import ProposalConfig, PyramidConfig
from trainer.detection.pooling import _pool_everywhere, pool_regions, region_levels
from trainer.detection.proposals import Anchors
from trainer.detection.recipe import DetectionRecipe
from trainer.detection.sampling import sample_regions
from trainer.detection.types import Targets
from trainer.errors import TrainerError


def test_regions_are_pooled_alike_from_one_level_and_from_all() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 512 // stride, 512 // stride, generator=generator) for stride in STRIDES]
    corner = torch.rand(40, 2, generator=generator) * 100
    side = torch.rand(40, 2, generator=generator) ** 2 * 400 + 4
    regions = torch.cat((torch.arange(40)[:, None] % 2, corner, corner + side), dim=1)
    levels = region_levels(regions[:, 1:])
    assert set(levels.tolist()) == {0, 1, 2, 3} or set(levels.tolist()) == {0, 1, 2}
    assert torch.equal(pool_regions(maps, regions, 7), _pool_everywhere(maps, regions, levels, 7))


def test_no_region_at_all_is_pooled_to_nothing() -> None:
    maps = [torch.randn(1, 3, 64 // stride, 64 // stride) for stride in STRIDES]
    assert pool_regions(maps, torch.zeros(0, 5), 7).shape == (0, 3, 7, 7)


def test_anchors_lie_at_their_levels_stride_whatever_the_size() -> None:
    maps = [torch.zeros(1, 1, -(-100 // stride), -(-70 // stride)) for stride in STRIDES]
    for stride, anchors in zip(STRIDES, Anchors(ProposalConfig(anchor_ratios=(1.0,))).of_levels(maps), strict=True):
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        assert set(centres[:, 0].tolist()) == {float(stride * column) for column in range(-(-70 // stride))}
        assert (anchors[:, 2] - anchors[:, 0] == 8 * stride).all()


def sampled(iou: float) -> tuple[list[int], list[int]]:
    """Labels and targets of three proposals and a target's own box."""
    proposals = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 17], [50, 50, 60, 60]])
    targets = Targets(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([4]), torch.ones(1, 64, 64, dtype=torch.bool))
    regions = sample_regions([proposals], (targets,), iou=iou, count=8, positive_share=1, background=9)
    order = regions.regions[:, 4].argsort(stable=True)
    return regions.labels[order].tolist(), regions.target[order].tolist()


def test_a_region_belongs_to_a_target_from_the_stages_overlap_on() -> None:
    assert sampled(0.5) == ([4, 4, 4, 9], [0, 0, 0, -1])
    assert sampled(0.6) == ([4, 4, 9, 9], [0, 0, -1, -1])


def _norms(model: nn.Module) -> set[type[nn.Module]]:
    kinds = (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm2d)
    return {type(one) for one in model.modules() if isinstance(one, kinds)}


def test_without_weights_norms_are_trained_and_with_them_they_are_frozen(tmp_path: Path) -> None:
    fresh = Pyramid(PyramidConfig(name="resnet18", channels=16))
    assert _norms(fresh) == {nn.GroupNorm}
    weights = get_model("resnet18").state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    config = PyramidConfig(name="resnet18", channels=16, weights=str(tmp_path / "weights.safetensors"))
    loaded = Pyramid(config)
    assert _norms(loaded) == {FrozenBatchNorm2d}
    body = loaded.maps.body
    assert torch.equal(body["layer3"][0].conv1.weight, weights["layer3.0.conv1.weight"])
    assert not body["conv1"].weight.requires_grad
    assert body["layer2"][0].conv1.weight.requires_grad


def test_weights_of_another_network_are_refused_key_by_key(tmp_path: Path) -> None:
    save_file(get_model("resnet18").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(TrainerError, match=r"^detector\.backbone\.weights .*: do not fit resnet34"):
        Pyramid(PyramidConfig(name="resnet34", weights=str(tmp_path / "weights.safetensors")))
    (tmp_path / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainerError, match=r"^detector\.backbone\.weights .*weights.safetensors: cannot be read"):
        Pyramid(PyramidConfig(name="resnet34", weights=str(tmp_path / "weights.safetensors")))


def test_the_remedy_for_weights_that_cannot_be_fetched_is_one_that_the_recipe_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(backbone, "get_model", no_network)
    with pytest.raises(
        TrainerError, match=r"no network.*detector.backbone.pretrained=false, and detector.backbone.weight"
    ):
        backbone._hub_weights("resnet50")
    settings = ["detector.backbone.pretrained=false", f"detector.backbone.weights={tmp_path}"]
    recipe = read_recipe("lvis_v1", settings)
    assert isinstance(recipe, DetectionRecipe)
    assert recipe.detector.backbone.weights == str(tmp_path)
