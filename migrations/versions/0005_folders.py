"""Files of ingested folders, as they were when they were last read; adapters whose file is gone."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("alter table adapters add rank integer, add missing boolean not null default false")
    op.execute("comment on column adapters.missing is 'the file was here once and is gone'")

    # Several paths may hold one adapter: copies of a file.
    op.execute("""
    create table files (
        path        text primary key,
        adapter     text not null references adapters (id) on delete cascade,
        bytes       bigint not null,
        modified    bigint not null,
        beside      text not null,
        claimed     text
    )
    """)
    op.execute("comment on column files.modified is 'nanoseconds since 1970'")
    op.execute("comment on column files.beside is 'the cards and pictures beside it: unchanged means no reading'")
    op.execute("comment on column files.claimed is 'the base model that a card names where the tensors are of another'")
    op.execute("create index files_adapter on files (adapter)")
