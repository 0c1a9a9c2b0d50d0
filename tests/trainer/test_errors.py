import errno
import os
from pathlib import Path

import pytest

from trainer.errors import TrainerError, writing


def test_a_full_disk_is_to_be_freed_and_any_other_fault_is_not(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(TrainerError, match=r"; free space there, or use another folder$"), writing(tmp_path):
            raise OSError(number, os.strerror(number))
    (tmp_path / "file").touch()
    with (
        pytest.raises(TrainerError, match=r"cannot be written \(Not a directory\); use another folder$"),
        writing(tmp_path),
    ):
        (tmp_path / "file" / "run").mkdir()
