"""`service clients ...` and `service tune`: the operator's side of policies, on the database itself.

They need no running service and no admin key: whoever can write to the database may use them. What they change reaches
every running process within two seconds.
"""

import errno
import getpass
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from service.charts import picture, text_chart
from service.clients import ClientName, ClientPolicy, fit
from service.database import Database
from service.errors import PolicyMismatch, ServiceError, StoreUnavailable
from service.objectives import parse_objective
from service.policy_store import CHANGES_SHOWN, MOST_CHANGES, Change, PolicyStore, read_policy
from service.prediction_store import PredictionStore
from service.settings import Settings, what_is_wrong
from service.tune import Tuning
from service.tuning import apply, study

clients = typer.Typer(no_args_is_help=True, help="Who may ask, on what terms, with which keys.")

console = Console(highlight=False, soft_wrap=True, markup=False)

_NAMES: TypeAdapter[str] = TypeAdapter(ClientName)

Name = Annotated[str, typer.Argument(help="the client's name")]
Alpha = Annotated[float | None, typer.Option(help="alpha of requests that name none")]
AlphaMin = Annotated[float | None, typer.Option(help="lowest alpha that a request may ask for")]
AlphaMax = Annotated[float | None, typer.Option(help="highest alpha that a request may ask for")]
PriorStrength = Annotated[float | None, typer.Option(help="prior_strength of requests that name none")]
MaxPriorStrength = Annotated[float | None, typer.Option(help="highest prior_strength that a request may ask for")]
Rate = Annotated[float | None, typer.Option("--rate", help="most images a second, on average, in each process")]
Target = Annotated[
    Path | None, typer.Option(help="JSON file: each class's name and its share in this client's traffic")
]
Unset = Annotated[list[str] | None, typer.Option(help="a field to give back to the model; may be repeated")]
_FIELDS = {"rate": "images_per_second", "target": "target_distribution"}
"""Of a policy, by the options that are called otherwise."""


@clients.command()
def add(  # noqa: PLR0917 - typer needs them so
    name: Name,
    alpha: Alpha = None,
    alpha_min: AlphaMin = None,
    alpha_max: AlphaMax = None,
    prior_strength: PriorStrength = None,
    max_prior_strength: MaxPriorStrength = None,
    rate: Rate = None,
    target: Target = None,
) -> None:
    """Add a client and show its key, this once."""
    given = _given(locals())
    try:
        _NAMES.validate_python(name)
    except ValidationError:
        rule = "use up to 64 letters, digits, '.', '_' and '-', and neither 'anonymous' nor 'other'"
        _refuse(f"{name!r} is no client's name; {rule}")
    with _faults_in_a_line():
        policy = read_policy(given)
    with _stores(make=True) as (policies, predictions):
        _show_key(name, policies.add(name, policy, who=_who()))
        _warn_of_misfit(policy, predictions)


@clients.command("list")
def list_() -> None:
    """List all clients."""
    with _stores() as (policies, _):
        table = Table("client", "policy", "valid keys")
        for client in policies.clients():
            policy = client.policy.model_dump(exclude_none=True, exclude={"target_distribution"})
            shown = [f"{field} {value:g}" for field, value in policy.items()]
            shown += ["a target distribution"] if client.policy.target_distribution else []
            keys = ", ".join(key.id for key in client.keys if key.revoked_at is None)
            table.add_row(client.name, ", ".join(shown) or "the model's", keys)
        console.print(table)


@clients.command()
def show(name: Name) -> None:
    """Show a client with its keys and its newest changes."""
    with _stores() as (policies, _):
        client = policies.client(name)
        console.print_json(data=client.policy.model_dump(mode="json"))
        for key in client.keys:
            end = "" if key.revoked_at is None else f", revoked {_time(key.revoked_at)}"
            console.print(f"key {key.id}, made {_time(key.created_at)}{end}")
        for change in policies.changes(name):
            console.print(_told(change))


