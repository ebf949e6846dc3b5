//! The media types a registry has to know apart.

/// An OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The configuration of an OCI image.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The two bytes `{}`, where an artifact has no configuration or no content.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// A layer, not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// A layer, compressed with gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// A layer, compressed with zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// A layer that may not be distributed, not compressed.
pub const OCI_LAYER_NONDISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// A layer that may not be distributed, compressed with gzip.
pub const OCI_LAYER_NONDISTRIBUTABLE_GZIP: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
/// A layer that may not be distributed, compressed with zstd.
pub const OCI_LAYER_NONDISTRIBUTABLE_ZSTD: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd";

/// Docker's image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's index.
pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The configuration of a Docker image.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// A layer, not compressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// A layer, compressed with gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// A layer that lies elsewhere, not compressed.
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// A layer that lies elsewhere, compressed with gzip.
pub const DOCKER_FOREIGN_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// Docker's schema 1: refused.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// Docker's schema 1 with a signature: refused.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// What may be pushed as a manifest.
pub const MANIFESTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST];

/// Whether this is a manifest or an index that a registry takes.
#[must_use]
pub fn is_manifest(media_type: &str) -> bool {
    MANIFESTS.contains(&media_type)
}

/// Whether this is an index (or Docker's manifest list).
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    [OCI_INDEX, DOCKER_MANIFEST_LIST].contains(&media_type)
}

/// Whether this is Docker's schema 1.
#[must_use]
pub fn is_schema1(media_type: &str) -> bool {
    [DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED].contains(&media_type)
}

/// Whether this is a layer whose bytes clients get elsewhere, so that nobody pushes them here.
#[must_use]
pub fn is_nondistributable(media_type: &str) -> bool {
    [
        OCI_LAYER_NONDISTRIBUTABLE,
        OCI_LAYER_NONDISTRIBUTABLE_GZIP,
        OCI_LAYER_NONDISTRIBUTABLE_ZSTD,
        DOCKER_FOREIGN_LAYER,
        DOCKER_FOREIGN_LAYER_GZIP,
    ]
    .contains(&media_type)
}

/// A media type as a `Content-Type` header has it: without parameters, and without the letter case that does not
/// matter.
#[must_use]
pub(crate) fn essence(header: &str) -> String {
    header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts() {
        assert!(MANIFESTS.into_iter().all(is_manifest));
        assert!(is_index(OCI_INDEX) && is_index(DOCKER_MANIFEST_LIST));
        assert!(!is_index(OCI_MANIFEST) && !is_index(DOCKER_MANIFEST));
        for other in [OCI_CONFIG, OCI_EMPTY, OCI_LAYER, DOCKER_LAYER_GZIP, DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED, ""] {
            assert!(!is_manifest(other) && !is_index(other) && !is_nondistributable(other), "{other}");
        }
        assert!(is_nondistributable("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"));
        assert!(is_nondistributable("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"));
    }

    #[test]
    fn parameters_and_case_of_a_header_do_not_matter() {
        assert_eq!(essence(" Application/VND.oci.image.index.v1+json ; charset=utf-8"), OCI_INDEX);
        assert_eq!(essence(""), "");
        assert_eq!(essence(";"), "");
    }
}
