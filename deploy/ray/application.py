"""Ray Serve: the service as replicas, each with the whole app, its own batcher and its own model.

`serve run deploy.ray.application:application bundle=bundles/digits_lt`

A replica is `create_app` under the settings (EVENKEEL_*) of whoever starts it; Ray finds the machines, sends requests
and counts those under way to scale. It knows nothing of what is served.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from service.app import create_app
from service.cores import keep_linear_algebra_to_its_thread
from service.front_door import FrontDoor
from service.loading import Reloading, load_bundle
from service.memory import return_large_blocks
from service.settings import Settings
from service.telemetry import log_to_stderr


class Arguments(BaseModel):
    """What `serve run` takes as `name=value`."""

    model_config = ConfigDict(extra="forbid")

    bundle: str = Field(description="the folder that export wrote, on every node")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    cpus: float = Field(1, gt=0, description="cores of one replica, and the threads of ONNX Runtime where none are set")
    gpus: float = Field(0, ge=0, description="GPUs of one replica; with EVENKEEL_PROVIDER=cuda")
    max_replicas_per_node: int | None = Field(None, ge=1, le=100)


def application(arguments: dict[str, Any]) -> serve.Application:
    """Return the application for `serve run`.

    Raises:
        ValidationError: a wrong argument or setting, before anything is started.
    """
    wanted, settings = Arguments(**arguments), Settings()
    settings = settings.model_copy(update={"threads": settings.threads or max(1, int(wanted.cpus))})
    bundle = Path(wanted.bundle).absolute()

    def build() -> FrontDoor:
        return build_app(bundle, settings)

    replica = serve.deployment(
        name="evenkeel",
        autoscaling_config={
            "min_replicas": wanted.min_replicas,
            "max_replicas": max(wanted.min_replicas, wanted.max_replicas),
            "target_ongoing_requests": settings.max_batch_size,
        },
        # Above what a replica admits, so that its own 429 with Retry-After answers; Ray would have requests wait.
        max_ongoing_requests=2 * (settings.max_queue_size + settings.max_batch_size),
        max_queued_requests=settings.max_queue_size,
        max_replicas_per_node=wanted.max_replicas_per_node,
        ray_actor_options={"num_cpus": wanted.cpus, "num_gpus": wanted.gpus},
        # Ray waits until nothing is under way, then the app's lifespan ends: the batcher has its time as well.
        graceful_shutdown_wait_loop_s=max(0.1, settings.drain_delay),
        graceful_shutdown_timeout_s=settings.drain_delay + settings.shutdown_timeout + 10,
        health_check_period_s=2,
    )(serve.ingress(build)(Evenkeel))
    bound: serve.Application = replica.bind()
    return bound


class Evenkeel:
    """One replica. Ray replaces it once it has not been ready three times in a row."""

    app: FrontDoor

    async def check_health(self) -> None:
        """Raise what Ray takes as 'not healthy'."""
        reason = self.app.service.readiness.reason
        if reason is not None:
            raise RuntimeError(reason)


def build_app(bundle: Path, settings: Settings) -> FrontDoor:
    """Load the model and assemble the app, as `service serve` does."""
    log_to_stderr(settings.log_level, settings.log_format)
    return_large_blocks()
    keep_linear_algebra_to_its_thread()
    loaded = load_bundle(bundle, settings, "")
    assert loaded is not None, "no bundle has an empty version"
    return create_app(
        settings, loaded.model, loaded.exhibits, load=Reloading(bundle, settings, loaded.model.provider), bundle=bundle
    )
