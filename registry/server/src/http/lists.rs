//! Lists in pages: tags of a repository, and repositories.

use std::sync::Arc;

use ::http::header::LINK;
use ::http::{Response, StatusCode};
use bytes::Bytes;
use oci::page::Page as Asked;
use oci::{ErrorCode, RepositoryName};
use serde::Serialize;

use super::body::Body;
use super::failure::Failure;
use super::{Answer, Call, json, locations, value};
use crate::app::App;
use crate::cache::{Page, PageKey};

/// `GET /v2/NAME/tags/list`
pub(super) async fn tags(app: &App, call: &Call, name: &RepositoryName) -> Answer {
    #[derive(Serialize)]
    struct Tags<'a> {
        name: &'a str,
        tags: &'a [String],
    }
    let asked = asked(app, call)?;
    let unknown = || Failure::new(ErrorCode::NameUnknown, "there is no such repository");
    let repository = app.repository(name).await?.ok_or_else(unknown)?;
    let key = PageKey { repository: Some(repository), limit: asked.n as u64, after: asked.last.clone() };
    let page = match app.cache.page(&key) {
        Some(page) => page,
        None => {
            let stamp = app.cache.stamp(Some(repository));
            let found = app.db.tags(repository, asked.last.as_deref(), asked.n as u64 + 1).await?;
            page(app, key, stamp, found, |tags| to_json(&Tags { name: name.as_str(), tags }))
        }
    };
    Ok(answer(app, call, &asked, &page))
}

/// `GET /v2/_catalog`
pub(super) async fn catalog(app: &App, call: &Call) -> Answer {
    #[derive(Serialize)]
    struct Catalog<'a> {
        repositories: &'a [String],
    }
    let asked = asked(app, call)?;
    let key = PageKey { repository: None, limit: asked.n as u64, after: asked.last.clone() };
    let page = match app.cache.page(&key) {
        Some(page) => page,
        None => {
            let stamp = app.cache.stamp(None);
            let found = app.db.catalog(asked.last.as_deref(), asked.n as u64 + 1).await?;
            page(app, key, stamp, found, |repositories| to_json(&Catalog { repositories }))
        }
    };
    Ok(answer(app, call, &asked, &page))
}

fn asked(app: &App, call: &Call) -> Result<Asked, Failure> {
    let cap = usize::try_from(app.config.lists.page_max).unwrap_or(usize::MAX);
    Ok(Asked::parse(&call.query()?, cap)?)
}

/// Cuts off the entry that tells that there is more.
fn page(
    app: &App,
    key: PageKey,
    stamp: crate::cache::Stamp,
    mut found: Vec<String>,
    body: impl FnOnce(&[String]) -> Bytes,
) -> Arc<Page> {
    let limit = usize::try_from(key.limit).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).cloned();
    let page = Arc::new(Page { body: body(&found), next });
    app.cache.put_page(key, stamp, &page);
    page
}

fn answer(app: &App, call: &Call, asked: &Asked, page: &Page) -> Response<Body> {
    let mut response = json(StatusCode::OK, page.body.clone());
    if let Some(next) = &page.next {
        let path = format!("{}{}", locations::base(app, call), call.parts.uri.path());
        response.headers_mut().insert(LINK, value(asked.next(&path, next, &[])));
    }
    super::blobs::finish(call, response)
}

fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("texts always serialise").into()
}
