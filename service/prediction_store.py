"""Kept predictions and their labels, in the database. It knows neither the model's run nor HTTP."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, delete, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite

from service import tables
from service.clients import NOBODY, Owner
from service.database import Database
from service.manifest import ManifestDraft

_AT_A_TIME = 500
"""Identifiers in one query: below what SQLite and PostgreSQL take as parameters."""

_LONGEST_DELETION = 15.0
"""Seconds for the two statements that forget many predictions, each of which may take what any other may."""

_MOST_ROWS = 512
"""Rows in one statement, a power of two; of ten columns, so below what either takes as parameters."""


class KeptPrediction(NamedTuple):
    """A prediction as it is kept; the names are the table's, and it goes to the driver as the row that it is."""

    id: str
    client: str
    model: str
    at: float
    alpha: float
    prior_strength: float
    max_prior_strength: float
    target: str
    winner: int
    candidates: bytes


@dataclass(frozen=True, slots=True)
class Served:
    """Whose a kept prediction is, which model made it, and which class it named."""

    client: str
    model: str
    winner: int


@dataclass(frozen=True, slots=True)
class LabelledPrediction:
    """What replay needs of a prediction whose true class is known."""

    label: int
    max_prior_strength: float
    candidates: bytes


@dataclass(frozen=True, slots=True)
class LabelCount:
    """How many labels a client's kept predictions have, and when the newest came, in seconds since 1970."""

    labels: int
    newest: float


class PredictionStore:
    """Writes predictions and labels, and reads them for replay.

    Args:
        database: where they are kept.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = clock

    def remember_model(self, manifest: ManifestDraft, version: str) -> None:
        """Keep what replay must know of a model."""
        content = manifest.model_dump(mode="json", exclude={"provenance"})
        row = {"version": version, "name": manifest.name, "manifest": content, "seen_at": self._now()}
        with self._database.writing() as connection:
            statement = _insert(connection.dialect.name)(tables.models).values(row)
            connection.execute(
                statement.on_conflict_do_update(index_elements=["version"], set_={"seen_at": row["seen_at"]})
            )

    def model(self, version: str) -> ManifestDraft | None:
        """Return what was kept of a model, or None where nothing was."""
        with self._database.reading() as connection:
            query = select(tables.models.c.manifest).where(tables.models.c.version == version)
            content: dict[str, Any] | None = connection.execute(query).scalar_one_or_none()
        return None if content is None else _manifest(content)

    def newest_model(self) -> str | None:
        """Return the version of the model that a process began to serve last, or None where none ever did."""
        with self._database.reading() as connection:
            query = select(tables.models.c.version).order_by(tables.models.c.seen_at.desc()).limit(1)
            version: str | None = connection.execute(query).scalar_one_or_none()
        return version

    def write(self, owners: Sequence[Owner], predictions: Sequence[KeptPrediction]) -> int:
        """Keep predictions; one that is there already stays as it is.

        Those of a client that was removed meanwhile are left out, also where another has its name now.

        Args:
            owners: whose each of the predictions is.
            predictions: as many.

        Returns:
            How many are kept.
        """
        with self._database.writing() as connection:
            there = _hold_clients(connection, set(owners) - {NOBODY}) | {NOBODY}
            rows = [row for owner, row in zip(owners, predictions, strict=True) if owner in there]
            first = 0
            while left := len(rows) - first:
                count = min(_MOST_ROWS, 1 << left.bit_length() - 1)
                _insert_rows(connection, rows[first : first + count])
                first += count
        return len(rows)

    def find(self, ids: Sequence[str], client: str | None) -> dict[str, Served]:
        """Return those of the predictions that are kept and are the client's, by id; None: anyone's."""
        kept = tables.predictions
        found: dict[str, Served] = {}
        with self._database.reading() as connection:
            for first in range(0, len(ids), _AT_A_TIME):
                query = select(kept.c.id, kept.c.client, kept.c.model, kept.c.winner)
                query = query.where(kept.c.id.in_(ids[first : first + _AT_A_TIME]))
                if client is not None:
                    query = query.where(kept.c.client == client)
                for row in connection.execute(query):
                    found[row.id] = Served(row.client, row.model, row.winner)
        return found

    def label(self, labels: dict[str, int]) -> set[str]:
        """Keep the true class of predictions, by id; a later label replaces an earlier. Durable when it returns.

        Returns:
            The ids of those that are kept; the others have been forgotten, and so are their labels.
        """
        if not labels:
            return set()
        now = self._now()
        with self._database.writing() as connection:
            kept = _hold(connection, sorted(labels))
            if not kept:
                return set()
            statement = _insert(connection.dialect.name)(tables.labels)
            statement = statement.on_conflict_do_update(
                index_elements=["prediction"], set_={"label": statement.excluded.label, "at": statement.excluded.at}
            )
            # In one order, so that two processes that label the same never wait for each other in a circle.
            rows = [{"prediction": key, "label": labels[key], "at": now} for key in kept]
            connection.execute(statement, rows)
        return set(kept)

    def labelled(self, client: str, *, model: str, target: str, limit: int) -> list[LabelledPrediction]:
        """Return the newest labelled predictions of a client by one model and one target distribution."""
        kept, labels = tables.predictions, tables.labels
        query = select(labels.c.label, kept.c.max_prior_strength, kept.c.candidates)
        query = query.join(labels, labels.c.prediction == kept.c.id)
        query = query.where(kept.c.client == client, kept.c.model == model, kept.c.target == target)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(kept.c.at.desc()).limit(limit)).all()
        return [LabelledPrediction(row.label, row.max_prior_strength, row.candidates) for row in rows]

    def label_counts(self, model: str | None = None) -> dict[str, LabelCount]:
        """Return what each client has of labels, by its name; only those that have some.

        Args:
            model: count those of this version's predictions; None: all.
        """
        with self._database.reading() as connection:
            rows = connection.execute(_label_counts(model)).all()
        return {row.client: LabelCount(row.labels, row.newest) for row in rows}

    def label_count(self, client: str, model: str) -> LabelCount | None:
        """Return what one client has of labels of a model's predictions; None: it has none."""
        with self._database.reading() as connection:
            query = _label_counts(model).where(tables.predictions.c.client == client)
            row = connection.execute(query).one_or_none()
        return None if row is None else LabelCount(row.labels, row.newest)

    def prune(self, *, max_age: float, max_unlabelled: int, max_labelled: int) -> None:
        """Forget the oldest predictions, with their labels.

        Clients do not cost each other what they need: whoever has no more than a fair share keeps all of it, and a
        label is never given up for a prediction without one. A second call changes nothing, in this process or another.

        Args:
            max_age: seconds after which any is forgotten.
            max_unlabelled: how many without a label are kept of all clients together, in fair shares.
            max_labelled: how many with a label are kept of each client.
        """
        kept, labels = tables.predictions, tables.labels
        has_label = exists().where(labels.c.prediction == kept.c.id)
        with self._database.writing() as connection:
            connection.execute(delete(kept).where(kept.c.at < self._now() - max_age))
        labelled = {client: each.labels for client, each in self.label_counts().items()}
        with self._database.reading() as connection:
            query = select(kept.c.client, func.count().label("kept")).group_by(kept.c.client)
            unlabelled = {row.client: row.kept - labelled.get(row.client, 0) for row in connection.execute(query)}
        share = fair_share(unlabelled.values(), max_unlabelled)
        for counts, most, which in ((unlabelled, share, ~has_label), (labelled, max_labelled, has_label)):
            for client, count in counts.items():
                if count > most:
                    self._keep_newest(most, which & (kept.c.client == client))

    def _keep_newest(self, most: int, which: ColumnElement[bool]) -> None:
        kept = tables.predictions
        with self._database.writing(seconds=_LONGEST_DELETION) as connection:
            query = select(kept.c.at).where(which).order_by(kept.c.at.desc()).offset(most).limit(1)
            newest_to_go = connection.execute(query).scalar_one_or_none()
            if newest_to_go is not None:
                connection.execute(delete(kept).where(which, kept.c.at <= newest_to_go))


