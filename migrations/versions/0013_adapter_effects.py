"""What adapters were measured to do."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("""
    create table adapter_effects (
        adapter         text primary key references adapters (id) on delete cascade,
        sha256          text not null,
        bytes           bigint not null,
        modified        bigint not null,
        weight          double precision not null,
        checkpoint      text not null,
        features        text not null,
        protocol        text not null,
        direction       halfvec not null,
        strength        double precision not null,
        consistency     double precision not null,
        strangeness     double precision not null,
        broken          double precision not null,
        kept            double precision not null,
        said            halfvec,
        words           text not null,
        measured_at     timestamptz not null default now()
    )
    """)
    op.execute(
        "comment on table adapter_effects is 'only rows of one checkpoint, features and protocol can be compared'"
    )
    op.execute("comment on column adapter_effects.sha256 is 'of the file that was measured, with its size and time'")
    op.execute("comment on column adapter_effects.said is 'where the words of the card point to; null: it has none'")
    op.execute("comment on column adapter_effects.words is 'digest of the words of the card that were used'")
