"""The bodies of HTTP requests and answers, as pydantic models.

The JSON request is validated with them; answers are built directly and only documented by them (the tests hold
every answer against its model).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.bundle import AlphaSpec, Calibration, ClassInfo, DetectionSpec, InputSpec, ShotGroup, Task, TdeSpec
from service.clients import ClientName, ClientPolicy
from service.exhibits import AccuracyOverAlpha, PrecisionOverAlpha
from service.settings import MOST_IMAGES

Number = Annotated[float, Field(strict=True)]

LONGEST_LABEL = 200


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ImageInput(_Closed):
    """A picture in a JSON request, with its own knobs where they differ from the request's."""

    data: str = Field(strict=True, description="the picture's file in base64 (RFC 4648, with padding)")
    alpha: Number | None = Field(None, description="this picture's alpha; else the request's, else the model's")
    prior_strength: Number | None = Field(None, description="this picture's prior_strength; else the request's, else 0")


class PredictRequest(_Closed):
    """A JSON request. Options may stand here or in the query string, each in one place."""

    images: list[ImageInput] = Field(min_length=1, max_length=MOST_IMAGES)
    alpha: Number | None = None
    prior_strength: Number | None = None
    top_k: Annotated[int, Field(strict=True)] | None = None
    breakpoints: Annotated[bool, Field(strict=True)] | None = None
    lines: Annotated[bool, Field(strict=True)] | None = None
    explain: Annotated[bool, Field(strict=True)] | None = None


class ClassReference(_Closed):
    """A class: its name, its index in the model's outputs, its shot group."""

    label: str
    index: int
    shot_group: ShotGroup


class Prediction(ClassReference):
    """A class with its probability and logit at the alpha and prior_strength used.

    The probability is the softmax of logit / T, with the model's temperature T at these knobs where it has one.
    """

    probability: float
    logit: float


class Breakpoint(_Closed):
    """An alpha at which the winner changes, as alpha rises."""

    alpha: float
    from_: ClassReference = Field(alias="from")
    to: ClassReference


class Lines(_Closed):
    """Both branch logits by class index: with the classes' training counts, every knob's answer follows from them.

    Where the client states the class distribution of its traffic, the factual logits contain it.
    """

    factual_logits: list[float]
    counterfactual_logits: list[float]


class ActivationMap(ClassReference):
    """Where in the picture a class's logit comes from: row by row from the top left, in the model's view of it."""

    alpha: float
    logit: float = Field(
        description="the sum of the values: factual - alpha * counterfactual, without prior correction and bias"
    )
    area_at_half_energy: float | None = Field(
        description="the smallest share of the places that holds half of the positive values; null: there are none"
    )
    values: list[list[float]]


class ImageAnswer(_Closed):
    """What is said of one picture."""

    predictions: list[Prediction] = Field(description="the top_k classes, the most likely first")
    prediction_id: str = Field(description="what to call this prediction when its true class is sent to /feedback")
    alpha: float = Field(description="the alpha used")
    alpha_source: Literal["request", "client", "model"] = Field(description="who chose it")
    prior_strength: float = Field(description="the prior_strength used")
    plain: ClassReference = Field(description="the winner at alpha 0 and the same prior_strength")
    stable_interval: tuple[float, float] = Field(
        description="the stretch of alpha around the one used, within the model's range, with the same winner"
    )
    confounder_cosine: float = Field(
        description="cosine between the picture's features and the momentum direction, mean over the slices"
    )
    breakpoints: list[Breakpoint] | None = Field(
        None, description="on request: every alpha of the model's range at which the winner changes, ascending"
    )
    lines: Lines | None = Field(
        None,
        description="on request: factual - alpha * counterfactual - prior_strength * log(class share) is the logit",
    )
    activation_maps: list[ActivationMap] | None = Field(
        None,
        description="on request: of the winner at the alpha used and at 0, and of the plain winner at 0 if another",
    )


class ModelReference(_Closed):
    """Which model answered."""

    name: str
    version: str


class PredictResponse(_Closed):
    """The answer to a prediction request in any form: one entry per picture, in the request's order."""

    model: ModelReference
    images: list[ImageAnswer]


class ModelResponse(ModelReference):
    """What is public of the model that is served."""

    task: Task
    classes: list[ClassInfo]
    input: InputSpec
    tde: TdeSpec
    alpha: AlphaSpec
    calibration: Calibration | None = Field(
        description="the temperature of the probabilities over both knobs; null: 1, they are not calibrated"
    )
    detection: DetectionSpec | None = Field(description="what a detector does; null in classification")
    max_prior_strength: float = Field(description="0 in detection, which has no prior_strength")
    provider: str
    precision: str


class KnobTerms(_Closed):
    """What a request may choose a knob from, and what it gets if it names none."""

    minimum: float
    maximum: float
    default: float


