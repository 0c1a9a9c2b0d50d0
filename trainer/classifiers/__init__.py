"""The classifiers that turn features into logits, by the name that a recipe gives them.

A new one is a file with a subclass of ``Classifier``, its line here, and its name in ``HeadConfig``.

What they share, and what the paper says of them
------------------------------------------------
In the paper's causal graph the momentum M of SGD confounds features X and prediction Y (M -> X, and M -> D -> Y), and
part of X acts through its projection D on the direction of the frequent classes (X -> D -> Y).

*Training blocks the back door* M -> X (de-confounding, section 4.1): by inverse propensity weighting, in the form of a
normaliser g below the energy ``w . x``. Cut into K slices, each classifier is

    logits[c] = tau / K * sum_k  w_ck . x_k / g(x_k, w_ck)

    ==============  ==============================  ======================================================
    classifier      g                               what is left of the lengths
    ==============  ==============================  ======================================================
    linear          1 (and tau / K = 1, a bias)     all: ||w_c|| grows with the class's training images
    capsule         (1 + ||x||) * ||w||             ||x|| / (1 + ||x||): how sure the picture is
    cosine          ||x|| * ||w||                   nothing
    de-confounded   ||x|| * (||w|| + gamma)         a little of ||w||: rare classes have the shorter weights
    ==============  ==============================  ======================================================

The de-confounded normaliser is class-specific energy ``||x|| * ||w||`` plus a class-agnostic ``gamma * ||x||`` (Eq. 6);
the linear classifier has no normaliser, so it is confounded.

*Inference takes an effect of X on Y*. Write Y_d(x) for the logits of features x whose mediator is d, and x0 for no
features at all. All of a picture's features with their own mediator give the total effect, TE = Y_d(x) - Y_d0(x0): as
Y_d0(x0) is the same for every picture, this is the plain prediction, alpha 0.

    CDE = Y_d*(x) - Y_d*(x0)    D held at one value d* for all pictures: controlled. A correction that knows the class
                                but not the picture (re-weighting, margins, prior correction) can do this much.
    NDE = Y_d0(x) - Y_d0(x0)    D as if there were no picture: natural. The paper reads the balanced second stage of
                                two-stage training (cRT, LWS; ``trainer.posthoc``) as this: the mediation is dropped.
    TDE = Y_d(x) - Y_d(x0)      D as it is for this very picture, minus what D alone would say: what the mediator does
                                for the picture stays (the good), its constant lean to the frequent classes goes (the
                                bad). De-confound-TDE is the only one of these that de-confounds, needs one stage and
                                keeps the mediator (the paper's Table 1).

Here Y_d(x0) is the logit of the part of the features along d, ``(f(x_k) . unit(d_k)) unit(d_k)``, under the
classifier's own normaliser, f(x) = x / g_x(x) (de-confounded: Eq. 8), and ``TDE = factual - alpha * counterfactual``.
So, by classifier, per slice and before the scale tau / K:

    linear          w . x - alpha * (x . unit(d)) (w . unit(d)) + bias: at alpha 1 the features are projected off d
    capsule         (w . x - alpha * ||x|| cos(x, d) w . unit(d)) / ((1 + ||x||) ||w||)
    cosine          (w . unit(x) - alpha * cos(x, d) w . unit(d)) / ||w||
    de-confounded   (w . unit(x) - alpha * cos(x, d) w . unit(d)) / (||w|| + gamma)

For the linear classifier TDE at alpha 1 and NDE are the same number, as its logits are additive; for the others NDE
would divide by the norm of what is left of x.

Source: Tang, Huang and Zhang, NeurIPS 2020 (arXiv 2009.12991): sections 3 and 4, Eq. 5 to 8, Table 1, appendix B.
The counterfactual of the capsule classifier uses the norm of the picture's own feature, so that the scale of d, an
artefact of its moving average, does not matter.
"""

from trainer.classifiers.capsule import CapsuleClassifier
from trainer.classifiers.cosine import CosineClassifier
from trainer.classifiers.deconfounded import DeconfoundedClassifier
from trainer.classifiers.interface import Classifier
from trainer.classifiers.linear import LinearClassifier
from trainer.config import HeadConfig

__all__ = ["CLASSIFIERS", "Classifier", "create_classifier"]

CLASSIFIERS: dict[str, type[Classifier]] = {
    "deconfounded": DeconfoundedClassifier,
    "linear": LinearClassifier,
    "cosine": CosineClassifier,
    "capsule": CapsuleClassifier,
}


def create_classifier(config: HeadConfig, num_features: int, num_classes: int) -> Classifier:
    """Make the classifier that a recipe names, for D features and C classes.

    Raises:
        ValueError: ``num_heads`` does not divide the features.

    Example:
        >>> create_classifier(HeadConfig(classifier="cosine"), 64, 10).weight.shape
        torch.Size([10, 64])
    """
    return CLASSIFIERS[config.classifier](
        num_features, num_classes, num_heads=config.num_heads, tau=config.tau, gamma=config.gamma
    )
