"""The work that every peer does for a request: decode, resize, run the model for this picture, name the five best."""

import io
import os

import numpy as np
import onnxruntime as ort
from PIL import Image

options = ort.SessionOptions()
options.intra_op_num_threads = int(os.environ["THREADS"])
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
height, width = session.get_inputs()[0].shape[1:3]
no_prior = np.zeros(1, np.float32)


def classify(data: bytes, alpha: float) -> dict:
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((width, height)))
    inputs = {"image": image[None], "alpha": np.array([alpha], np.float32), "prior_strength": no_prior}
    logits = session.run(["logits"], inputs)[0][0]
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return {"predictions": [{"index": int(i), "probability": float(shares[i])} for i in (-logits).argsort()[:5]]}
