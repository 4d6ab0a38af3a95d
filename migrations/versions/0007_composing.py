"""Compositions that were asked for before, and what is known about adapters beside their cards."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # A sequence and no counter in a row: ingestions that run side by side would wait for each other's row. It counts
    # changes that are rolled back too, which makes the cache forget more than it has to, and never less.
    op.execute("create sequence catalog_revision")
    op.execute("""
    create function catalog_changed() returns trigger language plpgsql as $$
    begin
        perform nextval('catalog_revision');
        return null;
    end $$
    """)
    op.execute("""
    create trigger catalog_changed after insert or update or delete or truncate on adapters
    for each statement execute function catalog_changed()
    """)

    op.execute("""
    create table composition_cache (
        key         text primary key,
        revision    bigint not null,
        draft       jsonb not null,
        used_at     timestamptz not null default now()
    )
    """)
    op.execute("comment on column composition_cache.key is 'SHA-256 of prompt, candidates, model, limits and rules'")
    op.execute("create index composition_cache_used on composition_cache (used_at)")

    # No foreign key: an adapter that leaves the catalog and comes back is the same adapter.
    op.execute("""
    create table adapter_weights (
        adapter     text primary key,
        weight      double precision not null
    )
    """)
    op.execute("comment on table adapter_weights is 'weights that a person set, instead of the recommended ones'")

    op.execute("""
    create table flagged_pairs (
        one         text not null,
        other       text not null check (one < other),
        reason      text not null,
        primary key (one, other)
    )
    """)
    op.execute("comment on table flagged_pairs is 'adapters that must not be loaded together'")

    op.execute("""
    create table adapter_norms (
        adapter     text primary key references adapters (id) on delete cascade,
        norm        double precision not null,
        file        text not null,
        bytes       bigint not null
    )
    """)
    op.execute("comment on column adapter_norms.norm is 'Frobenius norm of the whole weight change at strength 1'")
    op.execute("comment on column adapter_norms.file is 'that was measured; another file or size is measured again'")
