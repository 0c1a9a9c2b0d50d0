"""BentoML with one worker. The picture comes as base64 in JSON, which its schema checks."""

import base64

import bentoml


@bentoml.service(workers=1, traffic={"timeout": 60})
class Classifier:
    def __init__(self) -> None:
        from classify import classify

        self.classify = classify

    @bentoml.api
    def predict(self, image: str, alpha: float) -> dict:
        return self.classify(base64.b64decode(image), alpha)
