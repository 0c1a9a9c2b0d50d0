"""The tables of policies, kept predictions and labels. `service.migrations` makes them; a test holds both together."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

revision = Table(
    "revision",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", BigInteger, nullable=False),
    comment="one row, whose number grows with every change of a policy or a key: processes watch it",
)

clients = Table(
    "clients",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("policy", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("client", String(64), ForeignKey("clients.name", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float, nullable=True),
)

changes = Table(
    "changes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("who", String(200), nullable=False),
    Column("client", String(64), nullable=False, index=True),
    Column("what", String(40), nullable=False),
    Column("before", JSON, nullable=True),
    Column("after", JSON, nullable=True),
    comment="who changed which client, when, from what to what; it outlives the client",
)

models = Table(
    "models",
    metadata,
    Column("version", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("seen_at", Float, nullable=False),
    comment="what replay must know of a model: classes with their counts, range of alpha",
)

predictions = Table(
    "predictions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("client", String(64), nullable=False),
    Column("model", String(16), nullable=False),
    Column("at", Float, nullable=False, index=True),
    Column("alpha", Float, nullable=False),
    Column("prior_strength", Float, nullable=False),
    Column("max_prior_strength", Float, nullable=False),
    Column("target", String(16), nullable=False),
    Column("winner", Integer, nullable=False),
    Column("candidates", LargeBinary, nullable=False),
    Index(None, "client", "at"),
)

labels = Table(
    "labels",
    metadata,
    Column("prediction", String(32), ForeignKey("predictions.id", ondelete="CASCADE"), primary_key=True),
    Column("label", Integer, nullable=False),
    Column("at", Float, nullable=False),
)
