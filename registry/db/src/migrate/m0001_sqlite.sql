-- What each table and its rows mean is in docs/design/registry.md.

create table if not exists repositories (
    -- Numbers are never given twice: they are kept in caches.
    id integer primary key autoincrement,
    name text not null unique,
    created_at integer not null
) strict;

create table if not exists blobs (
    id integer primary key autoincrement,
    digest text not null unique,
    size integer not null,
    store_key text not null unique,
    created_at integer not null
) strict;

create table if not exists links (
    repository_id integer not null,
    blob_id integer not null,
    -- Null: referenced.
    leased_until integer,
    primary key (repository_id, blob_id)
) strict, without rowid;

create index if not exists links_by_blob on links (blob_id);

create index if not exists links_by_lease on links (leased_until) where leased_until is not null;

create table if not exists manifests (
    id integer primary key autoincrement,
    repository_id integer not null,
    digest text not null,
    media_type text not null,
    artifact_type text,
    subject text,
    -- A JSON object.
    annotations text not null,
    size integer not null,
    -- The name of its record in the store.
    record text not null unique,
    created_at integer not null,
    -- When it was pushed last, or the last tag went elsewhere.
    idle_since integer not null,
    -- Last, for it may lie on pages of its own.
    content blob not null,
    unique (repository_id, digest)
) strict;

create index if not exists manifests_by_subject on manifests (repository_id, subject, id) where subject is not null;

create table if not exists manifest_blobs (
    manifest_id integer not null,
    repository_id integer not null,
    digest text not null,
    -- 0: it need not be here, for clients get it elsewhere.
    required integer not null,
    primary key (manifest_id, digest)
) strict, without rowid;

create index if not exists manifest_blobs_by_digest on manifest_blobs (repository_id, digest);

create table if not exists manifest_children (
    manifest_id integer not null,
    repository_id integer not null,
    digest text not null,
    primary key (manifest_id, digest)
) strict, without rowid;

create index if not exists manifest_children_by_digest on manifest_children (repository_id, digest);

create table if not exists tags (
    repository_id integer not null,
    name text not null,
    manifest_id integer not null,
    change_id integer not null,
    updated_at integer not null,
    primary key (repository_id, name)
) strict, without rowid;

create index if not exists tags_by_manifest on tags (manifest_id);

create index if not exists tags_by_change on tags (change_id);

create table if not exists changes (
    id integer primary key autoincrement,
    made_at integer not null,
    -- 1 push, 2 tag, 3 untag, 4 delete.
    kind integer not null,
    repository_id integer not null,
    tag text,
    digest text not null,
    previous text
) strict;

create index if not exists changes_by_tag on changes (repository_id, tag, id) where tag is not null;

create table if not exists uploads (
    id text primary key,
    repository text,
    state text not null,
    offset_bytes integer not null,
    version integer not null,
    -- 0 open, 1 cancelled, 2 finished.
    status integer not null,
    updated_at integer not null
) strict;

create index if not exists uploads_by_time on uploads (updated_at);

create index if not exists uploads_by_status on uploads (status);

create table if not exists removals (
    id integer primary key autoincrement,
    entry text not null,
    size integer not null,
    created_at integer not null,
    claimed_until integer not null
) strict;

create table if not exists settings (
    name text primary key,
    content text not null
) strict, without rowid;
