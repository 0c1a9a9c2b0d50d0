"""Where the services that tests start run their models: on the CPU, or with `TESTED_PROVIDER=cuda` on a GPU.

TESTED_PROVIDER=cuda python -m pytest tests/operations tests/end_to_end tests/service/test_reload.py
"""

import os

TESTED_PROVIDER = os.environ.get("TESTED_PROVIDER", "cpu")
