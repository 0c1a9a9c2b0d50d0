"""From a score to what the client reads, as plain dictionaries ready for JSON. It knows nothing of HTTP."""

from typing import Any

from service.bundle import Manifest
from service.routes.rules import ImageQuery
from service.scoring import Score
from service.tradeoff import Envelope

Answer = dict[str, Any]


class AnswerWriter:
    """Writes answers in the names of the model's classes."""

    def __init__(self, manifest: Manifest) -> None:
        self.model = {"name": manifest.name, "version": manifest.version}
        self._classes: list[Answer] = [
            {"label": info.name, "index": index, "shot_group": info.shot_group}
            for index, info in enumerate(manifest.classes)
        ]

    def reference(self, index: int) -> Answer:
        """Return what a class is called."""
        return self._classes[index]

    def image(self, query: ImageQuery, score: Score, *, top_k: int, breakpoints: bool, lines: bool) -> Answer:
        """Return the answer for one picture."""
        alpha, probability, logit = query.knobs.alpha, score.probabilities.item, score.logits.item
        answer = {
            "predictions": [
                {**self._classes[index], "probability": probability(index), "logit": logit(index)}
                for index in score.ranking[:top_k].tolist()
            ],
            "alpha": alpha,
            "alpha_source": query.alpha_source,
            "prior_strength": query.knobs.prior_strength,
            "plain": self._classes[score.plain_winner],
            "stable_interval": score.envelope.stable_interval(alpha),
            "confounder_cosine": score.confounder_cosine,
        }
        if breakpoints:
            answer["breakpoints"] = self._breakpoints(score.envelope)
        if lines:
            target = query.knobs.log_target
            answer["lines"] = {
                "factual_logits": (score.factual_logits if target is None else score.factual_logits + target).tolist(),
                "counterfactual_logits": score.counterfactual_logits.tolist(),
            }
        return answer

    def _breakpoints(self, envelope: Envelope) -> list[Answer]:
        winners = [self._classes[index] for index in envelope.winners.tolist()]
        return [
            {"alpha": alpha, "from": before, "to": after}
            for alpha, before, after in zip(envelope.breakpoints.tolist(), winners, winners[1:], strict=False)
        ]