@clients.command()
def changes(
    name: Annotated[str | None, typer.Argument(help="the client's name; without it: all clients")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_CHANGES, help="how many of the newest")] = CHANGES_SHOWN,
) -> None:
    """Show the newest changes of a client, even of one that is removed, or of all."""
    with _stores() as (policies, _):
        for change in policies.changes(name, limit):
            console.print(f"{change.client}  {_told(change)}")


@clients.command("set")
def set_(  # noqa: PLR0917 - typer needs them so
    name: Name,
    alpha: Alpha = None,
    alpha_min: AlphaMin = None,
    alpha_max: AlphaMax = None,
    prior_strength: PriorStrength = None,
    max_prior_strength: MaxPriorStrength = None,
    rate: Rate = None,
    target: Target = None,
    unset: Unset = None,
) -> None:
    """Change some fields of a client's policy."""
    with _stores() as (policies, predictions):
        given = _given(locals())
        dropped = {_FIELDS.get(field, field.replace("-", "_")) for field in unset or ()}
        if both := sorted(given.keys() & dropped):
            _refuse(f"{', '.join(both)}: given and unset at once; do one of them")
        policy = policies.set(name, given | dict.fromkeys(dropped), who=_who())
        console.print_json(data=policy.model_dump(mode="json"))
        _warn_of_misfit(policy, predictions)


@clients.command()
def rotate(
    name: Name, keep: Annotated[bool, typer.Option("--keep", help="leave the other keys valid for now")] = False
) -> None:
    """Make a new key, show it this once, and revoke the others."""
    with _stores() as (policies, _):
        _show_key(name, policies.rotate(name, keep=keep, who=_who()))


@clients.command()
def revoke(name: Name, key: Annotated[str, typer.Argument(help="the key's id, as `show` tells it")]) -> None:
    """Revoke one key of a client."""
    with _stores() as (policies, _):
        policies.revoke(name, key, who=_who())
        console.print(f"The key {key} of {name} is revoked.")


@clients.command()
def remove(name: Name) -> None:
    """Remove a client with its keys, kept predictions and labels."""
    with _stores() as (policies, _):
        policies.remove(name, who=_who())
        console.print(f"{name} is removed.")


def tune(
    name: Name,
    objective: Annotated[
        str, typer.Option(help="overall, balanced, many=1,medium=1,few=2, or few>=0.4 then overall")
    ] = "balanced",
    knobs: Annotated[Literal["alpha", "both"], typer.Option(help="alpha alone, or prior_strength too")] = "alpha",
    plot: Annotated[Path | None, typer.Option(help="write the chart as a picture (needs matplotlib)")] = None,
    change: Annotated[bool, typer.Option("--apply", help="set what is recommended")] = False,
) -> None:
    """Say which knobs would have served a client best, from the labels of its own predictions."""
    with _stores() as (policies, predictions):
        wanted, limit = parse_objective(objective), Settings().max_prior_strength
        found = study(
            name,
            wanted,
            knobs,
            model=predictions.newest_model(),
            policies=policies,
            predictions=predictions,
            max_prior_strength=limit,
        )
        if found.tuning is not None:
            console.print(f"By labels of the model {found.model}, the last that a service began to serve:")
            _print(found.tuning)
            if plot is not None:
                _draw(found.tuning, plot)
        if found.keep is not None or found.tuning is None:
            console.print(f"Keep what you have: {found.keep}.")
        elif change:
            apply(found.tuning.best, name, knobs, policies=policies, who=f"{_who()} tune {objective}")
            console.print(f"Applied to {name}.")
        else:
            console.print("Run it again with --apply to set this.")


