"""Evaluations: what was planned, the compositions and pictures so far, and what was measured on each picture."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("""
    create table evaluations (
        id          text primary key,
        folder      text not null,
        plan        jsonb not null,
        created_at  timestamptz not null default now()
    )
    """)
    op.execute(
        "comment on column evaluations.id is 'SHA-256 of plan and folder: the same options in the same folder go on'"
    )
    op.execute("""
    create table evaluation_compositions (
        evaluation  text not null references evaluations on delete cascade,
        policy      text not null,
        prompt      integer not null,
        record      jsonb not null,
        primary key (evaluation, policy, prompt)
    )
    """)
    op.execute(
        "comment on table evaluation_compositions is 'arms of one policy share them, and a second run has the same'"
    )
    op.execute("""
    create table evaluation_images (
        id          bigint primary key generated always as identity,
        evaluation  text not null references evaluations on delete cascade,
        mode        text not null,
        arm         text not null,
        prompt      integer not null,
        guidance    double precision not null,
        index       integer not null,
        seed        bigint not null,
        location    text not null,
        record      jsonb not null,
        measures    jsonb not null default '{}',
        unique (evaluation, mode, arm, prompt, guidance, index)
    )
    """)
    op.execute("comment on column evaluation_images.location is 'relative to the folder of the evaluation'")
    op.execute("comment on column evaluation_images.record is 'as inside the PNG'")
    op.execute("""
    create table evaluation_vectors (
        image       bigint not null references evaluation_images on delete cascade,
        features    text not null,
        vector      real[] not null,
        primary key (image, features)
    )
    """)
