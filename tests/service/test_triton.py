"""What is written for Triton, read by Triton's own schema and held against the model.

tests/end_to_end/test_triton_server.py asks a server.
"""

import errno
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from typer.testing import CliRunner

from service.__main__ import cli
from service.bundle import Bundle, BundleError
from service.triton import triton_config, write_triton_model
from tests.service.tiny_model import write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "bundle")


def parsed(config: str) -> Any:
    """Read the configuration with the schema that tritonclient ships; its package wants gRPC, the schema does not."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return text_format.Parse(config, schema.ModelConfig())


def test_the_configuration_names_the_models_tensors_with_their_types_and_shapes(bundle: Bundle) -> None:
    config = parsed(triton_config(bundle.manifest, 16))
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 16)
    assert config.HasField("dynamic_batching")
    path = bundle.model_path("fp32")
    assert path is not None
    graph = onnx.load(path).graph
    for ours, theirs in ((config.input, graph.input), (config.output, graph.output)):
        assert [tensor.name for tensor in ours] == [tensor.name for tensor in theirs]
        for tensor, real in zip(ours, theirs, strict=True):
            shape = [dimension.dim_value for dimension in real.type.tensor_type.shape.dim][1:]
            dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
            assert len(dims) == len(shape)
            assert all(dim in (-1, length) for dim, length in zip(dims, shape, strict=True))
            uint8 = real.type.tensor_type.elem_type == onnx.TensorProto.UINT8
            assert tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name == (
                "TYPE_UINT8" if uint8 else "TYPE_FP32"
            )


def test_the_model_is_the_bundles_to_the_byte(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_triton_model(bundle, tmp_path / "repository", max_batch_size=8)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["1", "1/model.onnx", "config.pbtxt"]
    assert (folder / "1" / "model.onnx").read_bytes() == (bundle.path / "model.onnx").read_bytes()
    with pytest.raises(BundleError, match="is there already"):
        write_triton_model(bundle, tmp_path / "repository", max_batch_size=8)


def test_a_model_that_is_there_stays_as_it_is_also_where_it_lies_behind_a_link(bundle: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "tiny" / "2").mkdir(parents=True)
    (repository / "tiny" / "config.pbtxt").write_text("mine")
    with pytest.raises(BundleError, match="is there already"):
        write_triton_model(bundle, repository, max_batch_size=8)
    assert sorted(path.name for path in repository.rglob("*")) == ["2", "config.pbtxt", "tiny"]
    assert (repository / "tiny" / "config.pbtxt").read_text() == "mine"
    linked = tmp_path / "linked"
    linked.mkdir()
    for target in (repository / "tiny", tmp_path / "gone"):
        (linked / "tiny").unlink(missing_ok=True)
        (linked / "tiny").symlink_to(target)
        with pytest.raises(BundleError, match="is there already"):
            write_triton_model(bundle, linked, max_batch_size=8)
    assert [path.name for path in linked.iterdir()] == ["tiny"]


def test_what_cannot_be_written_whole_is_not_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(BundleError, match="No space left"):
            write_triton_model(bundle, tmp_path / "repository", max_batch_size=8)
    assert list((tmp_path / "repository").iterdir()) == []
    write_triton_model(bundle, tmp_path / "repository", max_batch_size=8)


def test_the_command_says_where_it_lies_and_refuses_a_damaged_bundle(bundle: Bundle, tmp_path: Path) -> None:
    command = ["triton", str(bundle.path), str(tmp_path / "repository")]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "repository" / "tiny") in result.output
    assert CliRunner().invoke(cli, [*command, "--max-batch-size", str(2**31)]).exit_code == 2
    (bundle.path / "model.onnx").write_bytes(b"damaged")
    damaged = CliRunner().invoke(cli, command)
    assert damaged.exit_code == 2
    assert "model.onnx has SHA-256" in damaged.output
