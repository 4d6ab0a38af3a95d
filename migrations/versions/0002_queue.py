"""The queue's tables, as the installed procrastinate defines them.

A database made earlier keeps the schema of the procrastinate of its day: when pyproject.toml moves to one with schema
changes, a new revision must run that package's own migration files.
"""

from alembic import op
from procrastinate.schema import SchemaManager

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # The script holds colons and percent signs that SQLAlchemy would take for parameters.
    op.get_bind().connection.cursor().execute(SchemaManager.get_schema())
