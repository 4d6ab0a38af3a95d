"""What vision models wrote of adapters, beside what their cards said."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # Kept as soon as the model has answered, for that is what was paid for; embedding and using it may follow later.
    op.execute("""
    create table refinements (
        adapter         text primary key references adapters (id) on delete cascade,
        content_hash    text not null,
        model           text not null,
        refinement      jsonb not null,
        original        jsonb not null,
        repairs         text[] not null,
        input_tokens    bigint not null,
        output_tokens   bigint not null,
        cost            double precision,
        applied         boolean not null default false,
        refined_at      timestamptz not null default now()
    )
    """)
    op.execute(
        "comment on column refinements.content_hash is 'of the card that the model saw: another one is not refined'"
    )
    op.execute(
        "comment on column refinements.original is 'what the card says in the fields that a refinement replaces'"
    )
    op.execute("comment on column refinements.repairs is 'what had to be mended in the reply of the model'")
    op.execute("comment on column refinements.cost is 'US dollars; null where nobody knows the prices of the model'")
    op.execute("comment on column refinements.applied is 'the adapter has it, and vectors of it'")
