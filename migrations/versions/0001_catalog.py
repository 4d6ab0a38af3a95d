"""Adapters, their embeddings, and the history of compositions and images."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
    create table adapters (
        id              text primary key,
        name            text not null,
        description     text not null,
        tags            text[] not null,
        trigger_words   text[] not null,
        base_model      text,
        kind            text not null,
        category        text not null,
        weight          double precision not null,
        rating          text not null,
        examples        jsonb not null,
        author          text,
        licence         text,
        url             text,
        file            text,
        sha256          text,
        bytes           bigint,
        refined         boolean not null,
        quality         text,
        hidden          boolean not null,
        content_hash    text not null,
        added_at        timestamptz not null default now(),
        updated_at      timestamptz not null default now()
    )
    """)
    op.execute("comment on column adapters.content_hash is 'of the card: unchanged means no work to do again'")
    op.execute("comment on column adapters.quality is 'why it should not be picked; null is fine'")

    # No fixed dimension: each embedding model has its own, and its own partial index, made when the catalog grows.
    op.execute("""
    create table embeddings (
        adapter     text not null references adapters (id) on delete cascade,
        model       text not null,
        chunk       integer not null,
        embedding   halfvec not null,
        primary key (adapter, model, chunk)
    )
    """)

    op.execute("""
    create table compositions (
        id          text primary key,
        prompt      text not null,
        base_model  text not null,
        record      jsonb not null,
        created_at  timestamptz not null default now()
    )
    """)

    # A job that runs twice stores each of its images once; images made without a job have no such tie.
    op.execute("""
    create table images (
        id              text primary key,
        job_id          text,
        index           integer not null,
        composition_id  text,
        record          jsonb not null,
        created_at      timestamptz not null,
        unique (job_id, index)
    )
    """)
    op.execute("create index images_newest on images (created_at desc, id)")
