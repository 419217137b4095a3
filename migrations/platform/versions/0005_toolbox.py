"""A session remembers whether this product is shown inside it."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Sessions that exist have none."""
    op.execute(
        "ALTER TABLE session ADD COLUMN toolbox INTEGER NOT NULL DEFAULT 0 "
        "CHECK (toolbox IN (0, 1))"
    )


def downgrade() -> None:
    """Forget it."""
    op.execute("ALTER TABLE session DROP COLUMN toolbox")
