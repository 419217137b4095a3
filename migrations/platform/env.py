"""Alembic environment: runs inside the transaction that `persistence.migrate` holds."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
