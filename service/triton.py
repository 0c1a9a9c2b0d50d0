"""A bundle's model as a model of NVIDIA Triton: `model.onnx` as it is, and the configuration that it needs.

    REPOSITORY/NAME/config.pbtxt
    REPOSITORY/NAME/1/model.onnx

It knows the bundle and Triton's format, and neither runs a model nor serves one. With batching on, Triton wants one
dimension beside the batch: the knobs are [N, 1] on its wire, as the Open Inference Protocol here takes them too.

Source: NVIDIA, Triton Inference Server, *Model Configuration*.
"""

import shutil
import tempfile
from pathlib import Path

from service.bundle import Bundle, BundleError, Manifest

_KNOB = "dims: [ 1 ] reshape: { shape: [ ] }"


def triton_config(manifest: Manifest, max_batch_size: int) -> str:
    """Return the content of `config.pbtxt`.

    Args:
        manifest: the model's.
        max_batch_size: the largest batch that Triton may form.
    """
    spec, classes, slices = manifest.input, len(manifest.classes), manifest.tde.num_heads
    inputs = {
        "image": f"data_type: TYPE_UINT8 dims: [ {spec.height}, {spec.width}, 3 ]",
        "alpha": f"data_type: TYPE_FP32 {_KNOB}",
        "prior_strength": f"data_type: TYPE_FP32 {_KNOB}",
    }
    outputs = dict.fromkeys(("logits", "factual_logits", "counterfactual_logits"), f"dims: [ {classes} ]")
    outputs |= {"confounder_cosine": f"dims: [ {slices} ]", "feature_map": "dims: [ -1, -1, -1 ]"}
    lines = [
        f"# {manifest.name} {manifest.version}: alpha from {manifest.alpha.minimum:g} to {manifest.alpha.maximum:g}, "
        f"default {manifest.alpha.default:g}. Triton checks neither, and knows no default: send both knobs.",
        f'name: "{manifest.name}"',
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {max_batch_size}",
        "dynamic_batching { }",
        *(f'input [ {{ name: "{name}" {what} }} ]' for name, what in inputs.items()),
        *(f'output [ {{ name: "{name}" data_type: TYPE_FP32 {what} }} ]' for name, what in outputs.items()),
    ]
    return "\n".join(lines) + "\n"


def write_triton_model(bundle: Bundle, repository: Path, *, max_batch_size: int) -> Path:
    """Write the model into a model repository, whole or not at all, and return its folder.

    Raises:
        BundleError: it is a detector, or the repository has a model of that name already, or cannot be written.
    """
    if bundle.manifest.task == "detection":
        raise BundleError(
            f"{bundle.path} holds a detector, and what is written for Triton is a classifier that takes batches; "
            "serve it with `service serve`"
        )
    folder = repository / bundle.manifest.name
    source = bundle.model_path("fp32")
    assert source is not None, "every bundle has an fp32 model"
    if folder.exists() or folder.is_symlink():
        raise BundleError(f"{folder} is there already; remove it, or choose another repository")
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=repository) as staging:
            whole = Path(staging) / folder.name
            (whole / "1").mkdir(parents=True)
            shutil.copyfile(source, whole / "1" / "model.onnx")
            (whole / "config.pbtxt").write_text(triton_config(bundle.manifest, max_batch_size))
            whole.rename(folder)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error}") from error
    return folder
