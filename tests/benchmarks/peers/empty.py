"""An answer without any work, under the same server: more than this no Python service can make of one process."""

import os

import uvicorn


async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning", lifespan="off")
