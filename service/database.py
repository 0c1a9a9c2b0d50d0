"""How a database is reached and brought up to date: SQLite or PostgreSQL. It knows no table.

Everything is bounded in time: a database that does not answer gives an error, never a wait without end.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import StoreUnavailable

_PATIENCE = 5
"""Seconds that a statement, a lock or a connection may take."""

_MIGRATION_LOCK = 0x65766E6B  # any number, as long as it is always the same


def check_url(url: str) -> str:
    """Return the address of a database if the service can use it.

    Raises:
        ValueError: it cannot be read, or names another kind of database.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError("a database's address looks like sqlite:///state/evenkeel.sqlite; correct it") from error
    if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise ValueError(f"a database must be sqlite or postgresql, got {parsed.get_backend_name()!r}; change it")
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise ValueError("SQLite needs a file here, as several threads and processes share it; name one")
    return url


def connect(url: str) -> Engine:
    """Return an engine for the address; nothing is opened yet."""
    parsed = make_url(check_url(url))
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    patience = f"-c statement_timeout={_PATIENCE * 1000} -c lock_timeout={_PATIENCE * 1000}"
    return create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_timeout=_PATIENCE,
        pool_size=6,
        connect_args={"connect_timeout": _PATIENCE, "options": patience, "tcp_user_timeout": _PATIENCE * 1000},
    )


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _PATIENCE}, pool_timeout=_PATIENCE)

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


def migrate(engine: Engine) -> None:
    """Bring the tables up to date; several processes may do so at once, and one of them will.

    The folder of a SQLite file is made.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    if engine.dialect.name == "sqlite":
        with suppress(OSError):  # whoever connects then learns that the file cannot be opened
            Path(engine.url.database or "").parent.mkdir(parents=True, exist_ok=True)
    head = ScriptDirectory.from_config(config).get_current_head()
    with engine.connect() as connection:
        if MigrationContext.configure(connection).get_current_revision() == head:
            return
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


class Database:
    """Transactions on a database that may be away.

    Args:
        url: where it is.
        told: is called after each transaction with whether the database was there.
    """

    def __init__(self, url: str, told: Callable[[bool], None] = lambda there: None) -> None:
        self._engine = connect(url)
        self._told = told

    def migrate(self) -> None:
        """Bring the tables up to date."""
        with self._translated():
            migrate(self._engine)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that only reads."""
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that writes; it is durable once the block is left without an error."""
        with (
            self._translated(),
            self._engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, PoolTimeout, OSError) as error:
            self._told(False)
            raise StoreUnavailable(
                f"The database cannot be used: {str(getattr(error, 'orig', error)).splitlines()[0]}",
                remedy="Try again in some seconds; the operator finds the reason in the service's log.",
                retry_after=2,
            ) from error
        self._told(True)
