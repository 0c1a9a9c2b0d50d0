"""Parquet shards read where they lie, a row group at a time, for data sets that are too large to copy or to hold.

Rows are numbered over all shards in order, so labels, long tails and held-out pictures work as for any other source.
What makes that quick is the order of an epoch: ``order_by_groups`` shuffles row groups, and pictures within a window of
them, so that a process reads whole groups and each of them about once. It is a function of the seed alone: a place in
it is a number of batches, and a run goes on from there. Knows neither pixels nor models.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features
from numpy.typing import NDArray
from torch import Tensor

from trainer.errors import TrainerError

LANES = 64
FOOTER = 1 << 16
"""Bytes at the end of a shard that stand for its content: the places, sizes and statistics of its columns."""


class Shards:
    """The shards of one split, opened: columns and their types, and the number of rows of each row group.

    Args:
        files: parquet files; their rows follow each other in this order.
        window: rows that a process holds meanwhile.

    Raises:
        TrainerError: a file that is no parquet, or with other columns than the first.
    """

    def __init__(self, files: list[Path], window: int) -> None:
        self.files, self.window = files, window
        opened: list[pq.ParquetFile] = []
        for file in files:
            with _reading(file):
                opened.append(pq.ParquetFile(file, pre_buffer=False))
        self.schema: pa.Schema = opened[0].schema_arrow
        for file, other in zip(files, opened, strict=True):
            if not self.schema.equals(other.schema_arrow):
                raise TrainerError(
                    f"{file}: its columns differ from those of {files[0]}; all shards need the same ones"
                )
        self.features: Features = Features.from_arrow_schema(self.schema)
        self.column_names: list[str] = self.schema.names
        self.group_rows = np.array(
            [shard.metadata.row_group(group).num_rows for shard in opened for group in range(shard.num_row_groups)],
            dtype=np.int64,
        )
        self.group_places = [
            (file, group) for file, shard in zip(files, opened, strict=True) for group in range(shard.num_row_groups)
        ]

    def __len__(self) -> int:
        return int(self.group_rows.sum())

    def column(self, name: str) -> NDArray[Any]:
        """Read a small column whole.

        Raises:
            TrainerError: a file that is damaged there.
        """
        parts = []
        for file in self.files:
            with _reading(file):
                parts.append(pq.ParquetFile(file, pre_buffer=False).read(columns=[name]).column(0))
        return np.asarray(pa.chunked_array([chunk for part in parts for chunk in part.chunks]))

    def pictures(self, name: str) -> "ShardPictures":
        """Take the column of pictures, which is read as it is needed.

        Raises:
            TypeError: it holds no bytes.
        """
        if "binary" not in str(self.schema.field(name).type):
            raise TypeError(f"{name} holds no bytes")
        return ShardPictures(self, name, np.arange(len(self)))

    def fingerprint(self) -> str:
        """Hash the ends of the files, which tell their content apart, and their sizes; not where they lie."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as opened:
                size = opened.seek(0, 2)
                opened.seek(max(0, size - FOOTER))
                digest.update(f"{size} ".encode() + opened.read())
        return digest.hexdigest()


class ShardPictures:
    """The pictures of some rows of shards, as the column ``image`` of a table.

    Args:
        shards: where they lie.
        image: the name of their column: bytes, or bytes and path.
        numbers: the rows over all shards [N].
    """

    def __init__(self, shards: Shards, image: str, numbers: NDArray[np.int64]) -> None:
        self.shards, self.image, self.numbers = shards, image, numbers
        self._begins = np.concatenate(([0], shards.group_rows.cumsum()))
        self._held: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, indices: NDArray[np.int64]) -> Self:
        """Keep these rows, in this order."""
        return type(self)(self.shards, self.image, self.numbers[indices])

    def fingerprint(self) -> bytes:
        """Hash which rows they are, and of which shards."""
        return hashlib.sha256(self.shards.fingerprint().encode() + self.numbers.tobytes()).digest()

    def groups(self) -> NDArray[np.int64]:
        """Give the row group of each row [N], counted over all shards."""
        return np.asarray(self._begins.searchsorted(self.numbers, side="right") - 1, dtype=np.int64)

    def __getitem__(self, index: int) -> dict[str, dict[str, Any] | None]:
        number = int(self.numbers[index])
        group = int(self._begins.searchsorted(number, side="right")) - 1
        value = self._group(group)[number - int(self._begins[group])].as_py()
        return {"image": {"bytes": value, "path": None} if isinstance(value, bytes) else value}

    def _group(self, group: int) -> pa.ChunkedArray:
        if group in self._held:
            self._held.move_to_end(group)
            return self._held[group]
        file, number = self.shards.group_places[group]
        with _reading(file):
            opened = pq.ParquetFile(file, pre_buffer=False)
            # No threads: a worker process that was forked has none of its parent's.
            self._held[group] = opened.read_row_group(number, columns=[self.image], use_threads=False).column(0)
        while len(self._held) > 1 and sum(map(len, self._held.values())) > self.shards.window:
            self._held.popitem(last=False)
        return self._held[group]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": OrderedDict()}


def order_by_groups(groups: Tensor, *, batch_size: int, window: int, generator: torch.Generator) -> Tensor:
    """Shuffle rows so that reading them in order takes few row groups at a time.

    Row groups come in random order, and the rows of each ``window`` of them are shuffled. A batch is cut into 64 lanes;
    within a window each lane has groups of its own. So every batch mixes a whole window, while a process, which takes
    some lanes of every batch, reads its share of the groups alone, however many processes there are.

    Args:
        groups: the row group of each row [N].
        batch_size: of all processes together.
        window: rows that are shuffled among each other; at least one batch.
        generator: of random numbers.

    Returns:
        A permutation of the rows [N].

    Example:
        >>> order = order_by_groups(
        ...     torch.arange(8) // 2, batch_size=2, window=4, generator=torch.Generator().manual_seed(0)
        ... )
        >>> sorted(order.tolist()), [len(set((part // 2).tolist())) for part in order.split(4)]
        ([0, 1, 2, 3, 4, 5, 6, 7], [2, 2])
    """
    place = torch.randperm(int(groups.max()) + 1, generator=generator)
    rows = torch.argsort(place[groups], stable=True)
    size = max(window // batch_size, 1) * batch_size
    return torch.cat([_deal(part, batch_size, generator) for part in rows.split(size)])


def _deal(rows: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    lane = torch.arange(len(rows)) % batch_size * LANES // batch_size
    places = torch.argsort(lane, stable=True)
    chance = torch.rand(len(rows), generator=generator, dtype=torch.float64)
    order = torch.empty_like(rows)
    order[places] = rows[torch.argsort(lane[places] + chance)]
    return order


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise TrainerError(f"{file}: cannot be read as parquet ({reason}); mend or remove it") from error
