"""Weights for a backbone from a file or from a finished run of evenkeel, checked key by key.

It knows timm's names of classifiers, which a backbone goes without. Weights from the hub are timm's own affair.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from service.bundle import InputSpec
from trainer.backbones import Backbone, TimmBackbone, create_backbone
from trainer.checkpoint import CHECKPOINT_FILE, finished_checkpoint
from trainer.config import BackboneConfig, Recipe
from trainer.errors import TrainerError
from trainer.lora import add_lora, merge_lora
from trainer.matching import bare_names, key_faults
from trainer.progress import console
from trainer.published import read_torch_file

WRAPPERS = ("state_dict_best", "state_dict", "model", "feat_model")
"""Keys under which torch files keep their weights, from the outside in."""


def load_weights(backbone: Backbone, config: BackboneConfig, spec: InputSpec) -> None:
    """Fill a backbone with the weights that ``backbone.weights`` names.

    Args:
        backbone: of the architecture that the recipe names.
        config: says where the weights are: a .safetensors file, a torch file (read with ``weights_only``), or the
            folder of a finished run.
        spec: the recipe's pixels; a run's weights want them normalised as they were.

    Raises:
        TrainerError: no such file, one that cannot be read or would run code, every key that does not fit, or pixels
            that are normalised otherwise than the run's were.
    """
    source = Path(str(config.weights))
    if not source.exists():
        raise TrainerError(f"backbone.weights {source}: is not there; name a weights file, or the folder of a run")
    weights = _run_weights(source, spec) if _is_run(source) else read_weights(source, "backbone.weights")
    wanted = backbone.state_dict()
    ignored = _classifier_keys(backbone)
    found: dict[str, tuple[str, Tensor]] = {}
    faults = []
    for key, value in weights.items():
        if key.startswith(ignored):
            continue
        name = next((name for name in (key, f"model.{key}") if name in wanted), key)
        if name in found:
            faults.append(f"twice: {key} and {found[name][0]} are both {name}")
        found[name] = (key, value)
    if faults := faults + key_faults(wanted, found):
        listed = "\n  ".join(faults)
        raise TrainerError(
            f"backbone.weights {source}: do not fit {config.name} ({len(faults)} faults); set backbone.name to the "
            f"network that they were trained with:\n  {listed}"
        )
    backbone.load_state_dict({name: found[name][1] if name in found else wanted[name] for name in wanted})


def warn_of_seen_pictures(recipe: Recipe) -> None:
    """Say so where a backbone may have been trained on the very pictures that are held out now.

    On those it knows its answer by heart, so an alpha chosen or a temperature fitted on them promises too much.
    """
    source = Path(str(recipe.backbone.weights))
    if not (recipe.backbone.weights and recipe.data.validation_share and _is_run(source)):
        return
    before = finished_checkpoint(source).recipe
    if before.data.source == recipe.data.source and _held_out_by(before) != _held_out_by(recipe):
        console.print(
            f"backbone.weights {source} was trained on pictures of {recipe.data.source} that are held out now: alpha "
            "and temperature chosen on them promise too much. Train it with the same seed, data.long_tail and "
            f"data.validation_share={recipe.data.validation_share}",
            highlight=False,
            soft_wrap=True,
        )


def _held_out_by(recipe: Recipe) -> tuple[object, ...]:
    return recipe.seed, recipe.data.long_tail, recipe.data.validation_share


def check_normalisation(backbone: Backbone, spec: InputSpec) -> None:
    """Refuse pixels that are normalised otherwise than timm's weights were trained with.

    Raises:
        TrainerError: says what ``input.mean`` and ``input.std`` must be.
    """
    if not isinstance(backbone, TimmBackbone):
        return
    trained = backbone.model.pretrained_cfg
    _refuse_other_pixels(spec, tuple(trained["mean"]), tuple(trained["std"]), "backbone.pretrained: timm's weights")


def _refuse_other_pixels(spec: InputSpec, mean: tuple[float, ...], std: tuple[float, ...], whose: str) -> None:
    for name, given, wanted in (("mean", spec.mean, mean), ("std", spec.std, std)):
        if any(abs(one - other) > 0.002 for one, other in zip(given, wanted, strict=True)):
            raise TrainerError(
                f"{whose} were trained with input.{name} {list(wanted)}, got {list(given)}; "
                f"--set 'input.mean={list(mean)}' --set 'input.std={list(std)}'"
            )


def _is_run(source: Path) -> bool:
    if source.is_dir():
        return True
    try:
        with safe_open(source, framework="pt") as opened:
            return "evenkeel" in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _run_weights(source: Path, spec: InputSpec) -> dict[str, Tensor]:
    """Take the backbone of a finished run, its low-rank changes merged."""
    checkpoint = finished_checkpoint(source)
    recipe = checkpoint.recipe
    name = source / CHECKPOINT_FILE if source.is_dir() else source
    _refuse_other_pixels(spec, recipe.input.mean, recipe.input.std, f"backbone.weights: those of {name}")
    backbone = create_backbone(recipe.backbone.model_copy(update={"pretrained": False}))
    if recipe.backbone.lora:
        add_lora(backbone, recipe.backbone.lora)
    prefix = "backbone."
    backbone.load_state_dict(
        {key.removeprefix(prefix): value for key, value in checkpoint.model.items() if key.startswith(prefix)}
    )
    merge_lora(backbone)
    weights: dict[str, Tensor] = backbone.state_dict()
    return weights


def read_weights(file: Path, setting: str) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file, or from a torch file without running anything in it.

    Args:
        file: to read.
        setting: of the recipe that names the file.

    Raises:
        TrainerError: no such file, one that cannot be read or would run code, or one that holds something else.
    """
    if file.suffix != ".safetensors":
        content = read_torch_file(file)
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
    else:
        try:
            content = load_file(file)
        except (SafetensorError, OSError) as error:
            raise TrainerError(f"{setting} {file}: cannot be read ({error}); name a safetensors file") from error
    wrong = [str(key) for key, value in content.items() if not isinstance(key, str) or not torch.is_tensor(value)]
    if wrong or not content:
        held = ", ".join(wrong[:5]) or "nothing"
        raise TrainerError(f"{setting} {file}: must hold tensors by name, got {held}")
    try:
        return bare_names(content)
    except ValueError as error:
        raise TrainerError(f"{setting} {file}: {error}") from error


def _classifier_keys(backbone: Backbone) -> tuple[str, ...]:
    """Name what the keys of timm's own classifier begin with: these are left out."""
    if not isinstance(backbone, TimmBackbone):
        return ()
    names = backbone.model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
