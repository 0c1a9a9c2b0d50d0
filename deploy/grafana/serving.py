"""The dashboard *Serving*: whether requests are answered, how fast, and how much room is left."""

from deploy.grafana.panels import Dashboard, Panel, Variable
from deploy.grafana.queries import mean, quantile, rate

HERE = 'instance=~"$instance"'


def _stage(matcher: str) -> str:
    return f"{matcher}, {HERE}"


_RATE_AND_ERRORS = (
    Panel(
        "Ready",
        {"ready": f"sum(evenkeel_ready{{{HERE}}})", "answering": f'sum(up{{job="evenkeel", {HERE}}})'},
        kind="stat",
        width=4,
    ),
    Panel(
        "Requests",
        {"{{route}} {{status}}": rate("evenkeel_requests_total", HERE, "route, status")},
        unit="reqps",
        width=10,
    ),
    Panel(
        "Errors by code",
        {"{{code}}": rate("evenkeel_errors_total", HERE, "code")},
        unit="reqps",
        description="Each code is one row of the table in service/errors.py.",
        width=10,
    ),
)
_LATENCY = (
    Panel(
        "Time of a request",
        {
            f"p{percent}": quantile(percent / 100, "evenkeel_stage_seconds", _stage('stage="total"'))
            for percent in (50, 95, 99)
        },
        unit="s",
        width=12,
    ),
    Panel(
        "Time by stage, p95",
        {"{{stage}}": quantile(0.95, "evenkeel_stage_seconds", _stage('stage!="total"'), by="stage")},
        unit="s",
        description="Decoding is counted per request, the queue per image, inference per batch.",
        width=12,
    ),
)
_SATURATION = (
    Panel(
        "Batch size",
        {"mean": mean("evenkeel_batch_size", HERE), "p95": quantile(0.95, "evenkeel_batch_size", HERE)},
        description="Images in one run of the model. It grows with load; that is how throughput does.",
    ),
    Panel(
        "Queue",
        {
            "waiting": f"sum(evenkeel_queue_depth{{{HERE}}})",
            "in flight": f"sum(evenkeel_images_in_flight{{{HERE}}})",
            "room": f"sum(evenkeel_queue_capacity{{{HERE}}})",
        },
        description="Images. At the limit requests are turned away with 429.",
        dashed="room",
    ),
    Panel(
        "Saturation",
        {
            "model busy {{instance}}": rate("evenkeel_stage_seconds_sum", _stage('stage="inference"'), "instance")
            + f" / max by (instance) (evenkeel_runs_at_once{{{HERE}}})",
            "queue full {{instance}}": f"max by (instance) (evenkeel_queue_depth{{{HERE}}} / "
            f"evenkeel_queue_capacity{{{HERE}}})",
        },
        unit="percentunit",
        limits=(0, 1),
        description="Share of the runs that there may be at a time, and of the queue that is taken.",
    ),
    Panel(
        "Images not predicted",
        {"{{reason}}": rate("evenkeel_rejected_images_total", HERE, "reason")},
        description="Images a second, by reason.",
    ),
    Panel(
        "Runs of the model",
        {
            "runs": rate("evenkeel_batch_size_count", HERE),
            "failed": rate("evenkeel_failed_batches_total", HERE),
            "stopped answering": rate("evenkeel_stalls_total", HERE),
            "reload {{outcome}}": rate("evenkeel_reloads_total", HERE, "outcome"),
        },
        unit="ops",
    ),
    Panel(
        "Database",
        {
            "up": f"sum(evenkeel_store_up{{{HERE}}})",
            "waiting": f"sum(evenkeel_store_waiting{{{HERE}}})",
            "written": rate("evenkeel_store_written_total", HERE),
            "dropped": rate("evenkeel_store_dropped_total", HERE),
            "left out beyond the rate": rate("evenkeel_store_skipped_total", HERE),
            "policies' age in s, {{instance}}": f"evenkeel_policies_age_seconds{{{HERE}}}",
        },
        description="Predictions that wait, are written a second, or were dropped as too many waited. Policies older "
        "than some seconds: the database is away, and changes do not arrive. -1: never read.",
    ),
)
_DEVICE = (
    Panel("Provider", {"": f"evenkeel_model_info{{{HERE}}}"}, kind="table", width=24),
    Panel(
        "Processor",
        {"{{instance}}": f'rate(process_cpu_seconds_total{{job="evenkeel", {HERE}}}[$__rate_interval])'},
        description="Cores in use.",
        width=6,
    ),
    Panel(
        "Memory",
        {"{{instance}}": f'process_resident_memory_bytes{{job="evenkeel", {HERE}}}'},
        unit="bytes",
        width=6,
    ),
    Panel(
        "GPU in use",
        {"GPU {{gpu}}, {{Hostname}}": "DCGM_FI_DEV_GPU_UTIL"},
        unit="percent",
        limits=(0, 100),
        description="From NVIDIA's dcgm-exporter, where one runs beside a GPU; empty without.",
        width=6,
    ),
    Panel(
        "GPU memory",
        {
            "used, GPU {{gpu}}, {{Hostname}}": "DCGM_FI_DEV_FB_USED",
            "free, GPU {{gpu}}, {{Hostname}}": "DCGM_FI_DEV_FB_FREE",
        },
        unit="decmbytes",
        description="From NVIDIA's dcgm-exporter, where one runs beside a GPU; empty without.",
        width=6,
    ),
)

SERVING = Dashboard(
    uid="evenkeel-serving",
    title="Serving",
    description="Whether requests are answered, how fast, and how much room is left.",
    variables=(Variable("instance", "evenkeel_ready"),),
    rows={
        "Rate and errors": _RATE_AND_ERRORS,
        "Latency": _LATENCY,
        "Batches, queue, saturation": _SATURATION,
        "Provider and GPU": _DEVICE,
    },
)
