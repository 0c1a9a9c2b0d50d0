import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.test_matching import STRANGE
from tests.trainer.tiny import tiny_recipe
from trainer.checkpoint import CHECKPOINT_FILE, finished_checkpoint
from trainer.config import Recipe, load_recipe
from trainer.errors import TrainerError
from trainer.export import export_run
from trainer.import_checkpoint import import_checkpoint, matched
from trainer.model import LongTailClassifier
from trainer.published import Published, read_published
from trainer.runs import read_evaluation, restore_model

CPU = torch.device("cpu")


def published(run: Path, *, prefix: str = "") -> dict[str, Any]:
    """A finished run of ours in the published layout, with the odds and ends that such files hold."""
    model = finished_checkpoint(run).model
    backbone = OrderedDict(
        (prefix + name.removeprefix("backbone."), value)
        for name, value in model.items()
        if name.startswith("backbone.")
    )
    classifier = OrderedDict({f"{prefix}weight": model["head.weight"]})
    return {
        "state_dict_best": {"feat_model": backbone, "classifier": classifier},
        "embed": model["head.momentum_direction"].numpy().astype(np.float64),
        "best_acc": np.float64(44.1),
        "epoch": 200,
    }


def saved(content: object, file: Path, **options: Any) -> Path:
    torch.save(content, file, **options)
    return file


def import_it(content: object, folder: Path, *, recipe: Recipe | None = None, renames: tuple[str, ...] = ()) -> Path:
    file = saved(content, folder / "published.pth")
    import_checkpoint(file, recipe or tiny_recipe(), folder / "run", renames=list(renames), device_name="cpu")
    return folder / "run"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_imported_run_is_the_run_that_was_published(finished_run: Path, tmp_path: Path, prefix: str) -> None:
    run = import_it(published(finished_run, prefix=prefix), tmp_path)
    before, after = finished_checkpoint(finished_run), finished_checkpoint(run)
    for name, value in before.model.items():
        assert torch.equal(after.model[name], value), name
    assert after.alphas["ema"].value == pytest.approx(before.alphas["ema"].value, rel=1e-5)
    assert read_evaluation(run)["curve"] == read_evaluation(finished_run)["curve"]


def test_an_imported_run_exports(finished_run: Path, tmp_path: Path) -> None:
    bundle = export_run(import_it(published(finished_run), tmp_path), tmp_path / "b", direction="ema", fp16=False)
    assert bundle.manifest.tde.direction == "ema"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2"])
def test_the_direction_is_read_whatever_its_type_and_the_files_age(tmp_path: Path, kind: str, zipped: bool) -> None:
    state = {"feat_model": {"module.a": torch.ones(1)}, "classifier": {"module.weight": torch.ones(1)}}
    content = {"state_dict": state, "embed": np.arange(4).astype(kind)}
    read = read_published(saved(content, tmp_path / "f", _use_new_zipfile_serialization=zipped))
    assert read.direction.tolist() == [0, 1, 2, 3]
    assert (list(read.backbone), list(read.classifier)) == (["a"], ["weight"])


@pytest.mark.parametrize("kind", STRANGE)
def test_a_direction_that_is_no_plain_vector_is_refused(tmp_path: Path, kind: str) -> None:
    content = {"state_dict": {"feat_model": {}, "classifier": {}}, "embed": STRANGE[kind]}
    with pytest.raises(TrainerError, match=f"embed must be a vector of plain floating-point numbers, got one {kind}"):
        read_published(saved(content, tmp_path / "f"))


