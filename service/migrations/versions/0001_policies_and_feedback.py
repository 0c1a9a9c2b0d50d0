"""Policies, keys and their changes; models, kept predictions and labels."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    counter = op.create_table(
        "revision",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revision"),
        comment="one row, whose number grows with every change of a policy or a key: processes watch it",
    )
    op.bulk_insert(counter, [{"id": 1, "number": 1}])
    op.create_table(
        "clients",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("policy", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_clients"),
    )
    op.create_table(
        "keys",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float, nullable=True),
        sa.PrimaryKeyConstraint("hash", name="pk_keys"),
        sa.ForeignKeyConstraint(["client"], ["clients.name"], name="fk_keys_client", ondelete="CASCADE"),
    )
    op.create_index("ix_keys_client", "keys", ["client"])
    op.create_table(
        "changes",
        sa.Column("id", sa.Integer, autoincrement=True, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("what", sa.String(40), nullable=False),
        sa.Column("before", sa.JSON, nullable=True),
        sa.Column("after", sa.JSON, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_changes"),
        comment="who changed which client, when, from what to what; it outlives the client",
    )
    op.create_index("ix_changes_client", "changes", ["client"])
    op.create_table(
        "models",
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_models"),
        comment="what replay must know of a model: classes with their counts, range of alpha",
    )
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("model", sa.String(16), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("alpha", sa.Float, nullable=False),
        sa.Column("prior_strength", sa.Float, nullable=False),
        sa.Column("max_prior_strength", sa.Float, nullable=False),
        sa.Column("target", sa.String(16), nullable=False),
        sa.Column("winner", sa.Integer, nullable=False),
        sa.Column("candidates", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_predictions"),
    )
    op.create_index("ix_predictions_at", "predictions", ["at"])
    op.create_index("ix_predictions_client_at", "predictions", ["client", "at"])
    op.create_table(
        "labels",
        sa.Column("prediction", sa.String(32), nullable=False),
        sa.Column("label", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("prediction", name="pk_labels"),
        sa.ForeignKeyConstraint(["prediction"], ["predictions.id"], name="fk_labels_prediction", ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("labels", "predictions", "models", "changes", "keys", "clients", "revision"):
        op.drop_table(table)
