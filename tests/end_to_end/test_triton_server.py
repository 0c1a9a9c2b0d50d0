"""NVIDIA's Triton takes what `service triton` writes, as it is, and answers as the trained model does."""

from pathlib import Path

import numpy as np
import pytest
from tritonclient import http as tritonclient

import service.__main__
from service.bundle import read_bundle
from tests.end_to_end.conftest import command
from tests.end_to_end.triton.server import triton

OUTPUTS = ("logits", "factual_logits", "counterfactual_logits", "confounder_cosine")


@pytest.mark.parametrize("strict", [True, False], ids=["as it is", "where Triton may complete the configuration"])
def test_a_triton_server_answers_as_the_trained_model_does(bundle: Path, tmp_path: Path, *, strict: bool) -> None:
    command(service.__main__.cli, "triton", str(bundle), str(tmp_path / "repository"))
    options = ["--disable-auto-complete-config"] if strict else []
    whole = read_bundle(bundle)
    parity, name, feature_map = whole.parity(), whole.manifest.name, "feature_map"
    rows = len(parity.images)
    knobs = {"alpha": parity.alpha, "prior_strength": parity.prior_strength}
    inputs = [tritonclient.InferInput("image", [*parity.images.shape], "UINT8").set_data_from_numpy(parity.images)]
    inputs += [
        tritonclient.InferInput(knob, [rows, 1], "FP32").set_data_from_numpy(values.astype(np.float32)[:, None])
        for knob, values in knobs.items()
    ]
    asked = [tritonclient.InferRequestedOutput(output) for output in (*OUTPUTS, feature_map)]
    with (
        triton(tmp_path / "repository", tmp_path, *options) as address,
        tritonclient.InferenceServerClient(address) as client,
    ):
        assert client.get_model_metadata(name)["platform"] == "onnxruntime_onnx"
        answer = client.infer(name, inputs, outputs=asked)
    for output in OUTPUTS:
        np.testing.assert_allclose(answer.as_numpy(output), getattr(parity, output), rtol=1e-4, atol=1e-4)
    assert answer.as_numpy(feature_map).shape[0] == rows
    assert answer.as_numpy(feature_map).ndim == 4
