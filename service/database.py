"""How a database is reached and brought up to date: SQLite or PostgreSQL. It knows no table.

A PostgreSQL that does not answer gives an error in time, never a wait without end, whatever keeps it: its own timeouts
serve while it runs, and a deadline on this side where it is frozen and its kernel still acknowledges. A lock on a
SQLite file is waited for in time, too; yet a disk that hangs below one holds up whoever asks, as nothing ends that
wait. A SQLite file that is removed or replaced while it is open is noticed at the next transaction: nothing is written
to what nobody will read again.
"""

import logging
import math
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.abc import RV, PQGen
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import StoreUnavailable

logger = logging.getLogger(__name__)

_REPLACED = "the file of the database was removed or replaced"

_NEWER = "It was brought up to date by a newer release, whose {!r} this one does not know; run that release."

_PATIENCE = 5
"""Seconds that a statement, a lock or a connection may take."""

_DEADLINE = 6
"""Seconds that a transaction may take from its wish for a connection on; longer than what the server itself ends."""

_MIGRATION_DEADLINE = 60
"""Seconds that bringing the tables up to date may take: many statements, each of which may take what any other may."""

_MIGRATION_LOCK = 0x65766E6B  # any number, as long as it is always the same

_SERVER = re.compile("[^:]+://([^@/?:]*(:[^@]*)?@)?[^@]*")
"""The address of a PostgreSQL in which an '@' stands between password and host alone."""

_UNDEFINED_TABLE = "42P01"
"""What PostgreSQL says of a table that is not there."""


def check_url(url: str) -> str:
    """Return the address of a database if the service can use it.

    Raises:
        ValueError: it cannot be read, or names another kind of database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # the latter for a port that is no number
        raise ValueError(
            "a database's address looks like sqlite:///state/evenkeel.sqlite or "
            "postgresql://user:password@host:5432/evenkeel; correct it"
        ) from error
    if parsed.get_backend_name() == "sqlite":
        _refuse_strange_sqlite(url, parsed)
    elif parsed.get_backend_name() != "postgresql":
        raise ValueError(f"a database must be sqlite or postgresql, got {parsed.get_backend_name()!r}; change it")
    elif not _SERVER.fullmatch(url):  # else a piece of a password may be looked up, and logged
        raise ValueError("an '@' within a user, password or name is written %40, and '/' in a user %2F; change it")
    return url


def _refuse_strange_sqlite(text: str, url: URL) -> None:
    if url.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise ValueError(f"SQLite is reached by Python's own driver alone, got {url.drivername!r}; write sqlite:///...")
    if url.username or url.password or url.host or url.port or "?" in text:
        raise ValueError("SQLite takes a file and nothing else: sqlite:/// and its path, which may begin with /")
    if url.database in {None, "", ":memory:"}:
        raise ValueError("SQLite needs a file here, as several threads and processes share it; name one")


def connect(url: str) -> Engine:
    """Return an engine for the address; nothing is opened yet."""
    parsed = make_url(check_url(url))
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return _postgresql(parsed)


_ends: ContextVar[float] = ContextVar("_ends", default=math.inf)
"""When the transaction under way must have ended, by the monotonic clock."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Bound the transaction in a block, from the checkout of its connection to its commit, on this side of the wire."""
    token = _ends.set(monotonic() + seconds)
    try:
        yield
    finally:
        _ends.reset(token)


class _Connection(psycopg.Connection[Any]):
    """A connection that is given up when its server has not answered by the end of the transaction's time."""

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:  # noqa: ANN401 - psycopg's own
        """Do what asks the server, all of which passes here: statements, pings, commits and rollbacks."""
        return super().wait(self._until_the_end(gen), *args, **kwargs)

    def _until_the_end(self, steps: PQGen[RV]) -> PQGen[RV]:
        """Pass steps on; `wait` comes back ten times a second though nothing has come."""
        try:
            wanted = next(steps)
            while True:
                ready = yield wanted
                if monotonic() > _ends.get():
                    self.close()  # so SQLAlchemy, too, takes it for lost
                    raise _too_late()
                wanted = steps.send(ready)
        except StopIteration as end:
            result: RV = end.value
            return result


def _too_late() -> psycopg.OperationalError:
    return psycopg.OperationalError("the database did not answer in time")


