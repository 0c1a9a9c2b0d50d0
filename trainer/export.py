"""A finished run to a bundle: ONNX files, manifest, parity samples and evaluation, or nothing at all.

ONNX Runtime must give what PyTorch gives, for both branches and their combination, at several batch sizes and mixed
alphas; else there is no bundle.
"""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from service.bundle import (
    CLASSIFIER_FILE,
    PARITY_FILE,
    PARITY_TOLERANCE,
    SAMPLES_FILE,
    AlphaSpec,
    Bundle,
    BundleError,
    ClassInfo,
    ManifestDraft,
    Parity,
    Precision,
    TdeSpec,
    read_arrays,
    refuse_unfit_target,
    write_bundle,
)
from trainer.checkpoint import Checkpoint, finished_checkpoint
from trainer.config import explain
from trainer.errors import TrainerError
from trainer.explain import NoActivationMaps, activation_maps
from trainer.graph import INPUTS, OUTPUTS, ServingGraph
from trainer.long_tail import log_class_share
from trainer.progress import console
from trainer.runs import (
    CURVE_FILE,
    EVALUATION_FILE,
    PLOT_FILE,
    direction_cosine,
    direction_of,
    read_evaluation,
    refuse_unknown_direction,
    restore_model,
)
from trainer.showcase import read_showcase

OPSET = 20
PARITY_BATCH_SIZES = (1, 2, 3, 8)
PARITY_PRIOR_STRENGTHS = (0.0, 1.0, 0.5)
EVALUATED = (EVALUATION_FILE, CURVE_FILE, PLOT_FILE, SAMPLES_FILE)


def export_run(folder: Path, output: Path | None, *, direction: str, fp16: bool) -> Bundle:
    """Write the bundle of a finished run.

    Raises:
        TrainerError: training has not ended, no evaluation, an unknown direction, parity missed, or a folder that
            holds something else.
    """
    refuse_unknown_direction(direction)
    checkpoint = finished_checkpoint(folder)
    evaluation, evaluated = _measured(folder, direction), _evaluated(folder)
    target = output or Path("bundles") / checkpoint.recipe.name
    with writing_bundle(target):  # before the work of making it
        refuse_unfit_target(target)
        draft = describe(checkpoint, evaluation, direction)
    precisions: tuple[Precision, ...] = ("fp32", "fp16") if fp16 else ("fp32",)
    parity = expected_outputs(checkpoint, direction)
    with tempfile.TemporaryDirectory() as scratch, console.status("exporting to ONNX") as status:
        files: dict[Precision, Path] = {}
        for precision in precisions:
            status.update(f"exporting {precision}")
            files[precision] = Path(scratch) / f"{precision}.onnx"
            export_onnx(serving_graph(checkpoint, direction, half=precision == "fp16"), parity, files[precision])
            check_parity(files[precision], parity, precision)
        maps = _classifier(checkpoint, direction)
        with writing_bundle(target):
            bundle = write_bundle(
                target, draft, models=files, files={PARITY_FILE: parity.to_bytes(), **evaluated, **maps}
            )
    console.print(
        f"bundle {bundle.manifest.name} {bundle.manifest.version} written to {target}; parity with PyTorch holds at "
        f"batch sizes {', '.join(map(str, PARITY_BATCH_SIZES))}. Serve it: python -m service serve {target}",
        soft_wrap=True,
    )
    return bundle


@contextmanager
def writing_bundle(target: Path) -> Iterator[None]:
    """Turn what keeps a bundle from being written, in its folder or its manifest, into a ``TrainerError``."""
    try:
        yield
    except ValidationError as error:
        raise TrainerError(
            f"no bundle can hold this run: {explain(error)}; mend that in the data or the recipe, and train again"
        ) from error
    except OSError as error:
        raise TrainerError(f"--output {target}: cannot be written ({error.strerror}); name another folder") from error
    except (BundleError, ValueError) as error:
        raise TrainerError(str(error)) from error


def _classifier(checkpoint: Checkpoint, direction: str) -> dict[str, bytes]:
    """Make the file for activation maps; none where the model has no such maps."""
    try:
        maps = activation_maps(checkpoint, direction)
    except NoActivationMaps as error:
        console.print(f"the bundle goes without activation maps: {error}", soft_wrap=True)
        return {}
    return {CLASSIFIER_FILE: maps.to_bytes()}


def _evaluated(folder: Path) -> dict[str, Path]:
    """Name the files of the evaluation; a run of an earlier release has no samples.

    Raises:
        TrainerError: another one is missing, or one is damaged.
    """
    there = {name: folder / name for name in EVALUATED if (folder / name).is_file()}
    for name in EVALUATED:
        if name not in there and name != SAMPLES_FILE:
            raise TrainerError(f"{folder / name}: is missing; run evaluate {folder}")
    refuse_damaged(there[CURVE_FILE], ("breakpoints", "overall"))
    refuse_damaged(there[PLOT_FILE])
    if SAMPLES_FILE in there:
        read_showcase(there[SAMPLES_FILE])
    return there


def refuse_damaged(file: Path, arrays: Sequence[str] = ()) -> None:
    """Check that a file of an evaluation holds these arrays, or a picture where none are named.

    Raises:
        TrainerError: it does not.
    """
    try:
        if arrays:
            read_arrays(file, arrays)
        else:
            with Image.open(file) as picture:
                picture.load()
    except (ValueError, OSError, SyntaxError) as error:
        raise TrainerError(f"{file}: cannot be read ({error}); run evaluate {file.parent}") from error


