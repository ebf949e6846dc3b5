//! What sort of failure something is: the one classification every boundary maps to.

use std::fmt;

use crate::wire;

/// The sort of a failure, from which statuses, exit codes, retries and metric labels follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// The origin, or the registry, has no such thing.
    NotFound,
    /// It clashes with something that is there already.
    Conflict,
    /// Credentials are missing or not accepted (401).
    Unauthorized,
    /// Credentials are accepted but do not suffice (403), or an address is not allowed.
    Forbidden,
    /// Too much was asked for; later it may work (429, 503 with `Retry-After`).
    Throttled,
    /// Bytes are not what their digest says.
    Corrupt,
    /// A part that is needed does not answer (connection, timeout, 5xx).
    Unavailable,
    /// The request itself makes no sense.
    Invalid,
    /// No room on the disk.
    NoSpace,
    /// A defect of ours.
    Internal,
}

impl Kind {
    /// All kinds, for tables and tests.
    pub const ALL: [Self; 10] = [
        Self::NotFound,
        Self::Conflict,
        Self::Unauthorized,
        Self::Forbidden,
        Self::Throttled,
        Self::Corrupt,
        Self::Unavailable,
        Self::Invalid,
        Self::NoSpace,
        Self::Internal,
    ];

    /// The name used in metrics labels and JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Throttled => "throttled",
            Self::Corrupt => "corrupt",
            Self::Unavailable => "unavailable",
            Self::Invalid => "invalid",
            Self::NoSpace => "no_space",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status a proxy answers with when the origin gave none of its own.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::Throttled => 429,
            Self::Corrupt => 502,
            Self::Unavailable => 503,
            Self::Invalid => 400,
            Self::NoSpace => 507,
            Self::Internal => 500,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl From<Kind> for wire::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::NotFound => Self::NotFound,
            Kind::Conflict => Self::Conflict,
            Kind::Unauthorized => Self::Unauthorized,
            Kind::Forbidden => Self::Forbidden,
            Kind::Throttled => Self::Throttled,
            Kind::Corrupt => Self::Corrupt,
            Kind::Unavailable => Self::Unavailable,
            Kind::Invalid => Self::Invalid,
            Kind::NoSpace => Self::NoSpace,
            Kind::Internal => Self::Internal,
        }
    }
}

impl From<wire::Kind> for Kind {
    fn from(kind: wire::Kind) -> Self {
        match kind {
            wire::Kind::NotFound => Self::NotFound,
            wire::Kind::Conflict => Self::Conflict,
            wire::Kind::Unauthorized => Self::Unauthorized,
            wire::Kind::Forbidden => Self::Forbidden,
            wire::Kind::Throttled => Self::Throttled,
            wire::Kind::Corrupt => Self::Corrupt,
            wire::Kind::Unavailable => Self::Unavailable,
            wire::Kind::Invalid => Self::Invalid,
            wire::Kind::NoSpace => Self::NoSpace,
            wire::Kind::Internal => Self::Internal,
        }
    }
}
