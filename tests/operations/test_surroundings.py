"""The disk, the bundle and the clock fail under a running service: what it cannot do it says, and the rest goes on."""

from collections import Counter
from pathlib import Path

from tests.operations.surroundings import (
    DAMAGES,
    JUMPS,
    on_a_full_disk,
    reloads_of_damaged_bundles,
    with_a_jumping_clock,
)
from tests.service.test_process import running
from tests.service.tiny_model import write_tiny_bundle


async def test_a_full_disk_stops_no_prediction_and_acknowledges_no_label_and_a_damaged_bundle_never_serves(
    tmp_path: Path,
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny").path
    settings = {"database_url": f"sqlite:///{tmp_path / 'kept.sqlite'}"}
    with running(bundle, tmp_path / "log", **settings) as service:
        outcomes = Counter(await on_a_full_disk(service, 20))
        assert outcomes == {"predict 200": 40, "feedback 503": 1, "then feedback 200": 1}
        outcomes = Counter(await reloads_of_damaged_bundles(service, bundle, 1))
        assert outcomes == {"refused, old model 200": len(DAMAGES)}
        assert service.log.read_text().count("the bundle is refused") == len(DAMAGES)


async def test_a_clock_that_jumps_is_not_noticed(tiny_bundle: Path, tmp_path: Path) -> None:
    outcomes = Counter(await with_a_jumping_clock(tiny_bundle, tmp_path, 5))
    assert outcomes == {"predict 200": 5 * len(JUMPS), "feedback 200": len(JUMPS), "exit 0": 1}
