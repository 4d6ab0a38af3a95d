"""The gallery asks for images of one seed, to show them beside each other."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("create index images_seed on images ((record ->> 'seed'))")
