import warnings

import pytest
import torch
from torch import Tensor

from trainer.matching import bare_names, key_faults


def quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have everybody move on to torchao
        return torch.quantize_per_tensor(torch.ones(2), scale=0.1, zero_point=0, dtype=torch.qint8)


STRANGE = {
    "on the meta device": torch.ones(2, device="meta"),
    "of torch.sparse_coo": torch.ones(2).to_sparse(),
    "of torch.qint8": quantised(),
    "of torch.complex64": torch.ones(2, dtype=torch.complex64),
    "of torch.int64": torch.ones(2, dtype=torch.int64),
    "of torch.bool": torch.ones(2, dtype=torch.bool),
}


def faults_of(value: Tensor, wanted: Tensor, name: str = "weight") -> list[str]:
    return key_faults({name: wanted}, {name: ("key", value)})


@pytest.mark.parametrize("kind", STRANGE)
def test_weights_that_are_no_plain_floats_are_named(kind: str) -> None:
    assert faults_of(STRANGE[kind], torch.ones(2)) == [
        f"kind: key is {kind}, and weight takes plain numbers as torch.float32"
    ]
    assert len(key_faults({}, {"weight": ("key", STRANGE[kind])})) == 1, "unexpected, whatever it is"


def test_a_number_must_be_finite_as_the_models_type() -> None:
    for value in (torch.tensor([1e300], dtype=torch.float64), torch.tensor([torch.nan])):
        assert faults_of(value, torch.ones(1)) == ["value: key holds a NaN or an infinity as torch.float32"]
    assert not faults_of(torch.tensor([1e30], dtype=torch.float64), torch.ones(1))


def test_a_counter_may_be_of_any_real_type() -> None:
    for kind in (torch.int32, torch.float16):
        assert not faults_of(torch.tensor(3, dtype=kind), torch.tensor(0), "bn.num_batches_tracked")
    assert faults_of(torch.tensor(3 + 0j), torch.tensor(0), "bn.num_batches_tracked")


def test_a_prefix_goes_name_by_name_and_never_joins_two() -> None:
    one = torch.ones(1)
    assert list(bare_names({"module.a": one, "b": one})) == ["a", "b"]
    with pytest.raises(ValueError, match=r"holds both 'a' and 'module\.a'; keep one of them"):
        bare_names({"module.a": one, "a": one})