def test_a_direction_may_be_a_row_and_a_prefix_stand_before_some_names(tmp_path: Path) -> None:
    backbone = {"module.a": torch.ones(1), "b": torch.ones(1)}
    content: dict[str, Any] = {"state_dict": {"feat_model": backbone, "classifier": {}}, "embed": np.ones((1, 3))}
    read = read_published(saved(content, tmp_path / "f"))
    assert read.direction.shape == (3,)
    assert list(read.backbone) == ["a", "b"]
    backbone["a"] = torch.zeros(1)
    with pytest.raises(TrainerError, match=r"feat_model holds both 'a' and 'module\.a'"):
        read_published(saved(content, tmp_path / "f"))


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("place", ["embed", "inside embed", "weights", "elsewhere", "alone"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(finished_run: Path, tmp_path: Path, place: str) -> None:
    mark, file = tmp_path / "mark", tmp_path / "hostile.pth"
    hostile, content = Hostile(mark), published(finished_run)
    if place == "alone":
        file.write_bytes(pickle.dumps(hostile, protocol=2))
    elif place == "embed":
        saved(content | {"embed": hostile}, file)
    elif place == "inside embed":
        saved(content | {"embed": np.array([hostile], dtype=object)}, file)
    elif place == "weights":
        content["state_dict_best"]["feat_model"]["layers.0.0.weight"] = hostile
        saved(content, file)
    else:
        saved(content | {"optimizer": hostile}, file)
    with pytest.raises(TrainerError, match=r"hostile\.pth: is refused, as it holds more than numbers"):
        import_checkpoint(file, tiny_recipe(), tmp_path / "run", renames=[], device_name="cpu")
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused_in_a_line(finished_run: Path, tmp_path: Path, share: float) -> None:
    file = saved(published(finished_run), tmp_path / "f.pth")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TrainerError, match=r"f\.pth: is not a readable torch file") as caught:
        read_published(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "holds 'model'; it must hold state_dict_best or state_dict"),
        ({"state_dict": {"classifier": {}}}, "its state dict holds 'classifier'; it must hold feat_model"),
        ([1, 2], "holds a list"),
        ({"state_dict": {"feat_model": {"a": 3}, "classifier": {}}}, "feat_model.a: must be a tensor"),
        ({"state_dict": {"feat_model": {"\x1b[31m": 3}, "classifier": {}}}, r"feat_model.\\x1b\[31m: must be a tensor"),
        ({"state_dict": {"feat_model": {}, "classifier": {}}}, "embed must be a NumPy vector"),
        ({"state_dict": {"feat_model": {}, "classifier": {}}, "embed": np.zeros(3)}, "that are not all 0"),
        ({"state_dict": {"feat_model": {}, "classifier": {}}, "embed": np.full(3, np.nan)}, "finite numbers"),
        ({"state_dict": {"feat_model": {}, "classifier": {}}, "embed": np.ones((2, 2))}, r"got shape \[2, 2\]"),
        ({"state_dict": {"feat_model": {}, "classifier": {}}, "embed": np.ones((2, 1))}, r"got shape \[2, 1\]"),
    ],
)
def test_another_layout_is_said(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        read_published(saved(content, tmp_path / "f.pth"))


def test_a_mismatch_is_named_key_by_key(finished_run: Path, tmp_path: Path) -> None:
    content = published(finished_run)
    state = content["state_dict_best"]
    weight: Tensor = state["feat_model"].pop("layers.0.0.weight")
    state["feat_model"]["strange.weight"] = weight
    state["feat_model"]["layers.1.0.weight"] = weight
    state["feat_model"]["layers.0.1.bias"] = torch.full((32,), torch.nan)
    state["classifier"] |= {"bias": torch.zeros(10), "weight": torch.zeros(7, 64)}
    content["embed"] = np.ones(3)
    with pytest.raises(TrainerError) as caught:
        import_it(content, tmp_path)
    message = str(caught.value)
    for fault in (
        "missing: backbone.layers.0.0.weight, [32, 3, 3, 3]",
        "unexpected: feat_model.strange.weight, [32, 3, 3, 3]",
        "shape: feat_model.layers.1.0.weight is [32, 3, 3, 3], and backbone.layers.1.0.weight takes [64, 32, 3, 3]",
        "value: feat_model.layers.0.1.bias holds a NaN or an infinity",
        "unexpected: classifier.bias, [10]",
        "shape: classifier.weight is [7, 64], and head.weight takes [10, 64]",
        "shape: embed is [3], and head.momentum_direction takes [64]",
    ):
        assert fault in message
    assert "(7 faults)" in message
    assert not (tmp_path / "run").exists()


def test_weights_too_large_to_compute_with_leave_no_run(finished_run: Path, tmp_path: Path) -> None:
    content = published(finished_run)
    backbone = content["state_dict_best"]["feat_model"]
    right = backbone["layers.2.1.weight"]
    backbone["layers.2.1.weight"] = right.double() * 1e300
    with pytest.raises(TrainerError, match=r"value: feat_model\.layers\.2\.1\.weight holds a NaN or an infinity"):
        import_it(content, tmp_path)
    backbone["layers.2.1.weight"] = torch.full_like(right, 3e38)
    with pytest.raises(TrainerError, match="the model's logits hold a NaN or an infinity"):
        import_it(content, tmp_path)
    assert not (tmp_path / "run" / CHECKPOINT_FILE).exists()
    backbone["layers.2.1.weight"] = right
    assert finished_checkpoint(import_it(content, tmp_path)).is_finished()


def test_keys_of_the_backbone_can_be_renamed_and_counters_be_missing(finished_run: Path, tmp_path: Path) -> None:
    content = published(finished_run)
    content["state_dict_best"]["feat_model"] = {
        name.replace("layers.", "block"): value
        for name, value in content["state_dict_best"]["feat_model"].items()
        if "num_batches_tracked" not in name
    }
    run = import_it(content, tmp_path, renames=("block=layers.",))
    weights = restore_model(finished_checkpoint(run), CPU).state_dict()
    assert torch.equal(
        weights["backbone.layers.2.0.weight"], finished_checkpoint(finished_run).model["backbone.layers.2.0.weight"]
    )
    with pytest.raises(TrainerError, match="--rename 'block': must read OLD=NEW"):
        import_checkpoint(
            tmp_path / "published.pth", tiny_recipe(), tmp_path / "x", renames=["block"], device_name="cpu"
        )
    renames = ["block=layers.", "layers.1.0.=layers.0.0."]
    with pytest.raises(TrainerError, match=r"twice: feat_model\.block1.* are both backbone\.layers\.0"):
        import_checkpoint(tmp_path / "published.pth", tiny_recipe(), tmp_path / "x", renames=renames, device_name="cpu")


def test_torchvisions_names_of_a_resnet_are_known() -> None:
    from torchvision.models import resnext50_32x4d

    recipe = load_recipe("imagenet_lt", ["data.lists=null"])
    model = LongTailClassifier(recipe, 5, fetch_weights=False)
    theirs = {name: value for name, value in resnext50_32x4d().state_dict().items() if not name.startswith("fc.")}
    ours = matched(Published(theirs, {"weight": torch.ones(5, 2048)}, torch.ones(2048)), model, [], Path("f"))
    model.load_state_dict(ours)
    assert torch.equal(model.state_dict()["backbone.model.layer3.2.conv2.weight"], theirs["layer3.2.conv2.weight"])


def test_a_folder_that_holds_a_run_is_kept(finished_run: Path, tmp_path: Path) -> None:
    file = saved(published(finished_run), tmp_path / "f.pth")
    with pytest.raises(TrainerError, match="holds a run already"):
        import_checkpoint(file, tiny_recipe(), finished_run, renames=[], device_name="cpu")
