"""The service with other runs at once, or with CUDA graphs, to compare them over HTTP.

They are no setting: what is best is in the code, and this is how it was found. It comes from the environment.
"""

import os

from service import __main__, app, model
from tests.benchmarks.gpu_graphs import CapturedSession

if __name__ == "__main__":
    app.RUNS_AT_ONCE_ON_A_DEVICE = int(os.environ.get("COMPARED_RUNS_AT_ONCE", app.RUNS_AT_ONCE_ON_A_DEVICE))
    if os.environ.get("COMPARED_CUDA_GRAPHS"):
        vars(model)["OnnxSession"] = CapturedSession
    __main__.main()
