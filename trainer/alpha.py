"""The default alpha, chosen without the test set: on validation data, or where mean(alpha * cos) is 1."""

from statistics import fmean

from service.tradeoff import accuracy_curve, best_alpha
from trainer.checkpoint import AlphaChoice
from trainer.config import AlphaConfig
from trainer.inference import Branches
from trainer.long_tail import shot_groups_of


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
            shot_groups=shot_groups_of(class_counts),
        )
        return AlphaChoice(best_alpha(curve, "balanced"), "validation", mean_cosine)
    return AlphaChoice(alpha_of_cosine(fmean(mean_cosine), config), "mean_cosine", mean_cosine)


def alpha_of_cosine(cosine: float, span: AlphaConfig) -> float:
    """Compute where ``alpha * cos`` is 1, within the range of alpha; no alpha is too large for a cosine of 0 or less.

    Example:
        >>> [alpha_of_cosine(cosine, AlphaConfig(minimum=1.5, maximum=3)) for cosine in (0.9, 0.5, 0.1, -0.5)]
        [1.5, 2.0, 3.0, 3.0]
    """
    return min(max(1 / cosine, span.minimum), span.maximum) if cosine > 0 else span.maximum