def _print(tuning: Tuning) -> None:
    console.print(text_chart(tuning))
    table = Table("", "now", "best", "95% of resamples")
    rows = (
        ("alpha", tuning.current.alpha, tuning.best.alpha, tuning.alpha_interval),
        ("prior_strength", tuning.current.prior_strength, tuning.best.prior_strength, tuning.strength_interval),
    )
    for label, now, best, (low, high) in rows:
        table.add_row(label, f"{now:.3f}", f"{best:.3f}", f"{low:.3f} to {high:.3f}")
    for label, value in tuning.before.items():
        table.add_row(label, f"{value:.3f}", f"{tuning.after[label]:.3f}", "")
    low, high = tuning.gain_interval
    table.add_row(f"gain in {tuning.objective.goal}", "", f"{tuning.gain:+.3f}", f"{low:+.3f} to {high:+.3f}")
    for name, floor in tuning.floors.items():
        met = ("met" if each else "not met" for each in (floor.met_before, floor.met_after))
        table.add_row(f"{name} >= {floor.least:g}", *met, "")
    console.print(table)
    groups = ", ".join(f"{count} {group}" for group, count in tuning.by_group.items())
    console.print(f"{tuning.labels} labels: {groups}. Expected gain on new pictures: {tuning.expected_gain:+.3f}.")


def _draw(tuning: Tuning, path: Path) -> None:
    try:
        picture(tuning, path)
    except ImportError:
        _refuse("a picture needs matplotlib; pip install matplotlib, or do without --plot")
    except (OSError, ValueError) as error:
        _refuse(f"--plot {path}: {error}; name a file such as chart.png in a folder that is there")
    console.print(f"Drawn in {path}.")


@contextmanager
def _stores(*, make: bool = False) -> Iterator[tuple[PolicyStore, PredictionStore]]:
    """Open the database, or make it; whatever is wrong ends the command in one line."""
    try:
        database = Database(Settings().database_url)
    except ValidationError as error:
        _refuse(what_is_wrong(error))
    try:
        with _faults_in_a_line():
            database.migrate(make=make)
            yield PolicyStore(database), PredictionStore(database)
    finally:
        database.close()


@contextmanager
def _faults_in_a_line() -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        _refuse(str(error))
    except ServiceError as error:
        given = "" if error.value is None else f" Given: {error.value!r}."
        _refuse(f"{error.message}{given} {error.remedy or ''}".strip())
    except OSError as error:
        _refuse(f"what was to be shown cannot be written: {error}")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    names = ("alpha", "alpha_min", "alpha_max", "prior_strength", "max_prior_strength")
    given = {name: options[name] for name in names} | {"images_per_second": options["rate"]}
    if options["target"] is not None:
        try:
            given["target_distribution"] = json.loads(options["target"].read_text())
        except (OSError, ValueError) as error:
            _refuse(f"{options['target']} cannot be read as JSON: {error}")
    return {name: value for name, value in given.items() if value is not None}


def _warn_of_misfit(policy: ClientPolicy, predictions: PredictionStore) -> None:
    """Say so where the policy does not fit the model that was served last; a later one may fit."""
    version = predictions.newest_model()
    manifest = None if version is None else predictions.model(version)
    if manifest is None:
        return
    try:
        fit(policy, manifest, Settings().max_prior_strength)
    except PolicyMismatch as error:
        typer.echo(f"evenkeel: {error.message} While {manifest.name} is served its requests get 409.", err=True)


def _show_key(name: str, key: str) -> None:
    try:
        if sys.stdout is None:  # closed, where `print` says nothing
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(f"{key}\nKeep it: it is kept hashed here, and shown this once.", flush=True)  # noqa: T201 - to the letter
    except OSError as error:
        _refuse(f"{name} has a new key, which cannot be shown: {error}; make another with `clients rotate {name}`")


def _who() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a number without a name, as in a container
        return "cli"


def _told(change: Change) -> str:
    states = " -> ".join(json.dumps(state) for state in (change.before, change.after) if state is not None)
    return f"{_time(change.at)}  {change.what} by {change.who}: {states}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _refuse(reason: str) -> NoReturn:
    typer.echo(f"evenkeel: {reason}", err=True)
    with suppress(OSError, AttributeError):  # closed, it is None
        sys.stdout.flush()
        sys.exit(2)
    os._exit(2)  # what it could not write Python would try to write once more, and complain
