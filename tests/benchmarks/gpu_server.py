"""The service with other options of the CUDA provider and other runs at once, to compare them over HTTP.

They are no settings: what is best is in the code, and this is how it was found. Both come from the environment.
"""

import json
import os

from service import __main__, app, session

if __name__ == "__main__":
    session.CUDA_OPTIONS.update(json.loads(os.environ.get("COMPARED_CUDA_OPTIONS", "{}")))
    app.RUNS_AT_ONCE_ON_A_DEVICE = int(os.environ.get("COMPARED_RUNS_AT_ONCE", app.RUNS_AT_ONCE_ON_A_DEVICE))
    __main__.main()
