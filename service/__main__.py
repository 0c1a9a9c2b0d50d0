"""The command line: `python -m service serve BUNDLE`.

Everything that can be refused is refused before the port opens, in one line, with exit status 2. SIGTERM first
turns readiness off, then waits, then closes the door, answers what was accepted, and exits with 0: whatever hangs, at
most `service.app.LONGEST_END` seconds after `drain_delay` and `shutdown_timeout`. Before it serves it exits at once.
"""

import signal
import sys

from service.ending import early, leave

if __name__ == "__main__":  # before what is imported below, which takes a second
    if sys.argv[1:2] == ["serve"]:
        early.hear()
    elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is begun that would be left undone

import asyncio
import gc
import logging
import math
import os
import socket
from pathlib import Path
from shlex import quote
from time import monotonic
from types import FrameType
from typing import Annotated, Literal, cast

import typer
import uvicorn
from pydantic import ValidationError

from service import commands
from service.app import create_app
from service.background import Background
from service.bundle import BundleError, read_bundle
from service.connections import Connection
from service.cores import keep_linear_algebra_to_its_thread
from service.front_door import FrontDoor
from service.listening import CannotListen, bind, is_open_to_others, listen, ready_for_crowds
from service.loading import Reloading, load_bundle
from service.memory import return_large_blocks, return_what_is_free
from service.session import ProviderUnavailable
from service.settings import Settings, misspelt, what_is_wrong
from service.telemetry import log_to_stderr
from service.tracing import TracingUnavailable
from service.triton import write_triton_model

logger = logging.getLogger(__name__)

_TICKS_A_SECOND = 10
"""How often the server calls `on_tick`."""

_ON_THE_WAY = 0.1
"""Seconds in which a request is read that its client sent before it could know that the door is closed."""

_LAST_WORDS = 0.5
"""Seconds for the answers to requests that were cut short."""

_TIDY = 10.0
"""Seconds between looks for memory that is free."""

_OPEN = (
    "other machines can reach this port, and whoever does may ask for predictions: set EVENKEEL_AUTHENTICATION=on, "
    "or EVENKEEL_HOST=127.0.0.1"
)

_REFUSED = "evenkeel does not start"

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
cli.add_typer(commands.clients, name="clients")
cli.command()(commands.tune)


@cli.callback()
def about() -> None:
    """Serve a classifier or a detector of pictures whose lean to rare classes each request chooses."""


@cli.command()
def serve(  # noqa: PLR0917 - typer needs them so
    bundle: Annotated[Path, typer.Argument(help="the folder that `export` wrote")],
    host: Annotated[str | None, typer.Option(help="address to listen on [EVENKEEL_HOST, 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on [EVENKEEL_PORT, 8000]")] = None,
    provider: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option(help="where the model runs [EVENKEEL_PROVIDER, auto]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="threads of ONNX Runtime [EVENKEEL_THREADS, the cores there really are]")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, typer.Option(help="[EVENKEEL_LOG_LEVEL, info]")
    ] = None,
) -> None:
    """Serve a bundle over HTTP. Every other setting is an environment variable, EVENKEEL_*."""
    early.hear()
    given = {"host": host, "port": port, "provider": provider, "threads": threads, "log_level": log_level}
    try:
        # Nothing is as good as not given, as in the environment: an empty host would be every address.
        settings = Settings(**{name: value for name, value in given.items() if value not in {None, ""}})  # type: ignore[arg-type]
    except ValidationError as error:
        typer.echo(f"{_REFUSED}: {what_is_wrong(error)}", err=True)
        sys.exit(2)
    log_to_stderr(settings.log_level, settings.log_format)
    try:
        sockets = bind(settings.host, settings.port)
        return_large_blocks()
        keep_linear_algebra_to_its_thread()
        loaded = load_bundle(bundle, settings, "")
        assert loaded is not None, "no bundle has an empty version"
        app = create_app(
            settings,
            loaded.model,
            loaded.exhibits,
            load=Reloading(bundle, settings, loaded.model.provider),
            bundle=bundle,
        )
        del loaded  # a new bundle takes its place one day
        listen(sockets, settings.host, settings.port)
        _warn_of_misspelt_settings()
        if is_open_to_others(sockets) and not settings.authentication:
            logger.warning(_OPEN)
    except (CannotListen, BundleError, ProviderUnavailable, TracingUnavailable) as error:
        logger.error("%s: %s", _REFUSED, error)
        sys.exit(2)
    _run(app, settings, sockets)


