"""Adapters whose weights are fetched when they are first used, and versions of one model."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute('alter table adapters add column download text, add column "group" text')
    op.execute("comment on column adapters.download is 'where the weights come from when they are first used'")
    op.execute("comment on column adapters.group is 'what the versions of one model share; null stands alone'")
    op.execute('create index adapters_group on adapters ("group") where "group" is not null')
