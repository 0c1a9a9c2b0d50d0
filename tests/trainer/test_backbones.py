from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch import nn

from tests.trainer.tiny import tiny_recipe
from trainer.backbones import CifarResNet32, ResidualBlock, SmallCnn, TimmBackbone, create_backbone
from trainer.config import BackboneConfig
from trainer.errors import TrainerError
from trainer.model import LongTailClassifier


def create(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(BackboneConfig(name=name)).eval()


@pytest.fixture(scope="module")
def resnet32() -> nn.Module:
    return create("resnet32_cifar")


def test_the_cifar_resnet_maps_to_128_features_averaged_over_an_8_by_8_map(resnet32: nn.Module) -> None:
    features, feature_map = resnet32(torch.rand(2, 3, 32, 32))
    assert isinstance(resnet32, CifarResNet32)
    assert (features.shape, feature_map.shape, resnet32.num_features) == ((2, 128), (2, 128, 8, 8), 128)
    assert torch.allclose(features, feature_map.mean(dim=(2, 3)), atol=1e-6)


def test_the_cifar_resnet_has_the_structure_of_bbn(resnet32: nn.Module) -> None:
    blocks = [module for module in resnet32.modules() if isinstance(module, ResidualBlock)]
    assert [block.conv1.out_channels for block in blocks] == [16] * 5 + [32] * 5 + [64] * 4 + [64] * 2
    assert [block.stride for block in blocks] == [1] * 5 + [2] + [1] * 4 + [2] + [1] * 5
    convolutions = [module for module in resnet32.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 1 + 2 * 16
    assert all(conv.kernel_size == (3, 3) and conv.bias is None for conv in convolutions), "shortcuts hold no weight"


def test_the_cifar_resnet_has_as_many_parameters_as_its_structure_says(resnet32: nn.Module) -> None:
    def block(inner: int, outer: int) -> int:
        return 9 * inner * outer + 9 * outer * outer + 4 * outer  # two convolutions, two normalisations

    expected = 9 * 3 * 16 + 2 * 16
    expected += 5 * block(16, 16)
    expected += block(16, 32) + 4 * block(32, 32)
    expected += block(32, 64) + 3 * block(64, 64)
    expected += 2 * block(64, 64)
    assert sum(parameter.numel() for parameter in resnet32.parameters()) == expected == 537_488


def test_the_last_two_blocks_look_at_the_same_input(resnet32: nn.Module) -> None:
    assert isinstance(resnet32, CifarResNet32)
    images = torch.rand(1, 3, 32, 32)
    before = resnet32.stages(resnet32.stem(images))
    expected = torch.cat((resnet32.left(before), resnet32.right(before)), dim=1)
    assert torch.equal(resnet32(images)[1], expected)


def test_convolutions_begin_by_kaiming(resnet32: nn.Module) -> None:
    wide = [module for module in resnet32.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 64]
    for conv in wide:
        assert float(conv.weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)


def test_a_shortcut_takes_every_other_pixel_and_pads_channels_on_both_sides_with_zeros() -> None:
    block = ResidualBlock(2, 4, 2).eval()
    nn.init.zeros_(block.norm2.weight)
    x = torch.rand(1, 2, 4, 4)
    y = block(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, (0, 3)].any()


def test_the_small_cnn_keeps_the_size_of_small_pictures() -> None:
    backbone = create("small_cnn")
    features, feature_map = backbone(torch.rand(2, 3, 8, 8))
    assert isinstance(backbone, SmallCnn)
    assert (features.shape, feature_map.shape) == ((2, 64), (2, 64, 8, 8))


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_efficientnet", "test_convnext", "test_mambaout", "test_coatnet", "test_vit", "test_vit3"],
)
def test_a_timm_model_gives_as_many_features_as_it_says_and_their_map(name: str) -> None:
    backbone = create(name)
    with torch.inference_mode():
        features, feature_map = backbone(torch.rand(2, 3, 160, 160))
    assert features.shape == (2, backbone.num_features)
    assert feature_map.ndim == 4
    assert len(feature_map) == 2


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050"])
def test_features_are_those_that_timms_own_classifier_would_see(name: str) -> None:
    backbone = create(name)
    assert isinstance(backbone, TimmBackbone)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        features, feature_map = backbone(images)
        assert torch.allclose(features, backbone.model(images), atol=1e-6)
    assert feature_map.shape[2:] == (2, 2)


def test_the_tokens_of_a_vision_transformer_become_a_map_without_the_class_token() -> None:
    backbone = create("test_vit")
    _, feature_map = backbone(torch.rand(1, 3, 160, 160))
    assert feature_map.shape == (1, 64, 100, 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "resnet9999",
            "'resnet9999' is neither of resnet32_cifar, small_cnn nor a timm model; similar in timm: .*resnet",
        ),
        ("[", r"'\[' is neither of"),
        ("1234", "'1234' is neither of"),
        ("RESNET50", "'RESNET50' is neither of"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_are_like_it(name: str, said: str) -> None:
    with pytest.raises(TrainerError, match=f"backbone.name: {said}"):
        create(name)


def test_pretrained_weights_that_do_not_exist_are_refused() -> None:
    with pytest.raises(TrainerError, match=r"small_cnn has no pretrained weights; set backbone.pretrained=false"):
        create_backbone(BackboneConfig(name="small_cnn", pretrained=True))


def test_pretrained_weights_that_cannot_be_fetched_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TrainerError, match=r"backbone 'test_resnet': its weights could not be loaded .*pretrained=fal"):
        create_backbone(BackboneConfig(name="test_resnet", pretrained=True))


def test_slices_that_do_not_divide_the_features_are_refused_by_the_recipes_key() -> None:
    with pytest.raises(TrainerError, match=r"head.num_heads: must divide the 64 features of small_cnn, got 3"):
        LongTailClassifier(tiny_recipe("head.num_heads=3"), 10)


def test_the_classifier_normalises_pixels_before_the_backbone() -> None:
    torch.manual_seed(0)
    recipe = tiny_recipe("input.mean=[0.1, 0.2, 0.3]", "input.std=[0.5, 0.25, 2]")
    model = LongTailClassifier(recipe, 10).eval()
    pixels = torch.rand(2, 3, 8, 8)
    by_hand = torch.stack([(pixels[:, c] - m) / s for c, (m, s) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2)])], 1)
    expected = model.backbone(by_hand)[0]
    logits, features = model(pixels)
    assert torch.allclose(features, expected, atol=1e-6)
    assert torch.equal(logits, model.head(features))
