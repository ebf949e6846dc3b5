//! What every backend does alike.

mod endings;
mod inventory;
mod uploads;

/// Makes a test of each case for each backend.
macro_rules! over_all_backends {
    ($($module:ident: $($case:ident),+ $(,)?);+ $(;)?) => {
        over_all_backends!(@backend filesystem, crate::support::Kind::Filesystem, $($module: $($case),+);+);
        over_all_backends!(@backend minio, crate::support::Kind::S3(harness::S3Kind::Minio), $($module: $($case),+);+);
        over_all_backends!(@backend versitygw, crate::support::Kind::S3(harness::S3Kind::Versitygw), $($module: $($case),+);+);
    };
    (@backend $backend:ident, $kind:expr, $($module:ident: $($case:ident),+);+) => {
        mod $backend {
            $($(
                #[test]
                fn $case() {
                    crate::support::run($kind, super::$module::$case);
                }
            )+)+
        }
    };
}

over_all_backends! {
    uploads:
        blobs_are_written_and_read,
        both_algorithms,
        uploads_go_on_in_other_processes,
        one_writer_makes_many_checkpoints,
        tiny_chunks,
        empty_chunks;
    endings:
        a_digest_that_does_not_match,
        an_algorithm_that_nobody_announced,
        a_discarded_upload_is_gone,
        a_dropped_upload_leaves_nothing,
        a_retried_end_finds_the_blob,
        two_requests_end_one_upload,
        a_checkpoint_of_another_store;
    inventory:
        blobs_are_listed_and_removed,
        a_store_keeps_its_identity,
        records_are_written_and_listed,
        damage_is_found,
        unfinished_uploads_are_found;
}
