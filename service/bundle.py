"""The bundle: the folder that the trainer hands to the service, written whole or not at all, read only if intact.

The contract between the two packages, and all that the trainer needs of it is importable from here.
Standard library, pydantic and numpy alone: it knows nothing of PyTorch, ONNX Runtime or HTTP, and it
never looks inside a model file.

A classifier's contract (opset and precision are the exporter's choice; N any, C classes, K slices):

    inputs   image uint8 [N, H, W, 3] RGB, alpha float32 [N], prior_strength float32 [N]
    outputs  logits, factual_logits, counterfactual_logits float32 [N, C], confounder_cosine float32 [N, K],
             feature_map [N, D, h, w]
    logits = factual_logits - alpha * counterfactual_logits - prior_strength * log(class share in training)

A detector's (one picture per run; M detections at most, masks of m x m; the manifest's `detection` says both):

    inputs   image uint8 [1, H, W, 3] RGB, the picture at the top left and zeros beyond; image_size float32 [1, 2], its
             height and width there; alpha float32 [1]
    outputs  boxes float32 [1, M, 4] (x1, y1, x2, y2) in input pixels, within the picture; scores float32 [1, M],
             falling; labels int64 [1, M]; masks float32 [1, M, m, m], probabilities within the box; count int64 [1]:
             from there on rows are zero, and labels -1
    Background-exempted TDE (Eq. 9) at alpha, averaged over the stages, and the suppression of doubles are in the graph.
    What pixels of a picture a mask covers, `mask_runs` says to both sides.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from service.activation_maps import CLASSIFIER_FILE, ActivationMaps, area_at_half_energy
from service.arrays import read_arrays
from service.detection_parity import DetectionParity
from service.manifest import (
    EVALUATION_FILE,
    MANIFEST_FILE,
    MODEL_FILES,
    PARITY_FILE,
    SAMPLES_FILE,
    SCHEMA_VERSION,
    SCHEMA_VERSIONS,
    SHOT_GROUPS,
    AlphaSpec,
    BundleError,
    ClassInfo,
    DetectionSpec,
    HashedFile,
    InputSpec,
    Manifest,
    ManifestDraft,
    ModelFile,
    Precision,
    ShotGroup,
    Task,
    TdeSpec,
    content_version,
    shot_group_of,
)
from service.masks import mask_runs, pack_counts
from service.parity import PARITY_TOLERANCE, Parity
from service.temperature import Calibration, knob_terms

__all__ = [
    "CLASSIFIER_FILE",
    "EVALUATION_FILE",
    "MANIFEST_FILE",
    "MODEL_FILES",
    "PARITY_FILE",
    "PARITY_TOLERANCE",
    "SAMPLES_FILE",
    "SCHEMA_VERSION",
    "SCHEMA_VERSIONS",
    "SHOT_GROUPS",
    "ActivationMaps",
    "AlphaSpec",
    "Bundle",
    "BundleError",
    "Calibration",
    "ClassInfo",
    "DetectionParity",
    "DetectionSpec",
    "HashedFile",
    "InputSpec",
    "Manifest",
    "ManifestDraft",
    "ModelFile",
    "Parity",
    "Precision",
    "ShotGroup",
    "Task",
    "TdeSpec",
    "area_at_half_energy",
    "knob_terms",
    "mask_runs",
    "pack_counts",
    "read_arrays",
    "read_bundle",
    "refuse_unfit_target",
    "shot_group_of",
    "write_bundle",
]

Content = bytes | Path
"""What a file of the bundle holds: the bytes themselves, or a file to copy."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: where it lies and what its manifest says."""

    path: Path
    manifest: Manifest

    def model_path(self, precision: Precision) -> Path | None:
        """Return the ONNX file of this precision, or None where the bundle has none."""
        for model in self.manifest.models:
            if model.precision == precision:
                return self.path / model.path
        return None

    def parity(self) -> Parity:
        """Read the parity samples of a classifier.

        Raises:
            BundleError: the file does not hold them, or they do not fit the manifest.
        """
        parity = Parity.load(self.path / PARITY_FILE)
        spec, classes = self.manifest.input, len(self.manifest.classes)
        if parity.images.shape[1:] != (spec.height, spec.width, 3) or parity.logits.shape[1] != classes:
            raise BundleError(
                f"{self.path / PARITY_FILE}: images {list(parity.images.shape)} and logits {list(parity.logits.shape)} "
                f"do not fit a model of {spec.height}x{spec.width} pixels and {classes} classes; export it again"
            )
        return parity

    def detection_parity(self) -> DetectionParity:
        """Read the parity samples of a detector.

        Raises:
            BundleError: the file does not hold them, or they do not fit the manifest.
        """
        parity, spec = DetectionParity.load(self.path / PARITY_FILE), self.manifest.input
        detection = self.manifest.detection
        assert detection is not None, "every detector says what it does"
        rows = (detection.max_detections, detection.mask_size, detection.mask_size)
        if parity.images.shape[1:] != (spec.height, spec.width, 3) or parity.masks.shape[1:] != rows:
            raise BundleError(
                f"{self.path / PARITY_FILE}: images {list(parity.images.shape)} and masks {list(parity.masks.shape)} "
                f"do not fit a detector of {spec.height}x{spec.width} pixels that returns {rows[0]} masks of {rows[1]}x"
                f"{rows[2]}; export it again"
            )
        if (highest := int(parity.labels.max())) >= len(self.manifest.classes):
            raise BundleError(
                f"{self.path / PARITY_FILE}: labels go up to {highest}, and there are {len(self.manifest.classes)} "
                "classes; export it again"
            )
        return parity


