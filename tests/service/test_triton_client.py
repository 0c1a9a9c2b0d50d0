"""NVIDIA's client of the Open Inference Protocol, unmodified, against the service as a process."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.service.conftest import CLASSES
from tests.service.test_process import running
from tests.service.tiny_model import reference, write_tiny_bundle

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gevent's and geventhttpclient's own
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("triton")
    bundle = write_tiny_bundle(folder / "tiny").path
    with running(bundle, folder / "log", max_batch_size="8") as service:
        client = http.InferenceServerClient(f"127.0.0.1:{service.port}")
        yield client
        client.close()


def images(count: int) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def inputs(values: Any, *, binary: bool, **knobs: Any) -> list[Any]:
    tensors = [http.InferInput("image", values.shape, "UINT8")]
    tensors[0].set_data_from_numpy(values, binary_data=binary)
    for name, column in knobs.items():
        tensors.append(http.InferInput(name, column.shape, "FP32"))
        tensors[-1].set_data_from_numpy(column.astype(np.float32), binary_data=binary)
    return tensors


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("tiny")
    assert client.is_model_ready("tiny", metadata["versions"][0])
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image", "alpha", "prior_strength"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_every_output_is_the_models(client: Any, binary_in: bool, binary_out: bool, count: int) -> None:
    values, alpha, strength = images(count), np.linspace(0, 3, count), np.linspace(1, 0, count)
    expected = reference(values, alpha, strength)
    outputs = [http.InferRequestedOutput(name, binary_data=binary_out) for name in (*expected, "feature_map")]
    sent = inputs(values, binary=binary_in, alpha=alpha, prior_strength=strength)
    result = client.infer("tiny", sent, outputs=outputs, request_id="one")
    assert result.get_response()["id"] == "one"
    for name, value in expected.items():
        np.testing.assert_allclose(result.as_numpy(name), value, rtol=1e-3, atol=1e-3)
    assert result.as_numpy("feature_map").shape == (count, 3, 8, 8)


def test_without_outputs_all_come_as_bytes_but_the_feature_map(client: Any) -> None:
    result = client.infer("tiny", inputs(images(2), binary=True))
    assert result.as_numpy("logits").shape == (2, CLASSES)
    assert result.as_numpy("feature_map") is None
    assert result.as_numpy("prediction_id").shape == (2, 1)


@pytest.mark.parametrize("binary", [True, False])
def test_a_ranking(client: Any, binary: bool) -> None:
    outputs = [http.InferRequestedOutput("logits", binary_data=binary, class_count=3)]
    result = client.infer("tiny", inputs(images(2), binary=True), outputs=outputs).as_numpy("logits")
    assert result.shape == (2, 3)
    value, index, label = (result[0, 0].decode() if binary else result[0, 0]).split(":")
    assert label == f"class {index}"
    assert float(value)


def test_the_knobs_as_parameters_equal_those_as_tensors(client: Any) -> None:
    values, alpha = images(3), np.full(3, 2.5)
    as_tensor = client.infer("tiny", inputs(values, binary=True, alpha=alpha)).as_numpy("logits")
    as_parameter = client.infer("tiny", inputs(values, binary=True), parameters={"alpha": 2.5}).as_numpy("logits")
    np.testing.assert_array_equal(as_tensor, as_parameter)


def test_a_timeout_and_a_version(client: Any) -> None:
    version = client.get_model_metadata("tiny")["versions"][0]
    result = client.infer("tiny", inputs(images(1), binary=True), model_version=version, timeout=5_000_000)
    assert result.get_response()["model_version"] == version


def test_errors_reach_the_client_as_the_protocol_says(client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"alpha\[0\] must lie between 0 and 3") as caught:
        client.infer("tiny", inputs(images(1), binary=True, alpha=np.array([9.0])))
    assert caught.value.status() == "422"
    with pytest.raises(InferenceServerException, match="The model served is tiny"):
        client.infer("other", inputs(images(1), binary=True))
