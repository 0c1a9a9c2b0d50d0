"""The dashboard *Head and tail*: what the knobs do to each client's answers, and what its labels say of them."""

from deploy.grafana.panels import Dashboard, Panel, Variable
from deploy.grafana.queries import mean, quantile, rate, share

WHOSE = 'client=~"$client"'
_PREDICTIONS = "evenkeel_client_predictions_total"
_FEW = 'shot_group="few"'
_TRAINED = "avg(evenkeel_confounder_cosine_trained)"


def _of_a_client(metric: str, where: str = WHOSE) -> str:
    return f"{rate(metric, where, 'client')} / {rate(_PREDICTIONS, WHOSE, 'client')}"


def _accuracy(by: str) -> str:
    right = rate("evenkeel_feedback_total", f'outcome="right", {WHOSE}', by, over="1h")
    return f"{right} / {rate('evenkeel_feedback_total', WHOSE, by, over='1h')}"


_KNOBS = (
    Panel(
        "Alpha served, by client",
        {"{{client}}": mean("evenkeel_client_alpha", WHOSE, "client")},
        description="Mean. 0 is the plain de-confounded model; more leans to the tail.",
    ),
    Panel(
        "Recommended against current alpha",
        {
            "current: {{client}}": f"avg by (client) (evenkeel_client_current_alpha{{{WHOSE}}})",
            "recommended: {{client}}": f"avg by (client) (evenkeel_client_recommended_alpha{{{WHOSE}}})",
        },
        dashed="recommended",
        description="Current: of requests that name none. Recommended: what `service tune CLIENT` says of its labels, "
        "which may be to keep the current one; none where labels are too few.",
    ),
    Panel(
        "Alpha and prior_strength",
        {
            **{f"alpha p{percent}": quantile(percent / 100, "evenkeel_alpha", "") for percent in (10, 50, 90)},
            "prior_strength {{client}}": mean("evenkeel_client_prior_strength", WHOSE, "client"),
        },
        description="Alpha over all clients; the mean of prior_strength by client.",
    ),
)
_ANSWERS = (
    Panel(
        "Answers by shot group",
        {"{{shot_group}}": share(_PREDICTIONS, WHOSE, _PREDICTIONS, "shot_group")},
        unit="percentunit",
        stacked=True,
        limits=(0, 1),
        description="By training samples of the class that won: many (over 100), medium, few (under 20). Over the "
        "clients that are chosen.",
    ),
    Panel(
        "Few-shot answers, by client",
        {
            "{{client}}": _of_a_client(_PREDICTIONS, f"{_FEW}, {WHOSE}"),
            "all": f"{rate('evenkeel_predictions_total', _FEW)} / {rate('evenkeel_predictions_total', '')}",
        },
        unit="percentunit",
        dashed="all",
    ),
    Panel(
        "Flips between groups",
        {
            "{{from_group}} to {{to_group}}": share(
                "evenkeel_client_flips_total", WHOSE, _PREDICTIONS, "from_group, to_group"
            )
        },
        unit="percentunit",
        stacked=True,
        description="Share of predictions whose winner is not that of alpha 0, by the shot groups of both. Over the "
        "clients that are chosen.",
    ),
    Panel(
        "Changed by the knob, by client",
        {
            "{{client}}": _of_a_client("evenkeel_client_flips_total"),
            "all": f"{rate('evenkeel_flips_total', '')} / {rate('evenkeel_predictions_total', '')}",
        },
        unit="percentunit",
        dashed="all",
        description="Share of predictions whose winner is not that of alpha 0.",
        width=6,
    ),
    Panel(
        "Near a breakpoint, by client",
        {"{{client}}": _of_a_client("evenkeel_client_near_breakpoint_total")},
        unit="percentunit",
        description="Share of predictions whose winner changes within 0.1 of the alpha served: what hangs on it.",
        width=6,
    ),
    Panel(
        "Predictions, by client",
        {"{{client}}": rate(_PREDICTIONS, WHOSE, "client")},
        unit="ops",
        width=6,
    ),
    Panel(
        "Detections by shot group",
        {
            "{{shot_group}}": rate("evenkeel_client_detections_total", WHOSE, "shot_group"),
            "all": rate("evenkeel_detections_total", ""),
        },
        unit="ops",
        dashed="all",
        description="Of a detector, over the clients that are chosen: objects answered, by the shot group of their "
        "class; and all, over all clients. A detector has no winners, and the panels of answers stay empty.",
        width=6,
    ),
)
_DRIFT = (
    Panel(
        "Confounder cosine",
        {
            "mean": "avg(evenkeel_confounder_cosine_mean)",
            **{f"p{percent}": quantile(percent / 100, "evenkeel_confounder_cosine", "") for percent in (10, 50, 90)},
            "training": _TRAINED,
        },
        dashed="training",
        description="How far features point in the direction of the frequent classes, over all clients, and the mean "
        "over the training images, where the bundle says it.",
        width=12,
    ),
    Panel(
        "Drift of the confounder cosine, by client",
        {
            "{{client}}": f"avg by (client) (evenkeel_client_confounder_cosine_mean{{{WHOSE}}}) - scalar({_TRAINED})",
        },
        description="Mean over about the last 1,000 predictions less that of the training images. Far from 0: other "
        "pictures than in training, and alpha may want choosing anew.",
        width=12,
    ),
)
_FEEDBACK = (
    Panel(
        "Accuracy by shot group, from feedback",
        {"{{shot_group}}": _accuracy("shot_group")},
        unit="percentunit",
        limits=(0, 1),
        description="Of labels received in the last hour, by the true class's shot group. Over the clients that are "
        "chosen.",
    ),
    Panel(
        "Accuracy by client, from feedback",
        {"{{client}}": _accuracy("client")},
        unit="percentunit",
        limits=(0, 1),
    ),
    Panel(
        "Labels received",
        {"{{client}} {{outcome}}": rate("evenkeel_feedback_total", WHOSE, "client, outcome")},
        unit="ops",
    ),
)

HEAD_AND_TAIL = Dashboard(
    uid="evenkeel-head-and-tail",
    title="Head and tail",
    description="What the knobs do to each client's answers, and what its labels say of them.",
    variables=(Variable("client", _PREDICTIONS),),
    rows={
        "The knobs": _KNOBS,
        "Answers": _ANSWERS,
        "Drift": _DRIFT,
        "Feedback": _FEEDBACK,
    },
    hours=6,
)
