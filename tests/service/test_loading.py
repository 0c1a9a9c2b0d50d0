"""What a bundle becomes at the start and at a reload; what seems to be a GPU is the CPU."""

from pathlib import Path

import onnxruntime
import pytest

from service.bundle import Bundle
from service.loading import Reloading, load_bundle
from service.session import ProviderUnavailable
from service.settings import Settings
from tests.service.fake_cuda import SessionOnTheCpu
from tests.service.tiny_model import write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


def test_what_runs_on_cuda_is_not_taken_to_the_cpu_by_a_reload(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(provider="auto", max_batch_size=4)
    loaded = load_bundle(bundle.path, settings, "")
    assert loaded is not None
    assert loaded.model.provider == "cuda"
    again = Reloading(bundle.path, settings, loaded.model.provider)
    assert again(bundle.manifest.version) is None
    anew, real = again("another"), onnxruntime.InferenceSession
    assert anew is not None
    assert anew.model.provider == "cuda"

    def no_room(path: object, options: object, providers: list[object]) -> object:
        if isinstance(providers[0], tuple):
            raise RuntimeError("the device is out of memory")
        return real(path, options, providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", no_room)
    with pytest.raises(ProviderUnavailable, match="out of memory"):
        again("another")


def test_what_came_to_a_device_by_a_reload_stays_there(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Reloading(bundle.path, Settings(provider="auto", max_batch_size=4), "cpu")
    loaded = again("another")
    assert loaded is not None
    assert loaded.model.provider == "cuda"
    monkeypatch.setattr("service.session._cuda_problem", lambda: "the GPU is gone")
    with pytest.raises(ProviderUnavailable, match="the GPU is gone"):
        again("another")