def fair_share(counts: Iterable[int], most: int) -> int:
    """Return the largest share such that what counts leave of it, min(count, share), is at most so much in all.

    >>> fair_share([10, 500, 900], 600)  # 10 + 295 + 295
    295
    """
    left, ascending = most, sorted(counts)
    for position, count in enumerate(ascending):
        share = left // (len(ascending) - position)
        if count > share:
            return share
        left -= count
    return most


def _insert_rows(connection: Connection, rows: Sequence[KeptPrediction]) -> None:
    """Insert all rows, a power of two of them, by one statement of the driver.

    SQLAlchemy's own work for a row costs more than writing it, and a statement a row would have this thread ask for
    the interpreter once a row, which stops those who answer requests. Statements of few lengths are prepared once:
    to read one takes longer than to run it.
    """
    statement = _insertion("%s" if connection.dialect.name == "postgresql" else "?", len(rows))
    connection.exec_driver_sql(statement, tuple(chain.from_iterable(rows)))


@cache
def _insertion(mark: str, count: int) -> str:
    columns, row = ", ".join(KeptPrediction._fields), f"({', '.join([mark] * len(KeptPrediction._fields))})"
    values = ", ".join([row] * count)
    return f"INSERT INTO {tables.predictions.name} ({columns}) VALUES {values} ON CONFLICT DO NOTHING"  # noqa: S608


def _hold_clients(connection: Connection, owners: set[Owner]) -> set[Owner]:
    """Return which clients of these names are there; none is removed before the transaction ends."""
    if not owners:
        return set()
    client = tables.clients.c
    names = sorted({owner.name for owner in owners})
    query = select(client.name, client.created_at).where(client.name.in_(names)).order_by(client.name)
    rows = connection.execute(query.with_for_update(read=True, key_share=True))
    return {Owner(row.name, row.created_at) for row in rows}


def _hold(connection: Connection, ids: Sequence[str]) -> list[str]:
    """Return those of the predictions that are there, in order; they cannot be forgotten before the transaction ends.

    SQLite lets one write at a time anyway.
    """
    column, found = tables.predictions.c.id, list[str]()
    for first in range(0, len(ids), _AT_A_TIME):
        query = select(column).where(column.in_(ids[first : first + _AT_A_TIME])).order_by(column)
        found += connection.execute(query.with_for_update(read=True, key_share=True)).scalars()
    return sorted(found)


def _label_counts(model: str | None) -> Select[Any]:
    kept, labels = tables.predictions, tables.labels
    query = select(kept.c.client, func.count().label("labels"), func.max(labels.c.at).label("newest"))
    query = query.join(labels, labels.c.prediction == kept.c.id).group_by(kept.c.client)
    return query if model is None else query.where(kept.c.model == model)


def _manifest(content: dict[str, Any]) -> ManifestDraft:
    known = ManifestDraft.model_fields.keys() & content.keys()
    return ManifestDraft.model_validate({name: content[name] for name in known})


def _insert(dialect: str) -> Callable[..., Any]:
    return postgresql.insert if dialect == "postgresql" else sqlite.insert
