//! The error codes of the specification, and the body of an answer that says no.

use serde::Serialize;

/// The code of an error, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The blob is not in this repository.
    BlobUnknown,
    /// What was asked of an upload cannot be done.
    BlobUploadInvalid,
    /// There is no such upload.
    BlobUploadUnknown,
    /// The digest is malformed, of another algorithm, or not that of the content.
    DigestInvalid,
    /// The manifest needs a blob or a manifest that is not in this repository.
    ManifestBlobUnknown,
    /// The manifest cannot be accepted.
    ManifestInvalid,
    /// The manifest is not in this repository.
    ManifestUnknown,
    /// The repository's name is malformed.
    NameInvalid,
    /// There is no such repository.
    NameUnknown,
    /// A length is not what was said, or more than is allowed.
    SizeInvalid,
    /// Who is asking?
    Unauthorized,
    /// The caller may not do that.
    Denied,
    /// This registry does not do that.
    Unsupported,
    /// Slow down.
    TooManyRequests,
    /// The registry failed. Not in the specification, whose codes are about answers below 500.
    Unknown,
    /// Try later. Not in the specification either.
    Unavailable,
}

/// One entry of an error's body.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// The code.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// For programs; left out when there is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
}

// === impl ErrorCode ===

impl ErrorCode {
    /// All codes.
    pub const ALL: [Self; 16] = [
        Self::BlobUnknown,
        Self::BlobUploadInvalid,
        Self::BlobUploadUnknown,
        Self::DigestInvalid,
        Self::ManifestBlobUnknown,
        Self::ManifestInvalid,
        Self::ManifestUnknown,
        Self::NameInvalid,
        Self::NameUnknown,
        Self::SizeInvalid,
        Self::Unauthorized,
        Self::Denied,
        Self::Unsupported,
        Self::TooManyRequests,
        Self::Unknown,
        Self::Unavailable,
    ];

    /// The code as it is sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unknown => "UNKNOWN",
            Self::Unavailable => "UNAVAILABLE",
        }
    }

    /// The HTTP status that usually goes with it. Where another one fits better (413 for a manifest that is too large),
    /// the error that says so has a `status` of its own.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestBlobUnknown
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::SizeInvalid => 400,
            Self::Unauthorized => 401,
            Self::Denied => 403,
            Self::BlobUnknown | Self::BlobUploadUnknown | Self::ManifestUnknown | Self::NameUnknown => 404,
            Self::Unsupported => 405,
            Self::TooManyRequests => 429,
            Self::Unknown => 500,
            Self::Unavailable => 503,
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

// === impl Problem ===

impl Problem {
    /// A problem without detail.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None }
    }

    /// The same with something for programs.
    #[must_use]
    pub fn with_detail(self, detail: serde_json::Value) -> Self {
        Self { detail: Some(detail), ..self }
    }
}

/// The JSON body of an answer that says no: `{"errors":[…]}`.
#[must_use]
pub fn body(problems: &[Problem]) -> String {
    #[derive(Serialize)]
    struct Body<'p> {
        errors: &'p [Problem],
    }
    serde_json::to_string(&Body { errors: problems }).expect("strings and JSON values always serialise")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_of_the_specification() {
        let of_the_specification = [
            "BLOB_UNKNOWN",
            "BLOB_UPLOAD_INVALID",
            "BLOB_UPLOAD_UNKNOWN",
            "DIGEST_INVALID",
            "MANIFEST_BLOB_UNKNOWN",
            "MANIFEST_INVALID",
            "MANIFEST_UNKNOWN",
            "NAME_INVALID",
            "NAME_UNKNOWN",
            "SIZE_INVALID",
            "UNAUTHORIZED",
            "DENIED",
            "UNSUPPORTED",
            "TOOMANYREQUESTS",
        ];
        let ours: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(ours[..of_the_specification.len()], of_the_specification);
        for code in ErrorCode::ALL {
            assert!(code.as_str().bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
            // Those that are not in the specification go with answers it says nothing about.
            assert_eq!(code.status() >= 500, !of_the_specification.contains(&code.as_str()));
        }
    }

    #[test]
    fn bodies() {
        let plain = Problem::new(ErrorCode::BlobUnknown, "a \"quote\"");
        let detailed = Problem::new(ErrorCode::Denied, "").with_detail(serde_json::json!({"digest": "x"}));
        assert_eq!(
            body(&[plain, detailed]),
            r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"a \"quote\""},{"code":"DENIED","message":"","detail":{"digest":"x"}}]}"#
        );
        assert_eq!(body(&[]), r#"{"errors":[]}"#);
    }
}