def _measured(folder: Path, direction: str) -> dict[str, Any]:
    """Read what the bundle says of the evaluation, before the export takes its time."""
    evaluation = read_evaluation(folder)
    try:
        dict(evaluation["directions"][direction])
        int(evaluation["test_images"])
    except (KeyError, TypeError, ValueError) as error:
        raise TrainerError(
            f"{folder / EVALUATION_FILE}: lacks what the evaluation of a classifier holds ({error!r}); "
            f"run evaluate {folder}"
        ) from error
    return evaluation


def serving_graph(checkpoint: Checkpoint, direction: str, *, half: bool = False) -> ServingGraph:
    """Make the module that is exported, on the CPU and in evaluation mode."""
    model = restore_model(checkpoint, torch.device("cpu"))
    log_share = torch.from_numpy(log_class_share(np.array(checkpoint.class_counts))).float()
    return ServingGraph(deepcopy(model), direction_of(checkpoint, direction), log_share, half=half).eval()


def expected_outputs(checkpoint: Checkpoint, direction: str) -> Parity:
    """Compute with PyTorch what every runtime must give for the sample images, at mixed alphas and strengths."""
    assert checkpoint.sample_images is not None
    images = checkpoint.sample_images
    count = len(images)
    span = checkpoint.recipe.alpha
    alpha = torch.linspace(span.minimum, span.maximum, count).roll(1)
    strength = torch.tensor([PARITY_PRIOR_STRENGTHS[row % len(PARITY_PRIOR_STRENGTHS)] for row in range(count)])
    with torch.inference_mode():
        outputs = serving_graph(checkpoint, direction)(images, alpha, strength)
    named = {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True) if name != "feature_map"}
    return Parity(images=images.numpy(), alpha=alpha.numpy(), prior_strength=strength.numpy(), **named)


def export_onnx(graph: ServingGraph, parity: Parity, file: Path) -> None:
    """Write the graph as one ONNX file with a free batch size."""
    examples: tuple[Tensor, ...] = tuple(
        torch.from_numpy(array[:2]) for array in (parity.images, parity.alpha, parity.prior_strength)
    )
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            graph,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    average_in_single(model.graph)
    save_onnx(model, file)


def average_in_single(graph: onnx.GraphProto) -> None:
    """Have every mean over float16 taken in float32.

    ONNX Runtime's CUDA provider writes the sum in the type of the mean before it divides; in float16 it ends at 65,504:
    64 pixels of 1,024.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "ReduceMean" or types.get(node.input[0]) != TensorProto.FLOAT16:
            nodes.append(node)
            continue
        values, mean = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{mean}_of_single", f"{mean}_single"
        before = helper.make_node("Cast", [values], [node.input[0]], to=TensorProto.FLOAT)
        nodes += [before, node, helper.make_node("Cast", [node.output[0]], [mean], to=TensorProto.FLOAT16)]
    graph.node.clear()  # whose nodes live on in the list
    graph.node.extend(nodes)


def save_onnx(model: onnx.ModelProto, file: Path) -> None:
    """Check the graph and write it, without the traces of its making."""
    # Which line of whose source made a node is nobody's business in production, and holds paths of this machine.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save(model, file)


def check_parity(file: Path, parity: Parity, precision: Precision) -> None:
    """Compare ONNX Runtime with PyTorch at several batch sizes, in ever other combinations of the samples.

    Raises:
        TrainerError: an output that differs by more than the tolerance, or of a wrong shape or type.
    """
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for size in PARITY_BATCH_SIZES:
        rows = np.arange(size) * 3 % len(parity.images)
        part = replace(parity, **{name: array[rows] for name, array in vars(parity).items()})
        outputs = run_onnx(session, part)
        for name, gap in part.gaps(outputs).items():
            if gap > PARITY_TOLERANCE[precision]:
                raise TrainerError(
                    f"parity of {precision} missed: {name} at batch size {size} differs by {gap:.2g} from PyTorch, "
                    f"{PARITY_TOLERANCE[precision]:g} is allowed; no bundle was written"
                )


def run_onnx(session: ort.InferenceSession, parity: Parity) -> dict[str, NDArray[Any]]:
    """Run a session on parity samples and name its outputs."""
    feeds = {"image": parity.images, "alpha": parity.alpha, "prior_strength": parity.prior_strength}
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), feeds), strict=True))


def describe(checkpoint: Checkpoint, evaluation: dict[str, Any], direction: str) -> ManifestDraft:
    """Fill the manifest from the checkpoint and its evaluation."""
    recipe, choice = checkpoint.recipe, checkpoint.alphas[direction]
    classifier = restore_model(checkpoint, torch.device("cpu")).head
    return ManifestDraft(
        name=recipe.name,
        classes=[ClassInfo.of(*pair) for pair in zip(checkpoint.class_names, checkpoint.class_counts, strict=True)],
        input=recipe.input,
        tde=TdeSpec(
            num_heads=classifier.num_heads,
            tau=classifier.tau,
            gamma=classifier.gamma,
            direction=direction,
            direction_cosine=direction_cosine(checkpoint),
        ),
        alpha=AlphaSpec(
            default=choice.value,
            chosen_by=choice.chosen_by,
            minimum=recipe.alpha.minimum,
            maximum=recipe.alpha.maximum,
        ),
        calibration=evaluation["directions"][direction].get("calibration"),
        provenance={
            "recipe": recipe.model_dump(mode="json"),
            "data_fingerprint": checkpoint.data_fingerprint,
            "epochs": checkpoint.epoch,
            "training_seconds": round(checkpoint.seconds, 1),
            "versions": {**checkpoint.versions, "onnx": onnx.__version__, "onnxruntime": ort.__version__},
            "metrics": {
                "test_images": evaluation["test_images"],
                **evaluation["directions"][direction],
            },
        },
    )
