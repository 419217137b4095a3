"""Alembic environment of the engine's schema.

`persistence.migrate` runs it inside its own transaction.  For writing a new revision::

    alembic -x url=sqlite:///scratch.db revision --autogenerate -m "what changes"
"""

from alembic import context

from persistence.database import open_database
from persistence.tables import metadata

connection = context.config.attributes.get("connection")


def _run() -> None:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    context.run_migrations()


if connection is not None:
    _run()
else:
    database = open_database(context.get_x_argument(as_dictionary=True)["url"])
    with database.transaction() as sql:
        connection = sql.connection
        _run()
    database.close()
