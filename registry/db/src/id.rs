//! Numbers of rows.

use std::fmt;

/// Names a kind of row.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A repository. Never given twice, and never taken away: good in a cache for ever.
    RepositoryId
}
id! {
    /// A blob. A digest that goes and comes back gets another one.
    BlobId
}
id! {
    /// A manifest of a repository. A digest that goes and comes back gets another one. Above those of all earlier
    /// manifests; zero is below all.
    ManifestId
}
id! {
    /// An entry of the change log. Of two changes of the same tag, the later has the higher number; zero is below all.
    ChangeId
}
id! {
    /// An entry of the store that waits for its removal.
    RemovalId
}
