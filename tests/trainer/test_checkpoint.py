import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.trainer.tiny import tiny_recipe
from trainer.checkpoint import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    AlphaChoice,
    Checkpoint,
    EpochRecord,
    describe_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from trainer.errors import TrainerError


def make_checkpoint(epoch: int = 2, size: int = 6) -> Checkpoint:
    return Checkpoint(
        recipe=tiny_recipe(),
        class_names=["größer", "dog"],
        class_counts=[9, 3],
        data_fingerprint="f" * 64,
        epoch=epoch,
        model={"head.weight": torch.full((2, size), float(epoch)), "norm.steps": torch.tensor(epoch)},
        optimizer={"head.weight": torch.full((2, size), -float(epoch))},
        history=[EpochRecord(0, [1.5, 0.1 + 0.2], 0.05, 0.5, 100.0)],
        seconds=1.25,
        alphas={"ema": AlphaChoice(1.5, "mean_cosine", [0.6, 0.7])},
        dataset_mean=torch.arange(4.0),
        sample_images=torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
        versions={"torch": "2"},
    )


def as_plain(checkpoint: Checkpoint) -> dict[str, object]:
    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value

    return {key: plain(value) for key, value in vars(checkpoint).items()}


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    file = save_checkpoint(checkpoint, tmp_path)
    assert as_plain(load_checkpoint(file)) == as_plain(load_checkpoint(tmp_path)) == as_plain(checkpoint)
    assert load_checkpoint(file).is_finished()


def test_an_unfinished_run_has_neither_alpha_nor_mean(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    checkpoint.alphas, checkpoint.dataset_mean, checkpoint.sample_images = {}, None, None
    save_checkpoint(checkpoint, tmp_path)
    again = load_checkpoint(tmp_path)
    assert not again.is_finished()
    assert again.dataset_mean is again.sample_images is None


def test_the_file_is_plain_safetensors_of_one_format_and_with_usual_permissions(tmp_path: Path) -> None:
    file = save_checkpoint(make_checkpoint(), tmp_path)
    with safe_open(file, framework="np") as opened:
        assert opened.metadata()["evenkeel"] == FORMAT_VERSION
        assert "model.head.weight" in opened.keys()  # noqa: SIM118 - not a mapping
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE], "nothing else is left behind"
    beside = tmp_path / "beside"
    beside.write_text("")
    assert file.stat().st_mode == beside.stat().st_mode


def test_weights_in_another_memory_format_are_saved_by_their_values(tmp_path: Path) -> None:
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    checkpoint = make_checkpoint()
    checkpoint.model = {"conv": weight}
    save_checkpoint(checkpoint, tmp_path)
    assert torch.equal(load_checkpoint(tmp_path).model["conv"], weight)


