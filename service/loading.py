"""A bundle from the disk to a model that is warm and checked, under the settings; at the start and at every reload."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from service.bundle import Bundle, BundleError, read_bundle
from service.detector import OnnxDetector
from service.exhibits import Exhibits
from service.model import OnnxModel
from service.reload import Loaded
from service.settings import Settings


def load_bundle(path: Path, settings: Settings, version: str) -> Loaded | None:
    """Read the bundle, and load its model unless it is the version given.

    Raises:
        BundleError: it cannot be read, or was changed meanwhile.
        ProviderUnavailable: the settings want a provider that does not run.
    """
    try:
        folder = path.resolve()  # what a link points to, in one piece
    except (OSError, RuntimeError) as error:  # RuntimeError: what Python before 3.13 makes of a loop
        raise BundleError(f"{path} is a link that leads nowhere: {error}; give the folder itself") from error
    intact = read_bundle(folder)
    if intact.manifest.version == version:
        return None
    loaded = Loaded(_load_model(intact, settings), Exhibits.of(intact))
    if read_bundle(folder).manifest.version != intact.manifest.version:
        raise BundleError(f"{folder} was changed while it was loaded; send SIGHUP again once it is whole")
    return loaded


def reloading(path: Path, settings: Settings, loaded: Loaded) -> Callable[[str], Loaded | None]:
    """Return what loads the bundle anew once one is served.

    What runs on CUDA stays there: where the GPU has no room for both, the new one is refused, and `auto` does not take
    it to the CPU.
    """
    on_cuda = {"provider": "cuda"} if loaded.model.provider == "cuda" else {}
    return partial(load_bundle, path, settings.model_copy(update=on_cuda))


def _load_model(bundle: Bundle, settings: Settings) -> OnnxModel | OnnxDetector:
    if bundle.manifest.task == "detection":
        return OnnxDetector(bundle, provider=settings.provider, threads=settings.threads)
    return OnnxModel(
        bundle, provider=settings.provider, threads=settings.threads, max_batch_size=settings.max_batch_size
    )
