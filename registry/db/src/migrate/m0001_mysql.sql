-- What each table and its rows mean is in docs/design/registry.md.
-- Texts are compared byte by byte: tags differ in the case of a letter. Indexes stand in the tables, for MySQL has no other way to make
-- one only if it is not there.

create table if not exists repositories (
    -- Numbers are never given twice: they are kept in caches.
    id bigint not null auto_increment primary key,
    name varchar(255) not null,
    created_at bigint not null,
    unique key repositories_by_name (name)
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;

create table if not exists blobs (
    id bigint not null auto_increment primary key,
    digest varchar(135) not null,
    size bigint not null,
    store_key varchar(32) not null,
    created_at bigint not null,
    unique key blobs_by_digest (digest),
    unique key blobs_by_key (store_key)
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;

create table if not exists links (
    repository_id bigint not null,
    blob_id bigint not null,
    -- Null: referenced.
    leased_until bigint,
    primary key (repository_id, blob_id),
    key links_by_blob (blob_id),
    key links_by_lease (leased_until)
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;

create table if not exists manifests (
    id bigint not null auto_increment primary key,
    repository_id bigint not null,
    digest varchar(135) not null,
    media_type varchar(255) not null,
    artifact_type longtext,
    subject varchar(135),
    -- A JSON object.
    annotations longtext not null,
    size bigint not null,
    -- The name of its record in the store.
    record varchar(128) not null,
    created_at bigint not null,
    -- When it was pushed last, or the last tag went elsewhere.
    idle_since bigint not null,
    content longblob not null,
    unique key manifests_by_digest (repository_id, digest),
    unique key manifests_by_record (record),
    key manifests_by_subject (repository_id, subject, id)
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;

create table if not exists manifest_blobs (
    manifest_id bigint not null,
    repository_id bigint not null,
    digest varchar(135) not null,
    -- 0: it need not be here, for clients get it elsewhere.
    required bigint not null,
    primary key (manifest_id, digest),
    key manifest_blobs_by_digest (repository_id, digest)
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;

create table if not exists manifest_children (
    manifest_id bigint not null,
    repository_id bigint not null,
    digest varchar(135) not null,
    primary key (manifest_id, digest),
    key manifest_children_by_digest (repository_id, digest)
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;

create table if not exists tags (
    repository_id bigint not null,
    name varchar(128) not null,
    manifest_id bigint not null,
    change_id bigint not null,
    updated_at bigint not null,
    primary key (repository_id, name),
    key tags_by_manifest (manifest_id),
    key tags_by_change (change_id)
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;

create table if not exists changes (
    id bigint not null auto_increment primary key,
    made_at bigint not null,
    -- 1 push, 2 tag, 3 untag, 4 delete.
    kind bigint not null,
    repository_id bigint not null,
    tag varchar(128),
    digest varchar(135) not null,
    previous varchar(135),
    key changes_by_tag (repository_id, tag, id)
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;

create table if not exists uploads (
    id varchar(32) not null primary key,
    repository varchar(255),
    state longtext not null,
    offset_bytes bigint not null,
    version bigint not null,
    -- 0 open, 1 cancelled, 2 finished.
    status bigint not null,
    updated_at bigint not null,
    key uploads_by_time (updated_at),
    key uploads_by_status (status)
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;

create table if not exists removals (
    id bigint not null auto_increment primary key,
    entry varchar(1024) not null,
    size bigint not null,
    created_at bigint not null,
    claimed_until bigint not null
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;

create table if not exists settings (
    name varchar(255) not null primary key,
    content longtext not null
) engine = innodb default character set utf8mb4 collate utf8mb4_bin;
