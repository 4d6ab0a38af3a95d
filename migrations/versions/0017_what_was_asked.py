"""What a client asked for, so that its retry is told from another request under the same request_id."""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.execute("alter table jobs add column if not exists asked text")
    op.execute("comment on column jobs.asked is 'SHA-256 of the arguments as they were sent; null: nobody compares'")
