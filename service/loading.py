"""A bundle from the disk to a model that is warm and checked, under the settings; at the start and at every reload."""

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


class Reloading:
    """Loads the bundle anew once one is served; what runs on CUDA stays there.

    Where the GPU has no room for both, the new one is refused, and `auto` does not take it to the CPU.

    Args:
        path, settings: as of `load_bundle`.
        provider: where the model that is served runs.
    """

    def __init__(self, path: Path, settings: Settings, provider: str) -> None:
        self._path, self._settings, self._provider = path, settings, provider

    def __call__(self, version: str) -> Loaded | None:
        """Return the bundle unless it is the version given; raises what `load_bundle` does."""
        on_cuda = {"provider": "cuda"} if self._provider == "cuda" else {}
        loaded = load_bundle(self._path, self._settings.model_copy(update=on_cuda), version)
        if loaded is not None:
            self._provider = loaded.model.provider
        return loaded


def _load_model(bundle: Bundle, settings: Settings) -> OnnxModel | OnnxDetector:
    if bundle.manifest.task == "detection":
        return OnnxDetector(bundle, provider=settings.provider, threads=settings.threads)
    return OnnxModel(
        bundle, provider=settings.provider, threads=settings.threads, max_batch_size=settings.max_batch_size
    )
