from pathlib import Path

import pytest

from tests.trainer.tiny import tiny_recipe
from trainer.errors import TrainerError
from trainer.methods import METHODS, choose_methods, choose_seeds, recipe_of, training_key
from trainer.posthoc import POSTHOC


def key(*settings: str, fingerprint: str = "data") -> str:
    return training_key(tiny_recipe(*settings), fingerprint)


@pytest.mark.parametrize(
    "setting", ["name=other", "data.source=elsewhere", "data.num_workers=1", "alpha.maximum=2", "input.decoder=pillow"]
)
def test_what_does_not_change_the_weights_does_not_change_the_key(setting: str) -> None:
    assert key(setting) == key()


@pytest.mark.parametrize(
    "setting",
    ["seed=1", "batch_size=16", "head.classifier=linear", "loss.name=focal", "schedule.epochs=3", "head.tau=8"],
)
def test_what_changes_the_weights_changes_the_key(setting: str) -> None:
    assert key(setting) != key()


def test_only_pictures_that_training_crops_as_serving_does_count_by_how_that_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large, cropped = "data.in_memory=false", "input={height: 8, width: 8, mean: [0, 0, 0], std: [1, 1, 1]%s}"
    cropped %= ", resize: shortest_side, resize_size: 9"
    kinds = ((large,), (large, cropped, "augment.random_resized_crop=true"), (large, cropped))
    before = [key(*settings) for settings in kinds]
    monkeypatch.setattr("trainer.methods.CROPS_VERSION", 3)
    assert [key(*settings) == old for settings, old in zip(kinds, before, strict=True)] == [True, True, False]


def test_other_pictures_have_another_key() -> None:
    assert key(fingerprint="other") != key()


def test_weights_that_training_begins_with_count_by_their_content(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.safetensors").write_bytes(content)
    one, same, other, gone = (key(f"backbone.weights={tmp_path / name}") for name in "abcd")
    assert one == same
    assert len({key(), one, other, gone}) == 4


def test_the_same_loss_by_two_names_has_one_key() -> None:
    balanced = key("loss.name=balanced_softmax")
    assert balanced == key("loss.name=logit_adjustment")
    assert balanced != key("loss={name: logit_adjustment, tau: 0.5}")
    assert balanced != key()


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_gives_a_recipe_that_settings_by_hand_still_change(method: str) -> None:
    recipe = recipe_of("digits_lt", method, 7, ["head.tau=9", "batch_size=5"])
    assert (recipe.seed, recipe.head.tau, recipe.batch_size) == (7, 9.0, 5)


def test_every_post_hoc_step_has_a_method() -> None:
    assert {method.posthoc for method in METHODS.values()} == {None, *POSTHOC}


def test_names_and_seeds_are_read_in_order_and_once() -> None:
    assert choose_methods(" ncm,linear,ncm") == ["ncm", "linear"]
    assert choose_methods("all") == list(METHODS)
    assert choose_seeds("3, 0,3") == [3, 0]


@pytest.mark.parametrize("names", ["", ",", "linear,softmax"])
def test_a_method_that_is_not_known_is_refused_with_those_that_are(names: str) -> None:
    with pytest.raises(TrainerError, match=r"--methods .*: must be all, or some of linear, cosine"):
        choose_methods(names)


@pytest.mark.parametrize("numbers", ["", "a", "1,-1", "1.5", "²"])
def test_a_seed_that_is_no_number_is_refused(numbers: str) -> None:
    with pytest.raises(TrainerError, match=r"--seeds .*: must be whole numbers from 0 on"):
        choose_seeds(numbers)
