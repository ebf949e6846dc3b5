//! Whose bytes, and whose secrets: content fetched with credentials, credentials on their way, addresses that are
//! nobody's business.

mod addresses;
mod rights;
mod secrets;
mod tokens;

use crate::runner::{Case, rooted};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted(
            "a user without rights asks for a cached layer, mirror: 401 or 404 as the registry says",
            rights::layers,
        ),
        rooted("a user without rights asks for a cached file, proxy and dfget: 401 as the origin says", rights::files),
        rooted("a user whom the origin forbids a cached file: 403, also in mid-download", rights::forbidden),
        rooted("a URL that gives each user something else: nobody gets what was fetched for another", rights::personal),
        rooted("a user whose token expired asks for a cached layer: 401; a fresh token is let in", rights::expired),
        rooted(
            "a layer fetched with credentials is not given to who names a registry of his own",
            rights::other_registry,
        ),
        rooted("credentials are never sent to another host on redirect: proxy, mirror, dfget", secrets::redirects),
        rooted("credentials are never logged nor stored, on any node, at any log level", secrets::traces),
        rooted("tokens that last 20 s during a 60 s pull: two hosts finish", tokens::short_lived),
        rooted("a token expires in mid-layer: the seed goes on with another waiting caller's", tokens::handed_over),
        rooted(
            "a token expires in mid-layer and nobody has another: a clear error, the next try goes on",
            tokens::none_left,
        ),
        rooted(
            "the supernode fetches no loopback, link-local or metadata address, nor is redirected there",
            addresses::refused,
        ),
        rooted("the supernode fetches loopback addresses when it is allowed to", addresses::allowed),
    ]
}
