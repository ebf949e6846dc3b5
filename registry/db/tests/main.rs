//! The registry's database: one suite over SQLite, MariaDB and PostgreSQL, and what is special about each.

#![allow(clippy::unwrap_used)]

mod cases;
mod histories;
mod servers;
mod sqlite;
mod support;

use support::{Kind, run};

/// Every case on every database, each in an empty one.
macro_rules! suite {
    ($($module:ident: $($case:ident),+ $(,)?);+ $(;)?) => {
        suite!(@on on_mariadb, MariaDb, $($module: $($case),+);+);
        suite!(@on on_postgres, Postgres, $($module: $($case),+);+);
        suite!(@on on_sqlite, Sqlite, $($module: $($case),+);+);
    };
    (@on $name:ident, $kind:ident, $($module:ident: $($case:ident),+);+) => {
        mod $name {
            use super::*;
            $($(
                #[test]
                fn $case() {
                    run(Kind::$kind, cases::$module::$case);
                }
            )+)+
        }
    };
}

suite! {
    blobs:
        a_committed_blob_is_readable_in_its_repository_only,
        a_digest_that_is_there_keeps_its_first_bytes,
        committing_again_is_harmless,
        bytes_that_were_given_up_are_never_committed,
        a_mount_needs_a_link_in_its_source,
        leases_are_renewed_and_never_shortened,
        unlinking_takes_the_last_copy_away,
        unlinking_leaves_what_a_manifest_needs;
    manifests:
        a_manifest_is_found_by_tag_and_digest,
        a_push_needs_its_blobs_and_children,
        pushing_again_changes_nothing,
        tags_move_and_their_history_stays,
        deleting_a_tag_leaves_the_manifest,
        deleting_a_manifest_takes_its_tags_and_leases_its_blobs,
        referrers_are_listed_in_pages,
        a_refused_push_makes_no_repository,
        pushes_and_deletes_have_conditions,
        what_was_asked_for_stays_untagged,
        large_manifests_and_many_layers,
        only_what_nothing_holds_counts_as_untagged,
        changes_are_a_log;
    lists:
        lists_are_in_the_order_of_bytes,
        lists_of_many_are_quick;
    uploads:
        checkpoints_have_versions,
        each_client_has_so_many,
        a_cancelled_upload_stays_cancelled,
        uploads_expire,
        settings_are_the_same_for_all;
    collecting:
        what_nothing_needs_goes_when_its_lease_is_over,
        a_dry_run_foresees_and_changes_nothing,
        removals_are_claimed,
        large_backlogs_are_worked_off_in_batches;
    repairing:
        pages_show_everything,
        dangling_rows_are_found_and_repaired,
        a_forgotten_blob_heals_with_the_next_push,
        everything_is_restored_from_what_the_store_knows,
        what_is_lost_gets_what_is_there,
        a_database_that_was_set_back_is_not_written_to;
    concurrency:
        one_digest_is_stored_once,
        an_upload_is_a_blob_or_ended,
        one_tag_has_one_history,
        of_conditional_pushes_one_wins,
        first_pushes_make_one_repository,
        pushes_and_the_collector,
        pushes_of_several_blobs_and_the_collector,
        mounts_and_the_collector,
        deletes_and_pushes,
        collectors_beside_each_other,
        futures_can_be_sent_and_dropped;
}