def read_bundle(path: Path | str) -> Bundle:
    """Read a bundle and verify all of it: the schema, the presence of every file, every hash.

    Raises:
        BundleError: what is wrong, where, and the remedy.
    """
    directory = Path(path)
    manifest = _read_manifest(directory)
    _refuse_missing_and_extra(directory, set(manifest.hashes()))
    for name, digest in manifest.hashes().items():
        _verify_file(directory, name, digest)
    return Bundle(directory, manifest)


def write_bundle(
    directory: Path | str,
    draft: ManifestDraft,
    *,
    models: Mapping[Precision, Content],
    files: Mapping[str, Content],
) -> Bundle:
    """Write a bundle whole or not at all, and return it as read back and verified.

    Everything is first written and synced in a temporary sibling folder, then renamed into place. A bundle
    that is already there stays until the new one is complete and verified; only the two renames lie between.

    Args:
        directory: the folder to make; its parents are made too.
        draft: what the model is; hashes, file list and version are added here.
        models: the ONNX files by precision; fp32 is required.
        files: the other files by name; `parity.npz` is required.

    Raises:
        BundleError: `directory` holds something that is not a bundle, or a content does not fit the schema.
    """
    target = Path(directory).absolute()
    _refuse_overwriting_strangers(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        _fill(staging, draft, models, files)
        manifest = read_bundle(staging).manifest
        _move_into_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Bundle(target, manifest)


def _fill(
    staging: Path, draft: ManifestDraft, models: Mapping[Precision, Content], files: Mapping[str, Content]
) -> None:
    model_files = [
        {
            "path": MODEL_FILES[precision],
            "precision": precision,
            "sha256": _write(staging, MODEL_FILES[precision], model),
        }
        for precision, model in models.items()
    ]
    other_files = [{"path": name, "sha256": _write(staging, name, content)} for name, content in files.items()]
    absent = {"detection"} if draft.detection is None else set()  # a field that releases before it do not know
    content: dict[str, Any] = draft.model_dump(mode="json", exclude=absent)
    content |= {"schema_version": SCHEMA_VERSIONS[draft.task], "models": model_files, "files": other_files}
    content["version"] = content_version(content)
    manifest = _validated(content, "the new manifest")
    _write(staging, MANIFEST_FILE, manifest.model_dump_json(indent=2, exclude_unset=True).encode() + b"\n")
    _sync_directory(staging)
    staging.chmod(0o755)


def _write(directory: Path, name: str, content: Content) -> str:
    """Write and sync one file; return its SHA-256."""
    if Path(name).name != name:
        raise BundleError(f"a file of a bundle lies directly in its folder, got {name!r}; use a plain file name")
    with (directory / name).open("xb") as sink:
        if isinstance(content, Path):
            with content.open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 20)
        else:
            sink.write(content)
        sink.flush()
        os.fsync(sink.fileno())
    return _hash(directory / name)