@cli.command()
def triton(
    bundle: Annotated[Path, typer.Argument(help="the folder that `export` wrote")],
    repository: Annotated[Path, typer.Argument(help="Triton's model repository; made if need be")],
    max_batch_size: Annotated[
        int, typer.Option(min=1, max=2**31 - 1, help="the largest batch that Triton may form")
    ] = 32,
) -> None:
    """Write a bundle's model into a model repository of NVIDIA Triton."""
    try:
        folder = write_triton_model(read_bundle(bundle), repository, max_batch_size=max_batch_size)
    except BundleError as error:
        typer.echo(f"evenkeel writes nothing: {error}", err=True)
        sys.exit(2)
    typer.echo(f"{folder} is written. Serve it: tritonserver --model-repository={quote(str(repository))}")


class DrainingServer(uvicorn.Server):
    """On SIGTERM stops being ready at once and stops accepting after a delay; on SIGINT stops accepting at once.

    On SIGHUP the bundle is read again, once it serves. When it has ended, so has the process.
    """

    def __init__(self, config: uvicorn.Config, app: FrontDoor) -> None:
        super().__init__(config)
        self._app = app
        self._closes_at: float | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal ends it, and the process with it."""
        await super().serve(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_WORDS)
        leave()  # from here: whoever runs this coroutine would wait for the threads of its loop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door and answer what was accepted, in the time that there is for it."""
        self._app.answers_until = monotonic() + self._app.service.settings.shutdown_timeout
        for server in self.servers:
            server.close()
        await asyncio.sleep(_ON_THE_WAY)
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where, as uvicorn does for sockets of its own only."""
        self._app.service.batcher.callers = lambda: len(self.server_state.tasks)
        await super().startup(sockets and ready_for_crowds(sockets))
        if self.started and sockets:
            self._log_started_message(sockets)

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """Have the bundle read again, on the event loop; end if it is the terminal that was closed."""
        if early.lost_terminal():
            self.handle_exit(signal.SIGTERM, frame)
        else:
            early.hung_up = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown; a second signal shortens the wait, a further SIGINT ends it."""
        if not self.started:
            early.end(sig, frame)
        self._app.service.readiness.end()
        if sig == signal.SIGTERM and self._closes_at is None:
            self._closes_at = monotonic() + self._app.service.settings.drain_delay
        elif self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Stop accepting once the delay is over; look after connections and the bundle."""
        if self._closes_at is not None and monotonic() >= self._closes_at:
            self.should_exit = True
        if counter % _TICKS_A_SECOND == 0:
            for connection in list(self.server_state.connections):
                cast(Connection, connection).look(monotonic(), self._app.service.settings.request_timeout)
        if early.hung_up and self._app.reloader:
            early.hung_up = False
            self._app.reloader.request()
        return await super().on_tick(counter)


def _warn_of_misspelt_settings() -> None:
    for variable, closest in misspelt(os.environ).items():
        meant = f"; is {closest} meant?" if closest else ""
        logger.warning("%s is no setting, and is ignored%s", variable, meant)


def _run(app: FrontDoor, settings: Settings, sockets: list[socket.socket]) -> None:
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,  # ours bears ids
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nothing here asks for a client's address
        http=Connection,
        ws="none",
        timeout_graceful_shutdown=max(1, math.ceil(settings.shutdown_timeout)),
    )
    server = DrainingServer(config, app)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, server.handle_hangup)
    _have_garbage_looked_for_seldom()
    Background("returning memory", _TIDY, return_what_is_free).start()
    server.run(sockets)


def _have_garbage_looked_for_seldom() -> None:
    """Leave out what was loaded, which stays: each look through it would hold up every request for 0.1 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # what requests leave behind goes by itself, nearly all of it


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli(prog_name="evenkeel-service")


if __name__ == "__main__":
    main()
