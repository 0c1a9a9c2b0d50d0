import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.bundle import write_bundle
from service.session import OnnxSession
from tests.service.conftest import make_draft, make_parity


def picks() -> bytes:
    """A model that gives `image[index]`: its run fails if there is none."""
    ends = {"image": TensorProto.FLOAT, "index": TensorProto.INT64, "picked": TensorProto.FLOAT}
    image, index, picked = (helper.make_tensor_value_info(name, kind, [1]) for name, kind in ends.items())
    graph = helper.make_graph(
        [helper.make_node("Gather", ["image", "index"], ["picked"])], "g", [image, index], [picked]
    )
    model: bytes = helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return model


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_a_run_that_fails_is_raised_and_onnx_runtime_writes_no_line_of_its_own(
    tmp_path: Path, capfd: Any, caplog: Any, level: int
) -> None:
    files = {"parity.npz": make_parity().to_bytes(), "evaluation.json": b"{}"}
    bundle = write_bundle(tmp_path / "picks", make_draft(), models={"fp32": picks()}, files=files)
    with caplog.at_level(level, "service.session"):
        session = OnnxSession(bundle, "cpu", 1)
        with pytest.raises(Exception, match="idx=9 must be within"):
            session.run(["picked"], {"image": np.zeros(1, np.float32), "index": np.array([9])})
    assert capfd.readouterr().err == ""
