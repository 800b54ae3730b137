"""What Alembic runs: the migrations, on the connection that it is given."""

from alembic import context

from swapmeet.database.tables import Table

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True, compare_type=True)
context.run_migrations()
