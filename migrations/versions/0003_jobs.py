"""Generations as their owners see them; who works on one is the queue's business (0002)."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("""
    create table jobs (
        id                  text primary key,
        request_id          text unique,
        status              text not null default 'queued'
                            check (status in ('queued', 'running', 'done', 'failed', 'cancelled')),
        request             jsonb not null,
        progress            jsonb not null,
        attempt             integer not null default 0,
        deaths              integer not null default 0,
        cancel_requested    boolean not null default false,
        error               text,
        created_at          timestamptz not null default now(),
        started_at          timestamptz,
        finished_at         timestamptz
    )
    """)
    op.execute("comment on column jobs.request_id is 'of the client: its retry finds the job that it started'")
    op.execute("comment on column jobs.attempt is 'only the newest may change the row: older ones come too late'")
    op.execute("comment on column jobs.deaths is 'workers that ended without a word while they worked on it'")
    op.execute("create index jobs_newest on jobs (created_at desc)")