def test_no_checkpoint_is_said_with_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"no checkpoint there; name a run's folder"):
        load_checkpoint(tmp_path)
    with pytest.raises(TrainerError, match="no checkpoint there"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_description_is_the_checkpoint_without_its_tensors(tmp_path: Path) -> None:
    whole = load_checkpoint(save_checkpoint(make_checkpoint(), tmp_path))
    described = describe_checkpoint(tmp_path)
    assert (described.recipe, described.history) == (whole.recipe, whole.history)
    assert whole.model
    assert not described.model


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 1500, -1, -20])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    file = save_checkpoint(make_checkpoint(), tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    for read in (load_checkpoint, describe_checkpoint):
        with pytest.raises(TrainerError, match=f"{file}: is not a readable checkpoint .*; put a whole copy there, or"):
            read(file)


@pytest.mark.parametrize("content", [b"\x80\x04\x95pickle", b"\xff" * 64, b"\x00" * 64])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(content)
    with pytest.raises(TrainerError, match="is not a readable checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"evenkeel": "0"}, {"evenkeel": "99", "state": "{}"}])
def test_another_format_version_is_refused_with_both_versions(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / CHECKPOINT_FILE, metadata=metadata)
    with pytest.raises(TrainerError, match=f"has checkpoint format .*, this version reads '{FORMAT_VERSION}'"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("state", [None, "", "{", "[]", "{}", '{"recipe": {"name": 1}}', "null"])
def test_a_description_that_cannot_be_understood_is_refused(tmp_path: Path, state: str | None) -> None:
    metadata = {"evenkeel": FORMAT_VERSION} | ({} if state is None else {"state": state})
    save_file({"a": torch.zeros(1)}, tmp_path / CHECKPOINT_FILE, metadata=metadata)
    with pytest.raises(TrainerError, match="its description is damaged or of another version"):
        load_checkpoint(tmp_path)


def test_a_description_with_a_field_too_many_is_refused(tmp_path: Path) -> None:
    file = save_checkpoint(make_checkpoint(), tmp_path)
    with safe_open(file, framework="pt") as opened:
        state = json.loads(opened.metadata()["state"]) | {"new_field": 1}
    save_file({}, file, metadata={"evenkeel": FORMAT_VERSION, "state": json.dumps(state)})
    with pytest.raises(TrainerError, match="new_field"):
        load_checkpoint(file)


def test_a_folder_that_cannot_be_written_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(make_checkpoint(1), tmp_path)
    (tmp_path / CHECKPOINT_FILE).with_suffix(".partial").mkdir()  # stands in the way, for root too
    with pytest.raises((TrainerError, OSError)):
        save_checkpoint(make_checkpoint(2), tmp_path)
    assert load_checkpoint(tmp_path).epoch == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_full_disk_is_said_and_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(make_checkpoint(1), tmp_path)
    (tmp_path / CHECKPOINT_FILE).with_suffix(".partial").symlink_to("/dev/full")
    with pytest.raises(TrainerError, match=r"cannot be written \(No space left on device\); the checkpoint before it"):
        save_checkpoint(make_checkpoint(2, size=50_000), tmp_path)
    assert load_checkpoint(tmp_path).epoch == 1
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def save_for_ever(folder: Path) -> None:
    epoch = 1
    while True:
        save_checkpoint(make_checkpoint(epoch, size=100_000), folder)
        epoch += 1


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_killed_in_the_middle_of_saving_the_last_checkpoint_loads(tmp_path: Path) -> None:
    left_over = 0
    for round_ in range(12):
        folder = tmp_path / str(round_)
        folder.mkdir()
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(folder,), daemon=True)
        process.start()
        deadline = time.monotonic() + 30
        while not (folder / CHECKPOINT_FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.011 * round_)  # another moment of the save each time
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        checkpoint = load_checkpoint(folder)
        assert (checkpoint.model["head.weight"] == checkpoint.epoch).all()
        assert (checkpoint.optimizer["head.weight"] == -checkpoint.epoch).all()
        left_over += len(list(folder.glob("*.partial")))
        save_checkpoint(make_checkpoint(500), folder)
        assert load_checkpoint(folder).epoch == 500, "what was left behind is no obstacle"
    assert left_over > 0, "no kill hit a save: the test shows nothing"


def test_momentum_buffers_find_their_parameters_again() -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.SGD]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    def step(layer: torch.nn.Linear, optimizer: torch.optim.SGD) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(layer(torch.ones(1, 3)).square().sum())
        optimizer.step()

    layer, optimizer = make()
    assert optimizer_tensors(layer, optimizer) == {}
    step(layer, optimizer)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(layer, optimizer).items()}
    assert set(tensors) == {"weight", "bias"}
    again, other = make()
    again.load_state_dict(layer.state_dict())
    restore_optimizer(again, other, tensors)
    step(layer, optimizer)
    step(again, other)
    assert torch.equal(layer.weight, again.weight)
    assert torch.equal(layer.bias, again.bias)


@pytest.mark.parametrize("kind", [partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.AdamW])
def test_what_an_optimizer_kept_lies_in_memory_as_its_parameter(
    tmp_path: Path, kind: Callable[..., torch.optim.Optimizer]
) -> None:
    """A file knows nothing of channels_last, and a fused step on a GPU refuses another layout."""

    def stepped() -> tuple[torch.nn.Conv2d, torch.optim.Optimizer]:
        layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = kind(layer.parameters())
        torch.autograd.backward(layer(torch.ones(1, 3, 5, 5)).square().sum())
        optimizer.step()
        return layer, optimizer

    kept = optimizer_tensors(*stepped())
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, tmp_path / "kept")
    layer, optimizer = stepped()
    restore_optimizer(layer, optimizer, load_file(tmp_path / "kept"))
    for name, tensor in optimizer_tensors(layer, optimizer).items():
        torch.testing.assert_close(tensor, kept[name])
        if tensor.ndim == 4:
            assert tensor.stride() == layer.weight.stride()
            assert not tensor.requires_grad


@pytest.mark.parametrize(("fused", "place"), [(None, "cpu"), (True, "meta")])
def test_the_count_of_steps_goes_where_the_optimizer_wants_it(fused: bool | None, place: str) -> None:
    layer = torch.nn.Linear(3, 2, device="meta")
    optimizer = torch.optim.AdamW(layer.parameters())
    optimizer.defaults["fused"] = fused  # which `meta` refuses to be given
    tensors = {"weight:step": torch.tensor(4.0), "weight:exp_avg": torch.ones(2, 3)}
    restore_optimizer(layer, optimizer, tensors)
    state = optimizer.state[layer.weight]
    assert state["step"].device.type == place
    assert state["exp_avg"].device.type == "meta"
