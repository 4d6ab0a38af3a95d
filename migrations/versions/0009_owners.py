"""Whose jobs, compositions and pictures they are, and the tokens by which the HTTP server knows its callers."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    # '' is whoever uses this machine without a token: the command line, stdio, loopback
    op.execute("alter table jobs add column owner text not null default ''")
    op.execute("alter table compositions add column owner text not null default ''")
    op.execute("alter table jobs drop constraint jobs_request_id_key")
    op.execute("create unique index jobs_request_id on jobs (owner, request_id)")
    op.execute("create index jobs_unfinished on jobs (owner) where status in ('queued', 'running')")
    op.execute("""
    create table tokens (
        name        text primary key,
        hash        bytea not null unique,
        scopes      text[] not null,
        created_at  timestamptz not null default now(),
        revoked_at  timestamptz
    )
    """)
    op.execute("comment on column tokens.hash is 'SHA-256: tokens are long and random, nothing slower is needed'")
    op.execute("""
    create table pictures (
        owner       text not null,
        id          text not null,
        created_at  timestamptz not null default now(),
        primary key (owner, id)
    )
    """)
    op.execute("comment on table pictures is 'that clients brought; id is the SHA-256 of the file in the image store'")
