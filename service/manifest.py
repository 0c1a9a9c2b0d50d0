"""What a bundle's manifest may say: the schema that the trainer writes and the service reads.

It knows nothing of folders, files or hashing (`service.bundle`), of ONNX Runtime or of HTTP.
Every refusal names the field, the value and the remedy.
"""

import json
import re
from hashlib import sha256
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from service.temperature import Calibration

Task = Literal["classification", "detection"]

SCHEMA_VERSIONS: dict[Task, int] = {"classification": 1, "detection": 2}
"""The version that each task is written in: the oldest that has it, so that older services read what they can."""
SCHEMA_VERSION = max(SCHEMA_VERSIONS.values())
"""The newest that is read. A service that does not know a task yet says 'upgrade evenkeel'."""
MANIFEST_FILE = "manifest.json"
PARITY_FILE = "parity.npz"
EVALUATION_FILE = "evaluation.json"
"""Accuracy over alpha, for whoever wants to see it; not needed to serve."""
SAMPLES_FILE = "samples.npz"
"""Pictures to try, not needed to serve: `images` uint8 [N, H, W, 3], and `labels`, integers [N]; of a detector in place
of labels `sizes`, [N, 2], height and width of the picture in each."""

ShotGroup = Literal["many", "medium", "few"]
Precision = Literal["fp32", "fp16"]
Size = tuple[int, int]
Box = tuple[int, int, int, int]

SHOT_GROUPS: tuple[ShotGroup, ...] = ("many", "medium", "few")
MODEL_FILES: dict[Precision, str] = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}


class BundleError(Exception):
    """A bundle cannot be read or written as it is: says what, where, and the remedy."""


def shot_group_of(train_count: int) -> ShotGroup:
    """Return the shot group of a class: many above 100 training samples, few below 20, else medium.

    >>> [shot_group_of(count) for count in (101, 100, 20, 19)]
    ['many', 'medium', 'medium', 'few']
    """
    if train_count > 100:
        return "many"
    return "few" if train_count < 20 else "medium"


