"""The optimizer that a recipe asks for, with a learning rate of the backbone's own.

SGD with momentum is the premise of the method: the step is ``v <- mu v + gradient``, the gradient of the logits by the
class weights is made of features, so what momentum carries from batch to batch is a decayed sum of features, and
``d <- mu d + mean x`` follows it.

AdamW (Loshchilov and Hutter, ICLR 2019) carries the same sum with beta 1 for mu, but divides it, parameter by
parameter, by the root of the gradient's own second moment. What it carries along therefore does not point where d
points, and the paper's argument does not reach it. d is then what it also is under SGD, where its cosine with the
mean feature of the training set in evaluation mode was 0.999 (``trainer/RESULTS.md``): the mean feature, which leans to
the frequent classes as there are more of them. TDE takes away what that mean alone would say. Whether that helps is a
matter of measuring; the same file has the figures.

``sharpness_rho`` makes either of them step by the gradient at the worst weights nearby: ``trainer.sharpness``.
"""

import torch
from torch import nn

from trainer.config import OptimizerConfig


def create_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer of all parameters that are trained.

    Args:
        config: which one, and its rates.
        model: with a ``backbone``, whose rate may differ.

    Example:
        >>> model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
        >>> config = OptimizerConfig(learning_rate=0.1, backbone_learning_rate=0.05)
        >>> [group["share"] for group in create_optimizer(config, model).param_groups]
        [0.5, 1.0]
    """
    groups = _groups(config, model)
    fused = True if next(model.parameters()).device.type == "cuda" else None  # a step in a kernel or two, not a dozen
    if config.name == "adamw":
        return torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(config.momentum, 0.999),
            weight_decay=config.weight_decay,
            fused=fused,
        )
    return torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the classifier's learning rate, and the backbone's in proportion."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def _groups(config: OptimizerConfig, model: nn.Module) -> list[dict[str, object]]:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if config.backbone_learning_rate is None:
        return [{"params": list(trained.values()), "share": 1.0}]
    backbone = [parameter for name, parameter in trained.items() if name.startswith("backbone.")]
    rest = [parameter for name, parameter in trained.items() if not name.startswith("backbone.")]
    share = config.backbone_learning_rate / config.learning_rate
    return [{"params": backbone, "share": share}, {"params": rest, "share": 1.0}]
