"""The command line: train, evaluate, export. It wires the parts together and holds no logic of its own."""

import warnings
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.markup import escape

from trainer.errors import TrainerError
from trainer.progress import console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Train a de-confounded classifier on long-tailed images, evaluate it over alpha, export it for the service.",
)

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe's key; may be repeated.")
]
DataSource = Annotated[
    str | None, typer.Option("--data", metavar="SOURCE", help="Hub id or folder; in place of data.source.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.callback()
def _commands() -> None:
    """Keep the command's name on the command line, however many commands there are."""


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that comes with evenkeel, or a .yaml file.")],
    settings: Settings = None,
    data: DataSource = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run [default: runs/NAME].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    device: Device = "auto",
) -> None:
    """Train a recipe, choose its default alpha without the test set, and evaluate it."""
    from trainer.config import load_recipe  # noqa: PLC0415 - torch loads slowly; --help and typing errors need not wait
    from trainer.runs import train_run  # noqa: PLC0415

    overrides = [*(settings or []), *([f"data.source={yaml.safe_dump(data).splitlines()[0]}"] if data else [])]
    loaded = load_recipe(recipe, overrides)
    train_run(loaded, output or Path("runs") / loaded.name, device_name=device, resume=resume)


def main() -> None:
    """Run the command line; a fault in what was asked for ends with its message and exit status 1."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app()
    except TrainerError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
