"""The service with other runs at once, or without CUDA graphs, to compare them over HTTP.

They are no setting: what is best is in the code, and this is how it was found. It comes from the environment.
"""

import os
from typing import Any

from service import __main__, app, model
from service.session import OnnxSession


class _WithoutGraphs(OnnxSession):
    def __init__(self, *what: Any, graphs: bool, **more: Any) -> None:
        super().__init__(*what, **more, graphs=False)


if __name__ == "__main__":
    app.RUNS_AT_ONCE_ON_A_DEVICE = int(os.environ.get("COMPARED_RUNS_AT_ONCE", app.RUNS_AT_ONCE_ON_A_DEVICE))
    if os.environ.get("COMPARED_WITHOUT_GRAPHS"):
        vars(model)["OnnxSession"] = _WithoutGraphs
    __main__.main()
