"""What people said of two arms' pictures."""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute("""
    create table polls (
        evaluation  text primary key,
        seed        bigint not null
    )
    """)
    op.execute("comment on column polls.seed is 'of order and sides: drawn once, so that nobody can guess'")
    op.execute("""
    create table votes (
        id          bigint primary key generated always as identity,
        ballot      text not null,
        voter       text not null,
        prompt      text not null,
        left_arm    text not null,
        right_arm   text not null,
        choice      text not null check (choice in ('left', 'tie', 'right', 'skip')),
        voted_at    timestamptz not null default now()
    )
    """)
    op.execute("comment on column votes.ballot is 'SHA-256 of prompt, arms and pixels: what was seen'")
    op.execute("create unique index votes_once on votes (ballot, lower(voter))")
