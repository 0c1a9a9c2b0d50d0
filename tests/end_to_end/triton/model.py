"""Stands for Triton's ONNX Runtime backend, which comes in a container alone: it runs the model's file as that would.

Triton itself reads `config.pbtxt`, checks and reshapes what is sent, forms the batches and speaks HTTP. It loads this
module for every model whose configuration names the backend `onnxruntime`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.environ["TRITON_PACKAGES"])

import onnxruntime
import triton_python_backend_utils as triton  # type: ignore[import-not-found]


class TritonPythonModel:
    """What the server wants of such a module."""

    def initialize(self, asked: dict[str, str]) -> None:
        """Open the model's file."""
        config = json.loads(asked["model_config"])
        version = Path(asked["model_repository"]) / asked["model_version"]
        self._session = onnxruntime.InferenceSession(version / config["default_model_filename"])
        self._inputs = [value["name"] for value in config["input"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each of which is a batch."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        feeds = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
        names = list(request.requested_output_names())
        found = self._session.run(names, feeds)
        return triton.InferenceResponse([triton.Tensor(*pair) for pair in zip(names, found, strict=True)])
