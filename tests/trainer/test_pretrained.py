import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.trainer.tiny import tiny_recipe
from trainer.backbones import create_backbone
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.config import BackboneConfig
from trainer.errors import TrainerError
from trainer.model import LongTailClassifier
from trainer.pretrained import check_normalisation, load_weights, warn_of_seen_pictures

SPEC = tiny_recipe().input


def timm_state(name: str = "test_resnet") -> dict[str, Tensor]:
    torch.manual_seed(7)
    state: dict[str, Tensor] = timm.create_model(name, num_classes=10).state_dict()
    return state


def fill(weights: Path, name: str = "test_resnet") -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = BackboneConfig(name=name, weights=str(weights))
    backbone = create_backbone(config)
    load_weights(backbone, config, SPEC)
    state: dict[str, Tensor] = backbone.state_dict()
    return state


def test_a_finished_run_gives_its_backbone_and_the_classifier_begins_anew(finished_run: Path) -> None:
    trained = load_checkpoint(finished_run).model
    for weights in (finished_run, finished_run / "checkpoint.safetensors"):
        torch.manual_seed(1)
        model = LongTailClassifier(tiny_recipe(f"backbone.weights={weights}"), 10)
        for name, tensor in model.backbone.state_dict().items():
            assert torch.equal(tensor, trained[f"backbone.{name}"]), name
        assert not torch.equal(model.head.weight, trained["head.weight"])


def test_a_file_of_a_timm_model_fits_without_its_classifier(tmp_path: Path) -> None:
    state = timm_state()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    torch.save(state, tmp_path / "plain.pt")
    for file in ("weights.safetensors", "w.pth", "plain.pt"):
        filled = fill(tmp_path / file)
        assert filled.keys() == {f"model.{key}" for key in state if not key.startswith("fc.")}
        assert all(torch.equal(value, state[key.removeprefix("model.")]) for key, value in filled.items())


def test_pictures_that_the_weights_know_are_told_where_some_are_held_out(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tiny_recipe("data.validation_share=0.3", f"backbone.weights={finished_run}")
    warn_of_seen_pictures(held_out)
    assert "that are held out now" in capsys.readouterr().err
    before = load_checkpoint(finished_run)
    before.recipe = tiny_recipe("data.validation_share=0.3")
    save_checkpoint(before, tmp_path)
    for recipe in (
        tiny_recipe("data.validation_share=0.3", f"backbone.weights={tmp_path}"),
        tiny_recipe(f"backbone.weights={finished_run}"),
        tiny_recipe("data.validation_share=0.3", f"backbone.weights={finished_run}", source="elsewhere"),
        tiny_recipe("data.validation_share=0.3"),
    ):
        warn_of_seen_pictures(recipe)
    assert capsys.readouterr().err == ""


def test_every_key_that_does_not_fit_is_named(tmp_path: Path) -> None:
    state = timm_state()
    first, second, third = list(state)[:3]
    state["surplus"] = state.pop(first)
    state[second] = torch.zeros(3, 3)
    state[third] = torch.full_like(state[third], torch.nan)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(TrainerError) as refused:
        fill(tmp_path / "w.safetensors")
    said = str(refused.value)
    assert "do not fit test_resnet (4 faults)" in said
    for fault in (
        f"missing: model.{first}",
        "unexpected: surplus",
        f"shape: {second} is [3, 3]",
        f"value: {third} holds",
    ):
        assert fault in said


def test_what_is_no_plain_number_and_what_is_there_twice_is_named(tmp_path: Path) -> None:
    state = timm_state()
    first, second, third = list(state)[:3]
    state[first] = torch.empty_like(state[first], device="meta")
    state[second] = state[second].to(torch.complex64)
    state[f"model.{third}"] = state[third]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(TrainerError) as refused:
        fill(tmp_path / "w.pt")
    said = str(refused.value)
    for fault in (
        "(3 faults)",
        f"kind: {first} is on the meta device",
        f"kind: {second} is of torch.complex64",
        f"twice: model.{third} and {third} are both model.{third}",
    ):
        assert fault in said
    torch.save({"a": torch.ones(1), "module.a": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(TrainerError, match=r"w\.pt: holds both 'a' and 'module\.a'"):
        fill(tmp_path / "w.pt")


def test_weights_of_another_network_are_refused(finished_run: Path) -> None:
    with pytest.raises(TrainerError, match=r"do not fit test_resnet \(\d+ faults\)(.|\n)*set backbone.name"):
        fill(finished_run)


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code was run",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"state_dict": Malicious()}))
    with pytest.raises(TrainerError, match=r"w.pt: is (refused|not a readable torch file)"):
        fill(tmp_path / "w.pt")
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("w.pt", None, "backbone.weights .*w.pt: is not there; name a weights file"),
        ("w.pt", b"no weights", r"w.pt: is (refused|not a readable torch file)"),
        ("w.safetensors", b"no weights", "cannot be read"),
        ("run", None, "is not there"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainerError, match=said):
        fill(tmp_path / name)


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1), "b": 3}}, tmp_path / "w.pt")
    with pytest.raises(TrainerError, match=r"must hold tensors by name, got b$"):
        fill(tmp_path / "w.pt")


def test_pixels_must_be_normalised_as_the_runs_were(finished_run: Path) -> None:
    recipe = tiny_recipe(f"backbone.weights={finished_run}", "input.mean=[0.5, 0.5, 0.5]")
    with pytest.raises(
        TrainerError, match=r"trained with input.mean \[0.306.* got \[0.5, 0.5, 0.5\]; --set 'input.mean"
    ):
        LongTailClassifier(recipe, 10)


def test_and_as_timms_weights_were() -> None:
    backbone = create_backbone(BackboneConfig(name="resnet18"))
    with pytest.raises(TrainerError, match=r"timm's weights were trained with input.mean \[0.485, 0.456, 0.406\], got"):
        check_normalisation(backbone, SPEC)
    places = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    check_normalisation(backbone, SPEC.model_copy(update=places))


def test_a_checkpoint_that_follows_needs_no_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe(f"backbone.weights={tmp_path}/gone")
    assert LongTailClassifier(recipe, 10, fetch_weights=False).backbone.num_features == 64
