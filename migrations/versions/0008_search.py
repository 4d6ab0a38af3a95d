"""What a search needs beside the cards: facets to filter by, words for BM25, and which vectors are of names."""

from alembic import op

revision = "0008"
down_revision = "0007"

# Every combination of what can be filtered by is one row, of which a catalog has some hundreds. Vectors and postings
# carry its number, so that a filter is a list of numbers: no join, and one index finds the few that pass.
FACETS = """
create table facets (
    id          integer generated always as identity primary key,
    base_model  text not null,
    kind        text not null,
    category    text not null,
    rating      text not null,
    licence     text not null,
    has_file    boolean not null,
    fetchable   boolean not null,
    flagged     boolean not null,
    hidden      boolean not null,
    unique (base_model, kind, category, rating, licence, has_file, fetchable, flagged, hidden)
);
comment on column facets.base_model is 'empty: unknown';
comment on column facets.licence is 'in lower case, its first 100 characters; empty: unknown';
comment on column facets.has_file is 'the weights lie on this machine';
comment on column facets.fetchable is 'the weights can be fetched when they are first used';
comment on column facets.flagged is 'there is a reason not to pick it';

create function facet_of(a adapters) returns integer language plpgsql as $$
declare
    found_id integer;
begin
    loop
        select id into found_id from facets where base_model = coalesce(a.base_model, '') and kind = a.kind
            and category = a.category and rating = a.rating and licence = left(lower(coalesce(a.licence, '')), 100)
            and has_file = (a.file is not null and not a.missing) and fetchable = (a.download is not null)
            and flagged = (a.quality is not null) and hidden = a.hidden;
        if found then
            return found_id;
        end if;
        -- One at a time: two ingestions that meet the same new combinations in another order would wait for each other.
        perform pg_advisory_xact_lock(x'4661636574'::bigint);
        insert into facets (base_model, kind, category, rating, licence, has_file, fetchable, flagged, hidden)
        values (coalesce(a.base_model, ''), a.kind, a.category, a.rating, left(lower(coalesce(a.licence, '')), 100),
            a.file is not null and not a.missing, a.download is not null, a.quality is not null, a.hidden)
        on conflict do nothing;
    end loop;
end $$;

alter table adapters add column facet integer references facets (id);
alter table embeddings add column facet integer;
comment on column embeddings.chunk is 'a piece of the card, from 0; -1 is its name alone, to compare keywords with';
"""

POSTINGS = """
create table documents (
    adapter     text primary key references adapters (id) on delete cascade,
    number      bigint generated always as identity unique,
    length      real not null,
    rules       text not null
);
comment on table documents is 'adapters whose words are in postings';
comment on column documents.length is 'of the card in words, each counted with the weight of its field';
comment on column documents.rules is 'by which the words were made: others make others, which do not match';

create table postings (
    term        text not null,
    number      bigint not null references documents (number) on delete cascade,
    frequency   real not null,
    length      real not null,
    facet       integer not null,
    primary key (term, number) include (frequency, length, facet)
);
comment on table postings is 'which word stands how often, weighted by its field, in which document';
create index postings_number on postings (number);

-- The stem that Postgres's English dictionary gives; words of other languages and scripts stay as they are.
create function stem(word text) returns text language sql immutable parallel safe as $$
    select coalesce((ts_lexize('english_stem', word))[1], word)
$$;

create table collection (
    documents   bigint not null,
    length      double precision not null
);
comment on table collection is 'one row: how many documents there are, and their length in all';
insert into collection values (0, 0);
"""

# More statistics than usual: whether a search reads the vectors that pass or walks the index hangs on how many pass.
EXISTING = """
update adapters set facet = facet_of(adapters);
update embeddings set facet = adapters.facet from adapters where id = adapter;
alter table embeddings alter column facet set not null, alter column facet set statistics 1000;
alter table adapters alter column facet set not null;
create index embeddings_facet on embeddings (model, facet);
"""

TRIGGERS = """
create function adapter_facet() returns trigger language plpgsql as $$
begin
    new.facet := facet_of(new);
    return new;
end $$;
create trigger adapter_facet before insert or update on adapters
for each row execute function adapter_facet();

create function facet_changed() returns trigger language plpgsql as $$
begin
    update embeddings set facet = new.facet where adapter = new.id;
    update postings set facet = new.facet from documents d where d.adapter = new.id and postings.number = d.number;
    return null;
end $$;
create trigger facet_changed after update on adapters
for each row when (old.facet is distinct from new.facet) execute function facet_changed();

create function embedding_facet() returns trigger language plpgsql as $$
begin
    select facet into new.facet from adapters where id = new.adapter;
    return new;
end $$;
create trigger embedding_facet before insert on embeddings
for each row execute function embedding_facet();

create function documents_added() returns trigger language plpgsql as $$
begin
    update collection set (documents, length) =
        (select documents + count(*), collection.length + coalesce(sum(added.length), 0) from added);
    return null;
end $$;
create trigger documents_added after insert on documents
referencing new table as added for each statement execute function documents_added();

create function documents_removed() returns trigger language plpgsql as $$
begin
    update collection set (documents, length) =
        (select documents - count(*), collection.length - coalesce(sum(removed.length), 0) from removed);
    return null;
end $$;
create trigger documents_removed after delete on documents
referencing old table as removed for each statement execute function documents_removed();

create function documents_emptied() returns trigger language plpgsql as $$
begin
    update collection set documents = 0, length = 0;
    return null;
end $$;
create trigger documents_emptied after truncate on documents
for each statement execute function documents_emptied();
"""


def upgrade() -> None:
    for script in (FACETS, POSTINGS, EXISTING, TRIGGERS):
        # The scripts hold colons and percent signs that SQLAlchemy would take for parameters.
        op.get_bind().connection.cursor().execute(script)
