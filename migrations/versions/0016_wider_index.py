"""A keyword is looked for among cards and names in one walk: the index of names gives way to one of both."""

from alembic import op

revision = "0016"
down_revision = "0015"

# A catalog of 100,000 adapters takes about a minute.
INDEXES = """
do $$
declare
    old record;
begin
    for old in
        select c.relname as name, pg_get_indexdef(c.oid) as definition
        from pg_index join pg_class c on c.oid = indexrelid
        where indrelid = 'embeddings'::regclass and c.relname ~ '^embeddings_names_[0-9a-f]{16}$'
    loop
        execute format('drop index %I', old.name);
        execute replace(replace(old.definition, ' AND (chunk < 0)', ''), 'embeddings_names_', 'embeddings_all_');
    end loop;
end $$
"""


def upgrade() -> None:
    op.execute("set local maintenance_work_mem = '1GB'")
    op.execute(INDEXES)
