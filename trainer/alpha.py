"""The default alpha, chosen without the test set: on validation data, or where mean(alpha * cos) is 1."""

from statistics import fmean

from service.bundle import shot_group_of
from service.tradeoff import accuracy_curve, best_alpha
from trainer.checkpoint import AlphaChoice
from trainer.config import AlphaConfig
from trainer.inference import Branches


def choose_alpha(
    config: AlphaConfig, mean_cosine: list[float], validation: Branches | None, class_counts: list[int]
) -> AlphaChoice:
    """Choose the default alpha as the recipe says.

    validation: the centre of the stretch of alpha with the highest accuracy on held-out images, balanced over classes;
    mean_cosine: ``1 / mean(cos)`` over training images and slices, within the range of alpha;
    recipe: the value given there.

    Args:
        config: how to choose, and the range of alpha.
        mean_cosine: mean over the training images of cos(x_k, d_k) [K].
        validation: both branches of the validation images; needed for ``validation`` alone.
        class_counts: training images per class [C].
    """
    if config.value is not None:
        return AlphaChoice(config.value, "recipe", mean_cosine)
    if config.choose == "validation" and validation is not None:
        curve = accuracy_curve(
            validation.factual,
            validation.counterfactual,
            validation.labels,
            low=config.minimum,
            high=config.maximum,
            shot_groups=[shot_group_of(count) for count in class_counts],
        )
        return AlphaChoice(best_alpha(curve, "balanced"), "validation", mean_cosine)
    cosine = fmean(mean_cosine)
    value = min(max(1 / cosine, config.minimum), config.maximum) if cosine > 0 else config.maximum
    return AlphaChoice(value, "mean_cosine", mean_cosine)
