from pathlib import Path

import pytest
import yaml

from trainer.config import Recipe, load_recipe, read_recipe, recipe_names
from trainer.errors import TrainerError

DIGITS = Path(__file__).parents[2] / "trainer" / "recipes" / "digits_lt.yaml"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_under_its_own_name(name: str) -> None:
    assert read_recipe(name).name == name


def test_the_recipes_of_the_paper_are_there() -> None:
    assert {"digits_lt", "cifar10_lt", "cifar100_lt", "imagenet_lt", "places_lt"} <= set(recipe_names())
    assert {"cifar10_lt_strong", "cifar100_lt_strong"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_what_a_run_writes_down_reads_back_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    assert read_recipe(str(file)) == recipe


def test_overrides_reach_nested_keys_and_later_ones_win() -> None:
    recipe = load_recipe(
        "digits_lt",
        ["seed=3", "data.long_tail.seed=5", "schedule.warmup_epochs=0", "head.momentum_decay=coupled", "seed=4"],
    )
    assert (recipe.seed, recipe.data.long_tail.seed, recipe.schedule.warmup_epochs) == (4, 5, 0)
    assert recipe.head.momentum_decay == "coupled"


def test_an_override_may_hold_a_whole_section_an_equals_sign_and_scientific_notation() -> None:
    recipe = load_recipe("digits_lt", ["data.source=a=b", "alpha={choose: recipe, value: 1}", "head.gamma=1e-3"])
    assert (recipe.data.source, recipe.alpha.value, recipe.head.gamma) == ("a=b", 1.0, 0.001)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.learnin_rate=1", "optimizer.learnin_rate: unknown key with value 1; did you mean learning_rate?"),
        ("data.long_tail.fctor=1", "fctor: unknown key with value 1; .*allowed are imbalance_factor, profile, seed"),
        ("data.lists={train: a, test: b, tset: c}", "data.lists.tset: unknown key with value 'c'; did you mean test?"),
        ("batchsize=1", "batchsize: unknown key with value 1; did you mean batch_size?"),
        ("seed=1e3", "seed: .*integer.* got '1e3'"),
        ("seed=-1", "seed: .*greater than or equal to 0, got -1"),
        (f"seed={2**64}", f"seed: .*less than {2**63}, got {2**64}"),
        ("batch_size=.nan", "batch_size: .*finite number, got nan"),
        ("batch_size=1", "batch_size: .*greater than or equal to 2, got 1"),
        (f"batch_size={10**20}", "batch_size: .*less than or equal to 1048576"),
        ("head.tau=.inf", "head.tau: .*finite number, got inf"),
        ("head.num_heads=0", "head.num_heads: .*greater than or equal to 1, got 0"),
        ("head.momentum_decay=copled", "head.momentum_decay: .*valid number.*; or .*'coupled', got 'copled'"),
        ("head.momentum_decay=2", "head.momentum_decay: .*less than or equal to 1; or .*'coupled', got 2"),
        ("augment.policy=autoaugment", "augment.policy: .*'auto', 'rand' or 'trivial', got 'autoaugment'"),
        ("augment.mixing_until=1.5", "augment.mixing_until: .*less than or equal to 1, got 1.5"),
        ("averaging.decay=1", "averaging.decay: .*less than 1, got 1"),
        ("precision=fp16", "precision: .*'bf16' or 'fp32', got 'fp16'"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate: .*greater than 0, got 0"),
        ("optimizer.momentum=1", "optimizer.momentum: .*less than 1, got 1"),
        ("optimizer={learning_rate: 1, momentum: 0, nesterov: true}", "optimizer: nesterov=true needs a momentum"),
        ("optimizer.name=adam", "optimizer.name: .*'sgd' or 'adamw', got 'adam'"),
        ("optimizer={name: adamw, learning_rate: 1, nesterov: true}", "optimizer: nesterov=true belongs to name=sgd"),
        ("optimizer.backbone_learning_rate=0", "optimizer.backbone_learning_rate: .*greater than 0, got 0"),
        (
            "backbone={name: small_cnn, pretrained: true, weights: a}",
            "backbone: pretrained=true and weights='a' are two",
        ),
        ("backbone.frozen=true", "backbone: frozen and lora keep the weights: set pretrained=true, or weights"),
        ("backbone.lora={}", "backbone: frozen and lora keep the weights"),
        ("backbone.lora={rnk: 4}", "backbone.lora.rnk: unknown key with value 4; did you mean rank?"),
        ("backbone={name: small_cnn, weights: a, frozen: true, lora: {}}", "backbone: frozen=true and lora exclude"),
        (
            "backbone={name: small_cnn, weights: a, frozen: true}",
            r"backbone.frozen=true computes features once.* set augment=\{\}, got crop_padding",
        ),
        ("schedule.epochs=0", "schedule.epochs: .*greater than or equal to 1, got 0"),
        ("schedule.milestones=[1]", r"schedule: milestones and decay=steps belong together, got \(1,\) and 'cosine'"),
        ("schedule={epochs: 3, decay: steps, milestones: [2, 1]}", r"schedule: milestones must rise, got \[2, 1\]"),
        (
            "schedule={epochs: 3, decay: steps, milestones: [0, 1]}",
            r"schedule: milestones .* be 1 or more, got \[0, 1\]",
        ),
        ("data.long_tail.profile=linear", "profile: .*'none', 'exponential' or 'step', got 'linear'"),
        ("data.long_tail={imbalance_factor: 5}", "data.long_tail: imbalance_factor needs a profile"),
        ("data.long_tail.imbalance_factor=0.5", "imbalance_factor: .*greater than or equal to 1, got 0.5"),
        ("data.validation_share=1", "data.validation_share: .*less than 1, got 1"),
        ("data.source=", "data.source: .*valid string, got None"),
        ("data.lists=1", "data.lists: Must be a mapping of keys, got 1"),
        ("data=null", "data: Must be a mapping of keys, got None"),
        ("data={}", r"data.source: missing; add it to the recipe or by --set data.source=\.\.\."),
        ("input.mean=[0, 0]", "input.mean.2: missing; give one number more"),
        ("input.std=[1, 1, 0]", "input: std must be above 0"),
        ("input.resize=shortest_side", "input: resize 'shortest_side' needs a resize_size"),
        ("augment.random_resized_crop=true", "augment.random_resized_crop .* need data.in_memory=false"),
        ("alpha.minimum=.nan", "alpha.minimum: .*finite number, got nan"),
        ("alpha.minimum=4", "alpha: minimum must lie below maximum, got 4.0 and 3.0"),
        ("alpha.value=1", "alpha: value and choose=recipe belong together, got 1.0 and 'mean_cosine'"),
        ("alpha={choose: recipe}", "alpha: value and choose=recipe belong together, got None and 'recipe'"),
        ("alpha={choose: recipe, value: 9}", r"alpha: value must lie in \[0.0, 3.0\], got 9.0"),
        ("name=../../etc", "name: .*pattern.*, got '../../etc'"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(override: str, said: str) -> None:
    with pytest.raises(TrainerError, match=f"^recipe digits_lt: .*{said}"):
        load_recipe("digits_lt", [override])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train.anotations=x", "data.train.anotations: unknown key with value 'x'; did you mean annotations?"),
        ("data.faults=ignore", "data.faults: .*'skip' or 'refuse', got 'ignore'"),
        ("detector.head.tau=0", "detector.head.tau: .*greater than 0, got 0"),
        ("augment.shortest_sides=[0]", "augment.shortest_sides.0: .*greater than or equal to 1, got 0"),
        ("input.resize=exact", "input.resize must be longest_side for task=detection, got 'exact'"),
        ("alpha={choose: mean_cosine}", "alpha.choose must be recipe for task=detection, got 'mean_cosine'"),
        ("optimizer.sharpness_rho=0.05", "optimizer.sharpness_rho=0.05 is for task=classification; leave it out"),
        ("task=segmentation", "task: must be classification or detection, got 'segmentation'"),
        ("loss.name=focal", "loss: unknown key"),
    ],
)
def test_a_wrong_key_of_a_detectors_recipe_is_named_with_what_is_allowed(override: str, said: str) -> None:
    with pytest.raises(TrainerError, match=f"^recipe coco_tail_mini: .*{said}"):
        read_recipe("coco_tail_mini", [override])


def test_commands_for_classifiers_refuse_a_detectors_recipe() -> None:
    with pytest.raises(TrainerError, match=r"recipe lvis_v1: task is 'detection'; this command takes"):
        load_recipe("lvis_v1")
    with pytest.raises(TrainerError, match=r"input.resize=longest_side belongs to task=detection"):
        load_recipe("digits_lt", ["input.resize=longest_side"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "must read key=value"),
        ("=1", "must read key=value"),
        ("data..source=1", "must read key=value"),
        ("precision.x=1", "precision is a value and has no keys"),
        ("seed=[1", "not valid YAML"),
        ("seed=2026-13-45", "not valid YAML: month must be in"),
        ("seed={a: 1, a: 2}", "the key 'a' occurs twice"),
    ],
)
def test_an_override_that_cannot_be_read_is_shown(override: str, said: str) -> None:
    with pytest.raises(TrainerError) as refused:
        load_recipe("digits_lt", [override])
    assert str(refused.value).startswith(f"--set {override!r}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must be a mapping of keys, got NoneType"),
        (b"- 1\n- 2\n", "must be a mapping of keys, got list"),
        (b"5", "must be a mapping of keys, got int"),
        (b"a:\n\t- b", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor"),
        (b"[" * 1500, "not valid YAML"),
        (DIGITS.read_bytes() + b"\nseed: 1\nseed: 2\n", "not valid YAML: the key 'seed' occurs twice"),
        (DIGITS.read_bytes() + b"\n1: 2\n", "1: .*strings"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_its_name(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(TrainerError, match=f"^recipe {file}: {said}"):
        load_recipe(str(file))


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"'cifar': not known; give one of .*cifar100_lt.* or the path"):
        load_recipe("cifar")
    with pytest.raises(TrainerError, match=r"none\.yaml: cannot be read \(No such file"):
        load_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(TrainerError, match=r"folder\.yaml: cannot be read \(Is a directory"):
        load_recipe(str(tmp_path / "folder.yaml"))


def test_every_fault_of_a_recipe_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "faulty.yaml"
    file.write_text("name: mine\nbatch_size: zero\nunknown: 1\n")
    with pytest.raises(TrainerError) as refused:
        load_recipe(str(file))
    message = str(refused.value)
    assert all(f"{key}: " in message for key in ("batch_size", "unknown", "data", "input", "backbone", "schedule"))


def test_a_recipe_cannot_be_changed_once_read() -> None:
    recipe = load_recipe("digits_lt")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 5  # type: ignore[misc]


def test_every_key_of_a_recipe_is_covered_by_defaults_that_are_allowed() -> None:
    for field in Recipe.model_fields.values():
        if not field.is_required():
            field.get_default(call_default_factory=False)
    assert Recipe.model_validate(load_recipe("digits_lt").model_dump()) == load_recipe("digits_lt")