def _move_into_place(staging: Path, target: Path) -> None:
    retired = staging.with_suffix(".retired")
    if target.exists():
        target.rename(retired)
    try:
        staging.rename(target)
    except OSError:
        if retired.exists():
            retired.rename(target)
        raise
    _sync_directory(target.parent)
    shutil.rmtree(retired, ignore_errors=True)


def refuse_unfit_target(directory: Path | str) -> None:
    """Check that a bundle can be written there, before the work of making it; nothing is left there.

    Raises:
        BundleError: `directory` holds something that is not a bundle.
        OSError: nothing can be written there.
    """
    target = Path(directory).absolute()
    _refuse_overwriting_strangers(target)
    place = next(parent for parent in target.parents if parent.exists())
    with tempfile.TemporaryDirectory(dir=place):
        pass


def _refuse_overwriting_strangers(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError(f"{target} is not a folder; choose another place for the bundle")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST_FILE).is_file():
        raise BundleError(f"{target} holds files but no {MANIFEST_FILE}, so it is no bundle; choose another place")


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST_FILE
    if not directory.is_dir():
        raise BundleError(f"{directory} is no folder; give the folder that `export` wrote")
    if not path.exists() and not path.is_symlink():
        raise BundleError(f"{directory} holds no {MANIFEST_FILE}; give the folder that `export` wrote")
    _refuse_strange_file(directory, path)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # the last: brackets nested without end
        raise BundleError(f"{path} cannot be read as JSON: {error}; export the bundle again") from error
    return _validated(content, str(path))


def _validated(content: object, where: str) -> Manifest:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema_version is {version}, and this release reads up to {SCHEMA_VERSION}; upgrade evenkeel"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{where} does not follow the schema: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    def one(problem: ErrorDetails) -> str:
        field = ".".join(str(part) for part in problem["loc"]) or "manifest"
        message = problem["msg"].removeprefix("Value error, ")
        value = repr(problem["input"])
        return f"{field}: {message}" + (f" (got {value})" if len(value) <= 80 else "")

    return "; ".join(one(problem) for problem in error.errors(include_url=False))


def _refuse_missing_and_extra(directory: Path, expected: set[str]) -> None:
    present = {entry.name for entry in directory.iterdir()} - {MANIFEST_FILE}
    if missing := sorted(expected - present):
        raise BundleError(f"{directory} lacks {', '.join(missing)}, which its manifest names; copy or export it again")
    if extra := sorted(present - expected):
        raise BundleError(f"{directory} holds {', '.join(extra)}, which its manifest does not name; remove it")


def _verify_file(directory: Path, name: str, expected: str) -> None:
    path = directory / name
    _refuse_strange_file(directory, path)
    try:
        actual = _hash(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}; copy or export the bundle again") from error
    if actual != expected:
        raise BundleError(
            f"{path} has SHA-256 {actual}, and the manifest says {expected}: the file was changed or damaged; "
            "copy or export the bundle again"
        )


def _refuse_strange_file(directory: Path, path: Path) -> None:
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: what Python before 3.13 makes of a loop
        raise BundleError(f"{path} is a link that leads nowhere: {error}; put the file itself there") from error
    if not target.is_relative_to(directory.resolve()):
        raise BundleError(f"{path} is a link that leaves the bundle, to {target}; put the file itself there")
    if not path.is_file():
        raise BundleError(f"{path} is not a file; copy or export the bundle again")


def _hash(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