class TermsResponse(_Closed):
    """What whoever asks may ask of the model that is served."""

    alpha: KnobTerms
    prior_strength: KnobTerms


class EvaluationResponse(_Closed):
    """How good the model was on its test pictures; null where its bundle does not say."""

    test_images: int | None
    accuracy: AccuracyOverAlpha | None
    average_precision: PrecisionOverAlpha | None = Field(description="of a detector")


class SampleReference(_Closed):
    """A picture to try."""

    path: str = Field(description="where it is, from the service's root")
    truth: ClassReference | None = Field(description="its true class; null where the bundle does not say")


class SamplesResponse(_Closed):
    """The pictures to try."""

    samples: list[SampleReference]


class StatusResponse(_Closed):
    """The answer to a health question."""

    status: Literal["alive", "ready"]


class FeedbackItem(_Closed):
    """The true class of one prediction."""

    prediction_id: str = Field(strict=True, max_length=64)
    label: Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True, max_length=LONGEST_LABEL)] = Field(
        description="the class by name, or by its index in the model's outputs"
    )


class FeedbackRefusal(_Closed):
    """A label that was not accepted: where it stood in the request, and why."""

    position: int
    prediction_id: str | None = Field(description="null where it could not be read, as label")
    label: str | int | None
    code: Literal["unknown_prediction", "unknown_label", "malformed"]
    message: str


class FeedbackResponse(_Closed):
    """How many labels were accepted, of one prediction the last being kept, and which were not."""

    accepted: int
    refused: list[FeedbackRefusal]


class NewClient(ClientPolicy):
    """A client to add: its name and its policy."""

    name: ClientName


class KeyInfo(_Closed):
    """What may be shown of a key after it was made; times are seconds since 1970."""

    id: str
    created_at: float
    revoked_at: float | None


class NewKey(_Closed):
    """A key that was just made. It is shown this once."""

    name: str
    key: str
    key_id: str


class ClientInfo(_Closed):
    """A client as it is kept."""

    name: str
    policy: ClientPolicy
    created_at: float
    keys: list[KeyInfo]


class ChangeInfo(_Closed):
    """One entry of the log of changes."""

    at: float
    who: str
    client: str
    what: Literal["add", "set", "rotate", "revoke", "remove"]
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class ClientDetails(ClientInfo):
    """A client with its newest changes."""

    changes: list[ChangeInfo]


class ChangesResponse(_Closed):
    """The newest changes, the newest first."""

    changes: list[ChangeInfo]


class ClientsResponse(_Closed):
    """All clients."""

    clients: list[ClientInfo]


class KnobsInfo(_Closed):
    """Both knobs."""

    alpha: float
    prior_strength: float


class CurveInfo(_Closed):
    """Accuracy over alpha, exactly: the n-th value holds up to the n-th breakpoint, the last one to the maximum."""

    minimum: float
    maximum: float
    breakpoints: list[float]
    overall: list[float]
    balanced: list[float]
    many: list[float] | None = None
    medium: list[float] | None = None
    few: list[float] | None = None


class FloorInfo(_Closed):
    """What an objective demands of an accuracy first, and what becomes of it."""

    least: float
    before: float = Field(description="at the current knobs, on these labels")
    after: float = Field(description="at the best knobs, on these labels")
    met_before: bool
    met_after: bool


class TradeoffResponse(_Closed):
    """What a client's labels say of its knobs. Where they do not suffice, `keep` says why and the rest is missing."""

    client: str
    model_version: str | None
    objective: str
    labels: int
    keep: str | None = Field(description="why the current knobs should stay; null: they should change to the best")
    current: KnobsInfo | None
    labels_by_group: dict[ShotGroup, int] | None = None
    best: KnobsInfo | None = Field(
        None, description="where no knobs meet the objective's floors: those that come nearest"
    )
    before: dict[str, float] | None = Field(None, description="accuracies at the current knobs, on these labels")
    after: dict[str, float] | None = Field(None, description="accuracies at the best knobs, on these labels")
    alpha_interval: tuple[float, float] | None = Field(None, description="95% of bootstrap resamples")
    prior_strength_interval: tuple[float, float] | None = None
    floors: dict[str, FloorInfo] | None = Field(None, description="what the objective puts first, by accuracy")
    gain: float | None = Field(
        None, description="what the best knobs gain, on these labels, in what the objective makes large, floors aside"
    )
    gain_interval: tuple[float, float] | None = None
    expected_gain: float | None = Field(None, description="the gain on labels that a choice has not seen")
    curve: CurveInfo | None = Field(None, description="at the best prior_strength")


class ErrorResponse(_Closed):
    """What is wrong, where, with which value, and what to do about it."""

    code: str
    message: str
    field: str | None
    value: str | int | float | bool | None
    remedy: str | None
