"""A checkpoint in the published layout to a finished run of ours, which evaluates and exports as any other.

It knows the names of our modules and torchvision's names of ResNets; what the file is like is ``trainer.published``'s
affair. A key that fits nothing is an error that names it, never a guess.
"""

from pathlib import Path

import torch
import yaml
from torch import Tensor

from trainer.checkpoint import CHECKPOINT_FILE, Checkpoint
from trainer.config import Recipe
from trainer.data import Pixels, load_splits
from trainer.errors import TrainerError, writing
from trainer.matching import key_faults
from trainer.model import LongTailClassifier
from trainer.progress import console
from trainer.published import Published, read_published
from trainer.runs import conclude
from trainer.train import choose_device

TIMM_PREFIX = "model."
"""What ``TimmBackbone`` puts before timm's names, which for ResNets are torchvision's."""


def import_checkpoint(file: Path, recipe: Recipe, folder: Path, *, renames: list[str], device_name: str) -> None:
    """Make a finished run of a checkpoint in the published layout, and evaluate it.

    The recipe says what the file does not: network, classifier, pixels, and the data, from which class names,
    training counts and the default alpha come.

    Args:
        file: the torch file.
        recipe: as the checkpoint was trained.
        folder: of the run.
        renames: ``OLD=NEW``, applied in order to every key of the backbone.
        device_name: where to evaluate.

    Raises:
        TrainerError: a folder that holds a run, a file that cannot be read or would run code, keys or shapes that do
            not fit the recipe's model: all of them, by name; weights whose logits are not finite. No run is left then.
    """
    with writing(folder):
        if (folder / CHECKPOINT_FILE).exists():
            raise TrainerError(f"--output {folder}: holds a run already; name another folder")
    device = choose_device(device_name)
    published = read_published(file)
    splits = load_splits(recipe)
    model = LongTailClassifier(recipe, len(splits.class_names), fetch_weights=False)
    model.load_state_dict(matched(published, model, [_rename(one) for one in renames], file))
    checkpoint = Checkpoint(
        recipe=recipe,
        class_names=splits.class_names,
        class_counts=[int(count) for count in splits.class_counts],
        data_fingerprint=splits.fingerprint(),
        epoch=recipe.schedule.epochs,
        model=model.state_dict(),
        versions={"torch": torch.__version__, "precision": "unknown", "imported_from": file.name},
    )
    test = Pixels(splits.test, recipe, device, name="test images")
    train = Pixels(splits.train, recipe, device, name="training images")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    try:
        conclude(checkpoint, model.on(device), folder, train=train, test=test, validation=splits.validation)
    except BaseException:
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)  # what was not evaluated is no run, and may be tried again
        raise
    console.print(f"{file.name} imported into {folder}. Export it: python -m trainer export {folder}", soft_wrap=True)


def matched(
    published: Published, model: LongTailClassifier, renames: list[tuple[str, str]], file: Path
) -> dict[str, Tensor]:
    """Name the published tensors as the model does: its whole state dict.

    Raises:
        TrainerError: every key that is missing, unexpected, of another kind or shape, or not finite.
    """
    wanted = model.state_dict()
    found: dict[str, tuple[str, Tensor]] = {"head.momentum_direction": ("embed", published.direction)}
    faults = []
    for part, tensors in (("feat_model", published.backbone), ("classifier", published.classifier)):
        for key, value in tensors.items():
            name = _our_name(key, wanted, renames) if part == "feat_model" else f"head.{key}"
            if name in found:
                faults.append(f"twice: {part}.{key} and {found[name][0]} are both {name}")
            found[name] = (f"{part}.{key}", value)
    faults += key_faults(wanted, found)
    if faults:
        listed = "\n  ".join(faults)
        raise TrainerError(
            f"{file}: does not fit the recipe's model ({len(faults)} faults):\n  {listed}\n"
            "choose the recipe that it was trained with (backbone.name, head, data), or give --rename OLD=NEW for keys "
            "of the backbone"
        )
    return {name: found[name][1].to(wanted[name].dtype) if name in found else wanted[name] for name in wanted}


def _our_name(key: str, wanted: dict[str, Tensor], renames: list[tuple[str, str]]) -> str:
    for old, new in renames:
        key = key.replace(old, new)
    candidates = (f"backbone.{key}", f"backbone.{TIMM_PREFIX}{key}")
    return next((name for name in candidates if name in wanted), candidates[0])


def _rename(text: str) -> tuple[str, str]:
    old, separator, new = text.partition("=")
    if not old or not separator:
        raise TrainerError(f"--rename {text!r}: must read OLD=NEW, such as --rename layer1.=stages.")
    return old, new
