"""The trainer's command line, after it has written the process's id to a file named after its rank, in `RANKS`."""

import os
from pathlib import Path

from trainer.__main__ import main

if __name__ == "__main__":
    Path(os.environ["RANKS"], os.environ["RANK"]).write_text(str(os.getpid()))
    main()
