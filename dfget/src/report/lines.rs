//! The JSON output. Field order is part of what people see, so these are structs and no maps.

use std::borrow::Cow;

use serde::Serialize;

use crate::backend::Counts;
use crate::exit::Failure;

/// A line that is not the last.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event<'a> {
    Started {
        url: String,
        output: Cow<'a, str>,
        by: &'a str,
        length: Option<u64>,
        from_cache: bool,
    },
    Progress {
        bytes: u64,
        length: Option<u64>,
        #[serde(flatten)]
        sources: Sources,
    },
    Reconnecting {
        lost_for_s: f64,
    },
    Fallback {
        message: &'a str,
    },
    Listed {
        files: usize,
    },
    Found {
        url: String,
        path: Cow<'a, str>,
    },
    /// Followed by the fields of a result.
    File {
        url: String,
        output: Cow<'a, str>,
    },
}

/// Whence the bytes came.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Sources {
    from_peers: u64,
    from_origin: u64,
    from_cache: u64,
}

/// The result when all went well, and the numbers of a folder when not.
#[derive(Serialize)]
pub(super) struct Ok<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ok: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<Cow<'a, str>>,
    pub(super) length: u64,
    #[serde(flatten)]
    pub(super) sources: Sources,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) files: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<usize>,
}

/// The result when it failed.
#[derive(Serialize)]
pub(super) struct Failed<'a> {
    pub(super) ok: bool,
    pub(super) kind: &'static str,
    pub(super) reason: u32,
    pub(super) origin_status: Option<u16>,
    pub(super) message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problems: Option<&'a [String]>,
}

/// The fields of both on one line.
#[derive(Serialize)]
pub(super) struct With<A, B> {
    #[serde(flatten)]
    pub(super) one: A,
    #[serde(flatten)]
    pub(super) other: B,
}

impl Sources {
    pub(super) const fn of(counts: Counts) -> Self {
        Self { from_peers: counts.from_peers, from_origin: counts.from_origin, from_cache: counts.from_cache }
    }
}

impl Ok<'_> {
    pub(super) const fn new(counts: Counts) -> Self {
        Self {
            ok: Some(true),
            output: None,
            length: counts.bytes,
            sources: Sources::of(counts),
            seconds: None,
            by: None,
            output_by: None,
            files: None,
            failed: None,
        }
    }
}

impl<'a> Failed<'a> {
    pub(super) fn new(failure: &'a Failure) -> Self {
        Self {
            ok: false,
            kind: failure.cause.label(),
            reason: failure.reason,
            origin_status: failure.origin_status,
            message: &failure.message,
            problems: None,
        }
    }
}
