import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image

from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.curves import class_norms, draw_curves, draw_run
from trainer.errors import TrainerError
from trainer.runs import read_evaluation


def test_norms_are_those_of_each_classs_weight_and_pictures() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]])
    features = torch.tensor([[0.0, 2.0], [6.0, 8.0], [0.0, 4.0]])
    norms = class_norms(weight, features, np.array([1, 0, 1]))
    assert (norms.weight, norms.feature) == ([5.0, 1.0, 1.0], [10.0, 3.0, None])


def test_a_run_draws_itself_and_keeps_its_norms(finished_run: Path) -> None:
    assert (finished_run / "curves.png").is_file()
    checkpoint, norms = load_checkpoint(finished_run), read_evaluation(finished_run)["norms"]
    expected = checkpoint.model["head.weight"].norm(dim=1).tolist()
    assert norms["weight"] == pytest.approx(expected, abs=1e-5)
    assert len(norms["feature"]) == 10


def test_the_figure_grows_with_what_is_known(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished_run / "checkpoint.safetensors", run)
    draw_run(run, tmp_path / "curves.png")  # no evaluation yet: training goes on
    draw_curves(run, tmp_path / "all.png", read_evaluation(finished_run)["norms"])
    checkpoint = load_checkpoint(run)
    bare = [dataclasses.replace(one, cosine_by_group={}, accuracy_by_group={}) for one in checkpoint.history]
    checkpoint.history = bare
    save_checkpoint(checkpoint, run)
    draw_run(run, None)
    everything, curves, old = (
        image.imread(file) for file in (tmp_path / "all.png", tmp_path / "curves.png", run / "curves.png")
    )
    assert everything.shape[0] == curves.shape[0] > old.shape[0]
    assert everything.shape[1] == old.shape[1]
    assert (everything[..., :3] < 0.9).mean() > (curves[..., :3] < 0.9).mean()


def test_a_run_without_epochs_and_norms_has_nothing_to_draw(finished_run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(finished_run)
    checkpoint.history = []
    save_checkpoint(checkpoint, tmp_path)
    with pytest.raises(TrainerError, match=r"holds neither epochs nor norms to draw; run evaluate"):
        draw_run(tmp_path, None)
    draw_curves(tmp_path, None, read_evaluation(finished_run)["norms"])
    assert (tmp_path / "curves.png").is_file()
    draw_curves(finished_run, tmp_path / "none" / "a.svg", None)
    assert (tmp_path / "none" / "a.svg").is_file()
    with pytest.raises(TrainerError, match=r"--output .*a\.xyz: the name must end in \.png"):
        draw_curves(finished_run, tmp_path / "a.xyz", None)


@pytest.mark.parametrize("content", ["[]", '{"norms": {"weight": [1]}}', '{"norms": 5}', "{"])
def test_an_evaluation_that_is_none_is_named(finished_run: Path, tmp_path: Path, content: str) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "evaluation.json").write_text(content)
    with pytest.raises(TrainerError, match=r"evaluation\.json: .*; run evaluate"):
        draw_run(run, None)
