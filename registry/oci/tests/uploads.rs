//! What holds for all uploads.

use oci::upload::{ContentRange, Receiving, Refused, Upload, UploadId, UploadLimits};
use oci::{Algorithm, Digest, RepositoryName};
use proptest::prelude::*;

/// What a client may do to an upload.
#[derive(Clone, Debug)]
enum Request {
    /// `PATCH` with a range that starts so far from where it should, a length, and the sizes of the body's parts.
    Chunk { range: Option<(i64, u64)>, length: Option<u64>, parts: Vec<u64>, breaks: bool },
    /// `PUT`.
    Finish { right: bool },
}

fn request() -> impl Strategy<Value = Request> {
    let range = proptest::option::of((prop_oneof![4 => Just(0i64), 1 => -3i64..4], 0u64..12));
    let length = proptest::option::of(0u64..12);
    let parts = proptest::collection::vec(prop_oneof![9 => 0u64..5, 1 => any::<u64>()], 0..4);
    prop_oneof![
        6 => (range, length, parts, prop::bool::weighted(0.2))
            .prop_map(|(range, length, parts, breaks)| Request::Chunk { range, length, parts, breaks }),
        1 => any::<bool>().prop_map(|right| Request::Finish { right }),
    ]
}

/// The content is a known sequence of bytes; what arrived is a prefix of it, or the state machine let something
/// through.
fn content(from: u64, count: u64) -> impl Iterator<Item = u8> {
    (from..from + count).map(|at| u8::try_from(at % 251).expect("below 251"))
}

proptest! {
    /// Whatever requests come, in whatever order: the bytes are a prefix of the content without gap or overlap, never
    /// more than the limit, and only the right digest ends it.
    #[test]
    fn uploads_hold_what_was_sent(
        requests in proptest::collection::vec(request(), 0..25), limit in 0u64..60, most in 0u64..60,
    ) {
        let (repository, id): (RepositoryName, _) = ("a/b".parse().expect("a name"), UploadId::new(1, [0; 10]));
        let limits = UploadLimits { size_bytes_max: limit, chunk_bytes_max: most };
        // What the store keeps between requests.
        let mut durable: Vec<u8> = Vec::new();
        let mut upload: Upload<Receiving> = Upload::new(repository.clone(), id, limits).receive();
        for request in requests {
            let offset = upload.offset();
            prop_assert_eq!(offset, durable.len() as u64);
            prop_assert!(offset <= limit);
            // Another process may go on from what is durable.
            let resume = || Upload::resume(repository.clone(), id, limits, offset).expect("within the limit");
            match request {
                Request::Chunk { range, length, parts, breaks } => {
                    let range = range.and_then(|(shift, len)| {
                        let start = offset.checked_add_signed(shift)?;
                        let end = (start + len).checked_sub(1)?;
                        Some(ContentRange::parse(&format!("{start}-{end}")).expect("a range"))
                    });
                    let in_order = range.is_none_or(|range| range.start() == offset);
                    let differ = range.is_some_and(|range| length.is_some_and(|length| length != range.len()));
                    let announced = length.or_else(|| range.map(ContentRange::len));
                    let too_large = announced.is_some_and(|announced| offset + announced > limit);
                    let chunk_too_large = announced.is_some_and(|announced| announced > most);
                    let mut chunk = match upload.begin(range, length) {
                        Ok(chunk) => {
                            prop_assert!(in_order && !differ && !too_large && !chunk_too_large);
                            chunk
                        }
                        Err(refused) => {
                            let why = match refused {
                                Refused::OutOfOrder { .. } => !in_order && refused.status() == 416,
                                Refused::LengthDiffers { .. } => in_order && differ,
                                Refused::TooLarge { .. } => too_large,
                                Refused::ChunkTooLarge { .. } => chunk_too_large,
                                _ => false,
                            };
                            prop_assert!(why, "{refused:?}");
                            upload = resume();
                            continue;
                        }
                    };
                    let (mut body, mut refusal) = (Vec::new(), None);
                    for part in parts {
                        match chunk.take(part) {
                            Ok(()) => body.extend(content(offset + body.len() as u64, part)),
                            Err(refused) => {
                                let taken = body.len() as u64;
                                let why = match refused {
                                    Refused::TooLong { announced } => part > announced - taken,
                                    Refused::TooLarge { .. } => part > limit - offset - taken,
                                    Refused::ChunkTooLarge { .. } => part > most - taken,
                                    _ => false,
                                };
                                prop_assert!(why, "{refused:?}");
                                refusal = Some(refused);
                                break;
                            }
                        }
                        prop_assert_eq!(chunk.offset(), offset + body.len() as u64);
                    }
                    if breaks || refusal.is_some() {
                        upload = chunk.abandon();
                        continue;
                    }
                    match chunk.end() {
                        Ok(next) => {
                            prop_assert!(announced.is_none_or(|announced| announced == body.len() as u64));
                            durable.extend(body);
                            upload = next;
                        }
                        Err(refused) => {
                            let short = matches!(refused, Refused::TooShort { .. });
                            prop_assert!(short);
                            prop_assert!(announced.is_some_and(|announced| announced > body.len() as u64));
                            upload = resume();
                        }
                    }
                }
                Request::Finish { right } => {
                    let found = Digest::of(Algorithm::Sha256, &durable);
                    let expected = if right { found.clone() } else { Digest::of(Algorithm::Sha256, b"something else") };
                    match upload.finish(&expected, found.clone()) {
                        Ok(verified) => {
                            prop_assert!(right);
                            let committed = verified.committed();
                            let whole: Vec<_> = content(0, committed.size_bytes()).collect();
                            prop_assert_eq!(&durable, &whole);
                            prop_assert_eq!(committed.digest(), &Digest::of(Algorithm::Sha256, &whole));
                            return Ok(());
                        }
                        Err(mismatch) => {
                            prop_assert!(!right);
                            prop_assert_eq!((mismatch.expected, mismatch.found), (expected, found));
                            upload = resume();
                        }
                    }
                }
            }
        }
    }
}
