"""The command line: train, evaluate, compare, export, of either task. It wires the parts together, no more."""

import json
import math
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from trainer.errors import TrainerError
from trainer.progress import console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Train a de-confounded classifier or detector on long-tailed images, evaluate it over alpha, export it.",
)


def _finite(given: float | list[float] | None) -> float | list[float] | None:
    """Refuse an alpha that is no number at once, before anything is loaded or trained."""
    for alpha in given if isinstance(given, list) else [given]:
        if alpha is not None and not math.isfinite(alpha):
            raise TrainerError(f"--alpha: must be a finite number, got {alpha}")
    return given


Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe's key; may be repeated.")
]
DataSource = Annotated[
    str | None, typer.Option("--data", metavar="SOURCE", help="Hub id or folder; in place of data.source.")
]


def _folder_of(run: Path) -> Path:
    """Take a run's checkpoint for the run, of which commands read other files too."""
    return run.parent if run.name == "checkpoint.safetensors" and run.is_file() else run


Run = Annotated[Path, typer.Argument(help="Folder of a finished run, as given to train --output.", callback=_folder_of)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.callback()
def _commands() -> None:
    """Keep the command's name on the command line, however many commands there are."""


@app.command()
def train(  # noqa: PLR0917 - typer calls it by name
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that comes with evenkeel, or a .yaml file.")],
    settings: Settings = None,
    data: DataSource = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run.", show_default="runs/NAME")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    device: Device = "auto",
) -> None:
    """Train a recipe, choose its default alpha without the test set, and evaluate it."""
    from trainer.config import Recipe, read_recipe  # noqa: PLC0415 - torch loads slowly; typing errors need not wait
    from trainer.detection.recipe import DetectionRecipe  # noqa: PLC0415

    loaded = read_recipe(recipe, _overrides(settings, data))
    folder = output or Path("runs") / loaded.name
    if isinstance(loaded, Recipe):
        from trainer.runs import train_run  # noqa: PLC0415

        train_run(loaded, folder, device_name=device, resume=resume)
    elif isinstance(loaded, DetectionRecipe):
        from trainer.detection.runs import train_detector  # noqa: PLC0415

        train_detector(loaded, folder, device_name=device, resume=resume)


@app.command()
def evaluate(  # noqa: PLR0917 - typer calls it by name
    run: Run,
    data: DataSource = None,
    alpha: Annotated[
        list[float] | None, typer.Option(help="Also report this alpha; may be repeated.", callback=_finite)
    ] = None,
    split: Annotated[str, typer.Option(help="test, or of a detector train.")] = "test",
    steps: Annotated[
        int | None, typer.Option(min=2, help="Alphas over the range, of a detector.", show_default="its alpha_steps")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure accuracy, or a detector's AP, over alpha on the test split; writes evaluation.json and a plot."""
    from trainer.checkpoint import task_of  # noqa: PLC0415

    if task_of(run) == "detection":
        from trainer.detection.runs import evaluate_detector_run  # noqa: PLC0415

        evaluate_detector_run(run, data=data, device_name=device, alphas=alpha or [], split=split, steps=steps)
        return
    from trainer.runs import evaluate_run  # noqa: PLC0415

    if split != "test" or steps:
        raise TrainerError("--split and --steps: a classifier's curve over its test split is exact; leave them out")
    evaluate_run(run, data=data, device_name=device, alphas=alpha or [])


@app.command()
def compare(  # noqa: PLR0917 - typer calls it by name
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that comes with evenkeel, or a .yaml file.")],
    methods: Annotated[str, typer.Option(metavar="A,B,...", help="all, or names of methods with commas.")] = "all",
    seeds: Annotated[str, typer.Option(metavar="0,1,...", help="Seeds of training, with commas.")] = "0",
    settings: Settings = None,
    data: DataSource = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of runs and results.", show_default="runs/compare-NAME"),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Take over what fits: a run, or the runs right in a folder; repeatable."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Alpha to report beside the chosen one.", show_default="the published one", callback=_finite),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train what is missing and put methods side by side; called again, it goes on where it stopped."""
    from trainer.config import load_recipe  # noqa: PLC0415
    from trainer.methods import choose_methods, choose_seeds  # noqa: PLC0415

    overrides = _overrides(settings, data)
    name = load_recipe(recipe, overrides).name
    chosen, numbers = choose_methods(methods), choose_seeds(seeds)

    from trainer.compare import Comparison, compare_methods  # noqa: PLC0415

    compare_methods(
        Comparison(
            recipe=recipe,
            settings=overrides,
            methods=chosen,
            seeds=numbers,
            output=output or Path("runs") / f"compare-{name}",
            runs=runs or [],
            alpha=alpha,
            device_name=device,
        )
    )


@app.command("import-checkpoint")
def import_checkpoint(  # noqa: PLR0917 - typer calls it by name
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A torch file in the published layout.")],
    recipe: Annotated[str, typer.Option(metavar="NAME", help="The recipe that it was trained with.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run to make.")],
    settings: Settings = None,
    data: DataSource = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Rename keys of the backbone; may be repeated.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Make a finished run of a published checkpoint (state_dict_best, embed), without unpickling it."""
    from trainer.config import load_recipe  # noqa: PLC0415

    overrides = [*(settings or []), *([f"data.source={json.dumps(data, ensure_ascii=False)}"] if data else [])]
    loaded = load_recipe(recipe, overrides)

    from trainer.import_checkpoint import import_checkpoint as run  # noqa: PLC0415

    run(file, loaded, output, renames=rename or [], device_name=device)


@app.command()
def directions(run: Run, data: DataSource = None, device: Device = "auto") -> None:
    """Measure TDE with other directions than the moving average, and with an alpha for each slice."""
    from trainer.directions import compare_directions  # noqa: PLC0415

    compare_directions(run, data=data, device_name=device)


@app.command()
def export(
    run: Run,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="The bundle.", show_default="bundles/NAME")] = None,
    direction: Annotated[str, typer.Option(help="ema (of training), or of a classifier dataset_mean.")] = "ema",
    fp16: Annotated[bool, typer.Option(help="Also write model.fp16.onnx for GPUs; not of a detector.")] = True,
) -> None:
    """Write the bundle that the service reads, after a parity check of ONNX Runtime against PyTorch."""
    from trainer.checkpoint import task_of  # noqa: PLC0415

    if task_of(run) == "detection":
        from trainer.detection.export import export_detector  # noqa: PLC0415

        export_detector(run, output, direction=direction)
        return
    from trainer.export import export_run  # noqa: PLC0415

    export_run(run, output, direction=direction, fp16=fp16)


@app.command()
def explain(
    run: Run,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The picture to write, such as grid.png.")],
    alpha: Annotated[
        float | None, typer.Option(help="Of the TDE maps.", show_default="the run's", callback=_finite)
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures to show, of those that evaluate chose.")] = 6,
) -> None:
    """Draw where in test pictures the logit of the true class comes from, at alpha 0 and by TDE."""
    from trainer.explain import explain_run  # noqa: PLC0415

    explain_run(run, output, alpha=alpha, count=count)


@app.command()
def curves(
    run: Run,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The picture to write.", show_default="curves.png in RUN")
    ] = None,
) -> None:
    """Draw training curves, and the norms of weights and features by class; also while training goes on."""
    from trainer.curves import draw_run  # noqa: PLC0415

    draw_run(run, output)


@app.command()
def samples(
    run: Run,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")],
    count: Annotated[int, typer.Option(min=1)] = 6,
) -> None:
    """Write test pictures as PNG to try the service with: first those that alpha makes right."""
    from trainer.showcase import write_pictures  # noqa: PLC0415

    for file in write_pictures(run, output, count=count):
        console.print(f"wrote {file}", soft_wrap=True)


def _overrides(settings: list[str] | None, data: str | None) -> list[str]:
    source = [f"data.source={json.dumps(data, ensure_ascii=False)}"] if data else []
    return [*(settings or []), *source]


def main() -> None:
    """Run the command line; a fault in what was asked for ends with its message and exit status 1."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app()
    except TrainerError as error:
        console.quiet = False  # of several processes, one that fails speaks even if it is not the first
        console.print(Text("error:", style="red"), str(error), soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
