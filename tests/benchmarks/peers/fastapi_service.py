"""What one would write first: FastAPI, and ONNX Runtime once a request. With `classify` about 15 lines of code."""

import os

import uvicorn
from classify import classify
from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/predict")
async def predict(request: Request, alpha: float = 1.5) -> dict:
    return classify(await request.body(), alpha)


uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
