"""What models and people said of two arms' pictures."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("""
    create table judgements (
        key             text primary key,
        model           text not null,
        reply           jsonb not null,
        input_tokens    bigint not null,
        output_tokens   bigint not null,
        cost            double precision,
        judged_at       timestamptz not null default now()
    )
    """)
    op.execute("comment on column judgements.key is 'SHA-256 of the question: model, instructions, prompt, pictures'")
    op.execute("comment on column judgements.cost is 'US dollars; null where nobody knows the prices of the model'")
