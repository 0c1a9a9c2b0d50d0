"""Passes as CUDA graphs: here with a capture that runs as it is, on a GPU with the real one."""

import pytest
import torch
from torch import Tensor

from tests.trainer.tiny import tiny_recipe
from trainer.checkpoint import optimizer_tensors, restore_optimizer
from trainer.data import Splits
from trainer.errors import TrainerError
from trainer.passes import forward_pass
from trainer.train import Training

CPU = torch.device("cpu")


class Recorder:
    """Stands for ``torch.cuda.make_graphed_callables``: warms up, and hands out the same memory at every pass."""

    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []

    def __call__(self, run: torch.nn.Module, samples: tuple[Tensor], *, allow_unused_input: bool) -> object:
        assert allow_unused_input
        self.shapes.append(samples[0].shape)
        for _ in range(3):
            run(samples[0])
            torch.rand(1)
        memory: list[Tensor] = []

        def replay(pixels: Tensor) -> tuple[Tensor, Tensor]:
            assert pixels.shape == samples[0].shape
            logits, features = run(pixels)
            if memory:
                memory[0].copy_(features.detach())
            else:
                memory.append(features.detach().clone())
            return logits, memory[0]

        return replay


def training(monkeypatch: pytest.MonkeyPatch, digits: Splits, *settings: str) -> tuple[Training, Recorder]:
    made = Training(tiny_recipe(*settings), digits, CPU)
    recorder = Recorder()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder)
    made._compute = forward_pass(made.model, CPU, in_bf16=False, compiled=False, captured=True)
    return made, recorder


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_captured_steps_are_those_of_plain_ones(digits: Splits, monkeypatch: pytest.MonkeyPatch, rho: float) -> None:
    setting = f"optimizer.sharpness_rho={rho}"
    plain = Training(tiny_recipe(setting), digits, CPU)
    captured, recorder = training(monkeypatch, digits, setting)
    drawn = []
    for one in (plain, captured):
        torch.manual_seed(5)
        for size in (4, 4, 3, 4):
            one._step(torch.rand(size, 3, 8, 8), torch.arange(size), 0.1)
        drawn.append(torch.rand(()))
    assert drawn[0] == drawn[1]
    assert [len(shape) and shape[0] for shape in recorder.shapes] == [4, 3]
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(captured.model.state_dict()[name], tensor)
    assert plain._shots.means() == captured._shots.means()


def test_passes_without_gradients_or_in_evaluation_run_as_they_are(
    digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, recorder = training(monkeypatch, digits)
    with torch.no_grad():
        captured._compute(torch.rand(4, 3, 8, 8))
    captured.model.eval()
    captured._compute(torch.rand(4, 3, 8, 8))
    assert recorder.shapes == []


def test_passes_that_cannot_be_captured_name_the_setting(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    captured, _ = training(monkeypatch, digits)

    def refuse(*_: object, **__: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    with pytest.raises(TrainerError, match=r"capture: .*batches of 4 \(operation not permitted.*set capture=never"):
        captured._compute(torch.rand(4, 3, 8, 8))


def test_capture_without_a_gpu_is_refused(digits: Splits) -> None:
    with pytest.raises(TrainerError, match=r"capture=always: CUDA graphs need a GPU.*set capture=auto"):
        Training(tiny_recipe("capture=always"), digits, CPU)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
def test_a_fused_adamw_goes_on_from_its_checkpoint(digits: Splits) -> None:
    cuda = torch.device("cuda")
    recipe = tiny_recipe("optimizer={name: adamw, learning_rate: 0.001}")
    begun, resumed = Training(recipe, digits, cuda), Training(recipe, digits, cuda)
    pixels, labels = torch.rand(4, 3, 8, 8).to(cuda), torch.arange(4).to(cuda)
    begun._step(pixels, labels, 0.1)
    restore_optimizer(resumed.model, resumed.optimizer, optimizer_tensors(begun.model, begun.optimizer))
    loss, _ = resumed._step(pixels, labels, 0.1)
    assert loss.isfinite()


@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_graphs_of_a_gpu_give_what_plain_passes_give(
    digits: Splits, monkeypatch: pytest.MonkeyPatch, *, compiled: bool
) -> None:
    # As torch is, cuDNN rounds what it multiplies to 10 bits, in some of its ways to convolve: no two need agree.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cuda = torch.device("cuda")
    recipes = [
        tiny_recipe(f"capture={capture}", "compile=never", "precision=fp32", "optimizer.sharpness_rho=0.1")
        for capture in ("never", "always")
    ]
    plain, captured = (Training(recipe, digits, cuda) for recipe in recipes)
    if compiled:
        captured._compute = forward_pass(captured.model, cuda, in_bf16=False, compiled=True, captured=True)
    for one in (plain, captured):
        torch.manual_seed(5)
        for size in (4, 4, 3, 4):
            one._step(torch.rand(size, 3, 8, 8).to(cuda), torch.arange(size).to(cuda), 0.1)
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(captured.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
