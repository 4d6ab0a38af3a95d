"""${message}

The revision's name is the number that the file's name starts with; `stylus.migrate` relies on it.
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    op.execute("""
    """)
