"""What is needed to delete old pictures: how large they are, when they were used, and which are gone."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute("alter table images add column bytes bigint, add column deleted_at timestamptz")
    op.execute("comment on column images.bytes is 'of the file; null until somebody looked'")
    op.execute("create index images_kept on images (created_at) where deleted_at is null")
    op.execute("alter table pictures add column bytes bigint not null default 0")
    op.execute("alter table pictures rename column created_at to used_at")
    # those that came as base64 had no row until now
    op.execute("""
    insert into pictures (owner, id, used_at)
    select owner, picture, max(created_at) from jobs, lateral (values (request ->> 'image'), (request ->> 'mask'))
        as started_from (picture)
    where picture is not null group by owner, picture
    on conflict do nothing
    """)
