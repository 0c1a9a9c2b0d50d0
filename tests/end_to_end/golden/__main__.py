"""Make the golden pictures that are missing, and the pixels of all."""

import numpy as np

from tests.end_to_end.golden import FOLDER, SPECS, by_pillow, files, pictures

for name, content in pictures().items():
    if not (FOLDER / name).exists():
        (FOLDER / name).write_bytes(content)
pixels = {f"{file.name}|{name}": by_pillow(file.read_bytes(), spec) for file in files() for name, spec in SPECS.items()}
np.savez_compressed(FOLDER / "pixels.npz", **pixels)
print(f"{len(files())} pictures in {FOLDER}")