def _postgresql(url: URL) -> Engine:
    options = f"-c statement_timeout={_PATIENCE * 1000} -c lock_timeout={_PATIENCE * 1000}"
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_timeout=_PATIENCE,
        pool_size=6,
        connect_args={"options": options, "tcp_user_timeout": _PATIENCE * 1000},
    )

    @event.listens_for(engine, "do_connect")
    def open_connection(*given: Any) -> _Connection:  # noqa: ANN401 - SQLAlchemy's own
        _, _, arguments, parameters = given
        left = _ends.get() - monotonic()
        if left <= 0:
            raise _too_late()
        # psycopg keeps this time itself, in whole seconds and for each address of the host.
        patience = {"connect_timeout": math.ceil(min(left, _PATIENCE))}
        return _Connection.connect(*arguments, **parameters | patience)

    return engine


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, pool_timeout=_PATIENCE)
    path = _path(engine)

    @event.listens_for(engine, "do_connect")
    def open_file(_: object, record: Any, *__: object) -> sqlite3.Connection:  # noqa: ANN401 - SQLAlchemy's own
        record.info["file"] = _file(path)
        # `rw`: connecting never makes an empty file; `migrate` alone makes one.
        return sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=_PATIENCE, uri=True, check_same_thread=False)

    @event.listens_for(engine, "checkout")
    def look(_: object, record: Any, __: object) -> None:  # noqa: ANN401 - SQLAlchemy's own
        if record.info["file"] != _file(path):
            raise InvalidatePoolError(_REPLACED)  # the pool opens the file anew

    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _: object) -> None:
        connection.isolation_level = None  # the driver begins no transaction by itself: `begin` below does
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Who writes says so at once: a lock that is taken later may be refused without waiting for it.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _path(engine: Engine) -> Path:
    return Path(engine.url.database or "").absolute()


def _file(path: Path) -> tuple[int, int] | None:
    """Return what tells one file from another of the same name; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_file(path: Path) -> None:
    """Make an empty file, for its owner alone, and its folder, where there is none.

    What goes wrong is said by whoever connects then.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def migrate(engine: Engine, *, make: bool = True) -> None:
    """Bring the tables up to date; several processes may do so at once, and one of them will.

    Args:
        engine: of `connect`.
        make: make a SQLite file and its folder where there are none.

    Raises:
        OSError: a newer release has brought them further than this one knows, or there is no file and none is made.
    """
    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    if engine.dialect.name == "sqlite":
        if not make and _file(path := _path(engine)) is None:
            raise OSError(
                f"There is no file {path}; start the service or add a client, which makes it, or correct "
                "EVENKEEL_DATABASE_URL."
            )
        _make_file(_path(engine))
    scripts = ScriptDirectory.from_config(config)
    with _at_most(_DEADLINE), engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {each.revision for each in scripts.walk_revisions()}:
        raise OSError(_NEWER.format(current))
    with (
        _at_most(_MIGRATION_DEADLINE),
        engine.connect().execution_options(writes=True) as connection,
        connection.begin(),
    ):
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


class Database:
    """Transactions on a database that may be away.

    Args:
        url: where it is.
        told: is called after each transaction with whether the database is there: whether the last that read and the
            last that wrote both went well.

    Attributes:
        losses: how many times its tables or its file were found to be gone or replaced: whoever has prepared it does so
            again when this grows.
    """

    def __init__(self, url: str, told: Callable[[bool], None] = lambda there: None) -> None:
        self._engine = connect(url)
        self._told = told
        self._went_well = {"reading": True, "writing": True}
        self.losses = 0
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "invalidate", self._lost)

    def migrate(self, *, make: bool = True) -> None:
        """Bring the tables up to date, and make a SQLite file where there is none, unless that is not wanted."""
        with self._translated("reading"):
            migrate(self._engine, make=make)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that only reads."""
        with self._translated("reading"), _at_most(_DEADLINE), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, *, seconds: float | None = None) -> Iterator[Connection]:
        """Open a transaction that writes; it is durable once the block is left without an error.

        Args:
            seconds: that it may take, as far as a PostgreSQL is concerned; None: what others may.
        """
        with (
            self._translated("writing"),
            _at_most(_DEADLINE if seconds is None else seconds),
            self._engine.connect().execution_options(writes=True) as connection,
        ):
            with connection.begin():
                yield connection
            self._check_that_it_was_kept(connection)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def _check_that_it_was_kept(self, connection: Connection) -> None:
        """Look once more whether the file is there: a commit to one that was removed meanwhile succeeds."""
        if self._engine.dialect.name == "sqlite" and connection.info["file"] != _file(_path(self._engine)):
            connection.invalidate()
            raise OSError(_REPLACED)

    def _lost(self, *_: object) -> None:
        self.losses += 1
        logger.warning("%s: %s; it is prepared anew", self._engine.url.database, _REPLACED)

    @contextmanager
    def _translated(self, kind: Literal["reading", "writing"]) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, PoolTimeout, OSError) as error:
            self._tell(kind, went_well=False)
            if _lacks_a_table(error):
                self.losses += 1
            raise StoreUnavailable(
                "The database cannot be used.",
                remedy="Try again in some seconds; the operator finds the reason in the service's log.",
                retry_after=2,
                reason=str(getattr(error, "orig", error)).splitlines()[0],
            ) from error
        self._tell(kind, went_well=True)

    def _tell(self, kind: Literal["reading", "writing"], *, went_well: bool) -> None:
        self._went_well[kind] = went_well
        self._told(all(self._went_well.values()))


def _lacks_a_table(error: Exception) -> bool:
    reason = getattr(error, "orig", error)
    return getattr(reason, "sqlstate", None) == _UNDEFINED_TABLE or str(reason).startswith("no such table")
