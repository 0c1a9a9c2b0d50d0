"""Low-rank fine-tuning of a backbone through ``peft``: added before training, merged before export.

In place of a layer's weight W, which stays, ``W + lora_alpha / rank * B A`` is used, and only A and B are trained. B
begins at zero, so that training begins at the pretrained weights. Knows no classifier.

Source: Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022.
"""

import re

from torch import nn

from trainer.config import LoraConfig
from trainer.errors import TrainerError


def add_lora(backbone: nn.Module, config: LoraConfig) -> None:
    """Put low-rank changes into a backbone's layers, in place; all its other parameters stop being trained.

    Raises:
        TrainerError: peft is not installed, or no layer has such a name.
    """
    try:
        import peft  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise TrainerError("backbone.lora: needs peft, which is not installed; pip install 'evenkeel[lora]'") from error
    names = "|".join(re.escape(name) for name in chosen_layers(backbone, config.layers))
    adapters = peft.LoraConfig(r=config.rank, lora_alpha=config.lora_alpha, target_modules=names)
    peft.inject_adapter_in_model(adapters, backbone)


def chosen_layers(backbone: nn.Module, pattern: str | None) -> list[str]:
    """Name the layers that get a low-rank change.

    Without a pattern these are all linear layers, or, where there are none, all convolutions that are not depthwise.

    Raises:
        TrainerError: a pattern that is no regular expression, or fits no linear layer and no convolution.
    """
    layers = {name: layer for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    if pattern is None:
        linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
        return linear or [name for name, layer in layers.items() if getattr(layer, "groups", 1) == 1]
    try:
        fitting = [name for name in layers if re.search(pattern, name)]
    except re.error as error:
        raise TrainerError(f"backbone.lora.layers: {pattern!r} is no regular expression ({error})") from error
    if not fitting:
        raise TrainerError(
            f"backbone.lora.layers: {pattern!r} fits no layer; there are {', '.join(list(layers)[:8])}, ..."
        )
    return fitting


def merge_lora(model: nn.Module) -> None:
    """Add all low-rank changes to the weights that they change, in place: what is left are plain layers."""
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "get_base_layer") and hasattr(layer, "merge"):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
