from collections import defaultdict
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from trainer.checkpoint import EpochRecord, load_checkpoint
from trainer.events import EventLog, scalars


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    curves = defaultdict(list)
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                curves[value.tag].append((event.step, round(value.tensor.float_val[0], 5)))
    return curves


def record(epoch: int, loss: float) -> EpochRecord:
    return EpochRecord(epoch, [loss, loss + 1], 0.1, 0.5, 100.0, {"many": 0.75}, {"many": 0.25, "few": 0.125})


def test_every_epoch_shows_once_though_the_run_was_killed_and_went_on(tmp_path: Path) -> None:
    with EventLog(tmp_path, []) as log:
        log.add(record(0, 3.0))
        log.add(record(1, 9.0))  # killed before the checkpoint of this epoch was written
    with EventLog(tmp_path, [record(0, 3.0)]) as log:
        log.add(record(1, 2.0))
    curves = read(tmp_path)
    assert curves["loss/train"] == [(1, 3.5), (2, 2.5)]
    assert curves["accuracy/train, many-shot"] == [(1, 0.75), (2, 0.75)]
    assert curves["cosine to the direction/few-shot"] == [(1, 0.125), (2, 0.125)]
    assert set(curves) == set(scalars(record(0, 1.0)))


def test_a_run_leaves_its_curves_in_its_folder(finished_run: Path) -> None:
    history = load_checkpoint(finished_run).history
    curves = read(finished_run)
    assert curves["learning rate"] == [(one.epoch + 1, round(one.learning_rate, 5)) for one in history]
    assert [step for step, _ in curves["cosine to the direction/few-shot"]] == [1, 2]


def test_what_an_earlier_release_did_not_record_is_left_out(tmp_path: Path) -> None:
    with EventLog(tmp_path, [EpochRecord(0, [1.0], 0.1, 0.5, 100.0)]):
        pass
    assert set(read(tmp_path)) == {"loss/train", "accuracy/train", "learning rate", "images per second"}
