"""Classifiers made anew on a trained model's features, after Kang et al.: the second stage of two-stage training.

The features of the training images, as they are in evaluation, are computed once and kept; the backbone stays. Each
method takes the trained classifier and gives another ``Classifier``, so TDE and prior correction apply to it as to any
other. All of them weigh the classes equally, so none leans to the frequent ones by design. A new method is a file with
a function of this form, and its line here.

Source: Kang et al., *Decoupling Representation and Classifier for Long-Tailed Recognition*, ICLR 2020, section 4.
"""

from collections.abc import Callable

from trainer.classifiers import Classifier
from trainer.posthoc.crt import retrain
from trainer.posthoc.features import LabelledFeatures
from trainer.posthoc.lws import learn_scales
from trainer.posthoc.ncm import nearest_class_mean
from trainer.posthoc.tau_norm import normalise_by_tau

Posthoc = Callable[[Classifier, LabelledFeatures, LabelledFeatures | None, int], Classifier]
"""Maps (trained linear classifier, training features, validation features if any, seed) to a new classifier."""

POSTHOC: dict[str, Posthoc] = {
    "crt": retrain,
    "lws": learn_scales,
    "tau_norm": normalise_by_tau,
    "ncm": nearest_class_mean,
}
