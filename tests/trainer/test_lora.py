import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainer.tiny import tiny_recipe
from trainer.backbones import create_backbone
from trainer.checkpoint import load_checkpoint
from trainer.config import BackboneConfig, LoraConfig, Recipe
from trainer.errors import TrainerError
from trainer.export import export_run
from trainer.lora import add_lora, chosen_layers, merge_lora
from trainer.model import LongTailClassifier
from trainer.runs import restore_model, train_run

CPU = torch.device("cpu")


def lora_recipe(weights: Path) -> Recipe:
    return tiny_recipe(f"backbone.weights={weights}", "backbone.lora={rank: 2, lora_alpha: 4}")


@pytest.fixture(scope="module")
def lora_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "run"
    train_run(lora_recipe(finished_run), folder, device_name="cpu", resume=False)
    return folder


def test_training_begins_at_the_pretrained_features_and_changes_low_rank_parts_alone(
    finished_run: Path, lora_run: Path
) -> None:
    plain = load_checkpoint(finished_run)
    model = LongTailClassifier(lora_recipe(finished_run), 10).eval()
    pixels = torch.rand(3, 3, 8, 8)
    expected = restore_model(plain, CPU).features(pixels)[0]
    assert torch.allclose(model.features(pixels)[0], expected, atol=1e-5)
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    after = load_checkpoint(lora_run).model
    for name, tensor in after.items():
        if "base_layer" in name:
            assert torch.equal(tensor, plain.model[name.replace("base_layer.", "")]), name
    assert any(tensor.any() for name, tensor in after.items() if "lora_B" in name)


def test_a_finished_run_has_them_merged_and_says_the_same(lora_run: Path) -> None:
    checkpoint = load_checkpoint(lora_run)
    apart = LongTailClassifier(checkpoint.recipe, 10, fetch_weights=False)
    apart.load_state_dict(checkpoint.model)
    merged = restore_model(checkpoint, CPU)
    assert not any("lora" in name or "base_layer" in name for name in merged.state_dict())
    pixels = torch.rand(4, 3, 8, 8)
    assert torch.allclose(apart.eval()(pixels)[0], merged(pixels)[0], atol=1e-4)


def test_the_bundle_knows_nothing_of_them(lora_run: Path, tmp_path: Path) -> None:
    export_run(lora_run, tmp_path / "bundle", direction="ema", fp16=False)
    assert b"lora" not in (tmp_path / "bundle" / "model.onnx").read_bytes()


def test_its_backbone_serves_another_run_merged(lora_run: Path) -> None:
    model = LongTailClassifier(tiny_recipe(f"backbone.weights={lora_run}"), 10)
    expected = restore_model(load_checkpoint(lora_run), CPU).backbone.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.backbone.state_dict().items())


def test_linear_layers_are_chosen_and_convolutions_where_there_are_none() -> None:
    vit = create_backbone(BackboneConfig(name="test_vit"))
    names = chosen_layers(vit, None)
    assert names
    assert all(isinstance(vit.get_submodule(name), nn.Linear) for name in names)
    assert chosen_layers(vit, r"blocks\.0.*qkv$") == ["model.blocks.0.attn.qkv"]
    assert chosen_layers(create_backbone(BackboneConfig(name="small_cnn")), None) == [f"layers.{n}.0" for n in range(3)]


def test_only_the_chosen_layer_is_changed_though_another_ends_like_it() -> None:
    backbone = create_backbone(BackboneConfig(name="test_resnet"))
    add_lora(backbone, LoraConfig(rank=1, layers=r"^model\.layer1\.0\.conv1$"))
    assert {name.split(".lora_")[0] for name, _ in backbone.named_parameters() if "lora_" in name} == {
        "model.layer1.0.conv1"
    }
    merge_lora(backbone)
    assert backbone.state_dict().keys() == create_backbone(BackboneConfig(name="test_resnet")).state_dict().keys()


@pytest.mark.parametrize(
    ("layers", "said"),
    [("[", "'\\[' is no regular expression"), ("attn", "'attn' fits no layer; there are layers.0.0")],
)
def test_layers_that_cannot_be_chosen_are_refused(layers: str, said: str) -> None:
    with pytest.raises(TrainerError, match=f"backbone.lora.layers: {said}"):
        add_lora(create_backbone(BackboneConfig(name="small_cnn")), LoraConfig(layers=layers))


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TrainerError, match=r"backbone.lora: needs peft, .* pip install 'evenkeel\[lora\]'"):
        add_lora(create_backbone(BackboneConfig(name="small_cnn")), LoraConfig())