def _plain_file_name(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", path) or path == MANIFEST_FILE:
        raise ValueError(
            f"a file of a bundle lies directly in its folder and is not {MANIFEST_FILE}, got {path!r}; "
            "use letters, digits, '.', '_' and '-' only"
        )
    return path


def _single_line(text: str) -> str:
    if text != text.strip() or not text.isprintable():
        raise ValueError(f"a name is printable text without space around it, got {text!r}; clean the name")
    return text


def _an_integer(number: object) -> object:
    """Refuse what only equals one, as true and 1.0 do."""
    if type(number) is not int:
        raise ValueError("Input should be an integer; export the bundle again")
    return number


Finite = Annotated[float, Field(allow_inf_nan=False)]
FileName = Annotated[str, AfterValidator(_plain_file_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_single_line)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ClassInfo(_Strict):
    """One class: its name, how many training samples it had, and its shot group.

    In classification the group follows from the count. In detection the count is one of pictures with the class, which
    may be 0, and the group is what the data set says: LVIS's frequent, common and rare are many, medium and few.
    """

    name: Name
    train_count: int = Field(ge=0)
    shot_group: ShotGroup

    @classmethod
    def of(cls, name: str, train_count: int) -> Self:
        """Return the class of a classifier, with the shot group that its count implies."""
        return cls(name=name, train_count=train_count, shot_group=shot_group_of(train_count))


class InputSpec(_Strict):
    """How any picture becomes the model's pixels: decode, resize, crop. Normalisation lies in the graph.

    Attributes:
        resize, resize_size, interpolation: how Pillow resizes, with its filter as wide as the picture shrinks;
            'longest_side' is for detection.
        crop: 'after_resize' resizes the whole picture first; 'with_resize' only what the crop shows, in about 0.6 of
            the time: of a thousand numbers about one differs by 1.
        decoder: of JPEG, to the same pixels; 'pillow' patches damaged data up, 'simplejpeg' refuses it. All else is
            decoded by Pillow.
    """

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    resize: Literal["exact", "shortest_side", "longest_side"]
    resize_size: int | None = Field(default=None, ge=1, le=8192)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Finite, Finite, Finite]
    crop: Literal["after_resize", "with_resize"] = "after_resize"
    decoder: Literal["pillow", "simplejpeg"] = "simplejpeg"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, got {self.std}")
        if self.resize != "shortest_side" and self.resize_size is not None:
            raise ValueError(f"resize {self.resize!r} takes no resize_size, got {self.resize_size}; leave it out")
        if self.resize != "shortest_side" and self.crop == "with_resize":
            raise ValueError(
                f"crop 'with_resize' needs resize 'shortest_side', got {self.resize!r}, which crops nothing; drop it"
            )
        if self.resize == "shortest_side" and (self.resize_size or 0) < max(self.height, self.width):
            raise ValueError(
                f"resize 'shortest_side' needs a resize_size of at least {max(self.height, self.width)} "
                f"(the crop's longer side), got {self.resize_size}"
            )
        return self

    def geometry(self, width: int, height: int) -> tuple[Size, Box]:
        """Return the size to resize a picture to, and the box to crop from the result.

        The one pixel rule that training, export and serving share; both are fed to Pillow as they are:
        `image.resize(size, resample).crop(box)`, or what `source_window` says. 'exact' stretches to the input's size;
        'shortest_side' keeps the proportions (the longer side rounds down) and takes the central box; 'longest_side'
        is `fitted_size` and takes a box from the top left that may be larger: Pillow fills it up with zeros.

        Args:
            width, height: the decoded picture's size in pixels, after its EXIF orientation is applied.

        Returns:
            `(resized_width, resized_height), (left, top, right, bottom)`

        >>> spec = InputSpec(height=224, width=224, resize="shortest_side", resize_size=256,
        ...                  mean=(0, 0, 0), std=(1, 1, 1))
        >>> spec.geometry(500, 375)
        ((341, 256), (58, 16, 282, 240))
        """
        if self.resize == "longest_side":
            return self.fitted_size(width, height), (0, 0, self.width, self.height)
        if self.resize_size is None:
            return (self.width, self.height), (0, 0, self.width, self.height)
        shortest = min(width, height)
        resized_width = self.resize_size * width // shortest
        resized_height = self.resize_size * height // shortest
        left, top = round((resized_width - self.width) / 2), round((resized_height - self.height) / 2)
        return (resized_width, resized_height), (left, top, left + self.width, top + self.height)

    def fitted_size(self, width: int, height: int) -> Size:
        """Return the size at which a picture just fits the input: proportions kept, rounded half up, at least 1.

        Args:
            width, height: as `geometry` takes them.

        >>> spec = InputSpec(height=320, width=480, resize="longest_side", mean=(0, 0, 0), std=(1, 1, 1))
        >>> spec.fitted_size(640, 427), spec.fitted_size(10, 4000)
        ((480, 320), (1, 320))
        """
        if width * self.height >= height * self.width:
            return self.width, max(1, (2 * height * self.width + width) // (2 * width))
        return max(1, (2 * width * self.height + height) // (2 * height)), self.height

    def source_window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return what the crop shows of a picture, in its own pixels; for crop 'with_resize', again fed to Pillow.

        `image.resize((spec.width, spec.height), resample, window)`

        Args:
            width, height: as `geometry` takes them.

        >>> spec = InputSpec(height=224, width=224, resize="shortest_side", resize_size=256,
        ...                  mean=(0, 0, 0), std=(1, 1, 1))
        >>> spec.source_window(512, 512)
        (32.0, 32.0, 480.0, 480.0)
        """
        size, (left, top, right, bottom) = self.geometry(width, height)
        across, down = width / size[0], height / size[1]
        return left * across, top * down, right * across, bottom * down


class TdeSpec(_Strict):
    """The de-confounded classifier: K slices, temperature tau, gamma, and where its direction came from."""

    num_heads: int = Field(ge=1)
    tau: Finite = Field(gt=0)
    gamma: Finite = Field(ge=0)
    direction: Literal["ema", "dataset_mean"]
    direction_cosine: Annotated[float, Field(ge=-1.0001, le=1.0001)] | None = None
    """Cosine between the moving average of training and the mean feature of the training set."""


class AlphaSpec(_Strict):
    """The model's default alpha, how it was chosen, and the range that requests may choose from."""

    default: Finite
    chosen_by: Literal["validation", "mean_cosine", "recipe"]
    minimum: Finite = 0.0
    maximum: Finite

    @model_validator(mode="after")
    def _default_in_range(self) -> Self:
        if not self.minimum <= self.default <= self.maximum:
            raise ValueError(
                f"alpha needs minimum <= default <= maximum, got minimum {self.minimum}, "
                f"default {self.default}, maximum {self.maximum}; widen the range or choose another default"
            )
        return self


class DetectionSpec(_Strict):
    """What a detector does in its graph, and what is left to whoever draws its masks.

    Attributes:
        stages: of the cascade; their background-exempted probabilities are averaged.
        max_detections: M, the rows of every output.
        mask_size: m, the sides of a mask within its box.
        score_threshold: the lowest score that the graph returns.
        nms_iou: of two boxes of one class that overlap more than this the graph returns the better one.
        mask_threshold: the probability above which a pixel belongs to the object.
    """

    stages: int = Field(ge=1, le=16)
    max_detections: int = Field(ge=1, le=2000)
    mask_size: int = Field(ge=1, le=256)
    score_threshold: Finite = Field(ge=0, lt=1)
    nms_iou: Finite = Field(gt=0, le=1)
    mask_threshold: Finite = Field(gt=0, lt=1)


class ModelFile(_Strict):
    """An ONNX file of the bundle and the precision of its weights."""

    path: FileName
    precision: Precision
    sha256: Sha256


class HashedFile(_Strict):
    """Any other file of the bundle."""

    path: FileName
    sha256: Sha256


class ManifestDraft(_Strict):
    """What the trainer says about a model; the writer of the bundle adds files, hashes and version."""

    task: Task = "classification"
    name: ModelName
    classes: tuple[ClassInfo, ...] = Field(min_length=1)
    """In the order of the outputs; in detection the foreground alone."""
    input: InputSpec
    tde: TdeSpec
    alpha: AlphaSpec
    calibration: Calibration | None = None
    """The temperature of probabilities; None: 1 everywhere, as nothing was held out to fit it."""
    detection: DetectionSpec | None = None
    """Of a detector; None in classification."""
    provenance: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_its_task(self) -> Self:
        if self.task == "detection":
            self._is_a_detector()
        else:
            self._is_a_classifier()
        return self

    def _is_a_classifier(self) -> None:
        if self.detection is not None:
            raise ValueError(
                "detection: task 'classification' has no detection, got one; leave it out or set task to 'detection'"
            )
        if self.input.resize == "longest_side":
            raise ValueError(
                "input.resize: task 'classification' takes 'exact' or 'shortest_side', got 'longest_side'; use one"
            )
        if len(self.classes) < 2:
            raise ValueError(f"classes: a classifier has at least 2, got {len(self.classes)}; name all of them")
        for position, info in enumerate(self.classes):
            _refuse_wrong_group(f"classes.{position}", info)

    def _is_a_detector(self) -> None:
        if self.detection is None:
            raise ValueError("detection: task 'detection' needs one, got none; say stages, max_detections and so on")
        if self.input.resize != "longest_side":
            raise ValueError(
                f"input.resize: task 'detection' takes 'longest_side', got {self.input.resize!r}; use that one"
            )
        if self.calibration is not None:
            raise ValueError("calibration: task 'detection' has none, got one; leave it out")

    @model_validator(mode="after")
    def _class_names_differ(self) -> Self:
        _refuse_repeats("class name", [info.name for info in self.classes])
        return self

    @model_validator(mode="after")
    def _provenance_is_json(self) -> Self:
        try:
            json.dumps(self.provenance, allow_nan=False)
        except ValueError as error:
            raise ValueError("provenance holds a NaN or an infinity, which JSON lacks; use null") from error
        return self

    def log_class_share(self) -> NDArray[np.float64]:
        """Return the logarithm of each class's share of the training samples, [C]; of a classifier."""
        counts = np.array([info.train_count for info in self.classes], dtype=np.float64)
        log_share: NDArray[np.float64] = np.log(counts / counts.sum())
        return log_share

    def trained_cosine(self) -> float | None:
        """Return the mean confounder cosine of the training images, or None where the provenance does not say."""
        metrics = self.provenance.get("metrics")
        cosines = metrics.get("mean_cosine") if isinstance(metrics, dict) else None
        if not isinstance(cosines, list) or not cosines:
            return None
        numbers = [each for each in cosines if isinstance(each, int | float)]
        return sum(numbers) / len(numbers) if len(numbers) == len(cosines) else None


class Manifest(ManifestDraft):
    """The whole `manifest.json`. `version` is a hash of everything else, the files' hashes among it."""

    schema_version: Annotated[Literal[1, 2], BeforeValidator(_an_integer)]
    version: str = Field(pattern=r"^[0-9a-f]{16}$")
    models: tuple[ModelFile, ...]
    files: tuple[HashedFile, ...]

    @model_validator(mode="after")
    def _schema_version_is_the_tasks(self) -> Self:
        expected = SCHEMA_VERSIONS[self.task]
        if self.schema_version != expected:
            raise ValueError(
                f"schema_version: task {self.task!r} is written in version {expected}, got {self.schema_version}; "
                "export the bundle again"
            )
        return self

    @model_validator(mode="after")
    def _files_complete(self) -> Self:
        _refuse_repeats("file", [model.path for model in self.models] + [file.path for file in self.files])
        _refuse_repeats("precision of models", [model.precision for model in self.models])
        if "fp32" not in {model.precision for model in self.models}:
            raise ValueError("models lacks the fp32 file, which every provider can run; export it")
        if PARITY_FILE not in {file.path for file in self.files}:
            raise ValueError(f"files lacks {PARITY_FILE}, without which no one can tell a right model; export again")
        return self

    @model_validator(mode="after")
    def _version_is_the_contents_hash(self) -> Self:
        # A field that a manifest of an earlier release does not have was not hashed then either.
        expected = content_version(self.model_dump(mode="json", exclude_unset=True))
        if self.version != expected:
            raise ValueError(
                f"version is {self.version}, yet the content hashes to {expected}: "
                "the manifest was edited or damaged; export the bundle again"
            )
        return self

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every file beside the manifest, by name."""
        models = {model.path: model.sha256 for model in self.models}
        return models | {file.path: file.sha256 for file in self.files}


def content_version(content: dict[str, Any]) -> str:
    """Return the first 16 hex digits of the SHA-256 of a manifest's content, its `version` left out.

    >>> content_version({"name": "digits", "version": "ignored"}) == content_version({"name": "digits"})
    True
    """
    rest = {key: value for key, value in content.items() if key != "version"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(canonical.encode()).hexdigest()[:16]


def _refuse_wrong_group(where: str, info: ClassInfo) -> None:
    if info.train_count < 1:
        raise ValueError(
            f"{where}.train_count of class {info.name!r}: a classifier has at least 1, got 0; leave the class out"
        )
    expected = shot_group_of(info.train_count)
    if info.shot_group != expected:
        raise ValueError(
            f"{where}.shot_group of class {info.name!r} with {info.train_count} training samples is {expected!r}, "
            f"got {info.shot_group!r}; use ClassInfo.of(name, train_count)"
        )


def _refuse_repeats(what: str, names: list[Any]) -> None:
    seen: set[Any] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"each {what} occurs once, got {name!r} twice; rename or remove one")
        seen.add(name)
