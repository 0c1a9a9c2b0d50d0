"""How Alembic runs the migrations: on the connection that `service.store` hands it, or on EVENKEEL_DATABASE_URL."""

from alembic import context
from sqlalchemy import Connection

from service.database import connect
from service.settings import Settings
from service.tables import metadata


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _migrate(given)
else:
    with connect(Settings().database_url).begin() as opened:
        _migrate(opened)
