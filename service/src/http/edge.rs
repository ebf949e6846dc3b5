//! What every binary serves at its edge, and the way from filters to a service.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use proto::Kind;
use warp::filters::BoxedFilter;
use warp::{Filter as _, Rejection};

use super::{ApiFailure, Response};
use crate::metrics::{self, Metrics};

/// Whether this process can do its work: `/readyz` says 200 when nothing is missing.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    missing: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Readiness {
    /// Not ready as long as these are missing.
    #[must_use]
    pub fn waiting_for(parts: impl IntoIterator<Item = &'static str>) -> Self {
        Self { missing: Arc::new(Mutex::new(parts.into_iter().collect())) }
    }

    /// The part is there.
    pub fn have(&self, part: &'static str) {
        self.missing.lock().remove(part);
    }

    /// The part is missing, for example because the shutdown began.
    pub fn lacks(&self, part: &'static str) {
        self.missing.lock().insert(part);
    }

    /// What is missing.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.missing.lock().iter().copied().collect()
    }
}

/// `/healthz` (the process runs), `/readyz` (it can work) and `/metrics`.
#[must_use]
pub fn standard(readiness: &Readiness, metrics: &Metrics) -> BoxedFilter<(Response,)> {
    let readiness = readiness.clone();
    let metrics = metrics.clone();
    let health = warp::path("healthz").and(warp::path::end()).map(|| text(StatusCode::OK, "ok\n".to_owned()));
    let ready = warp::path("readyz").and(warp::path::end()).map(move || match readiness.missing().as_slice() {
        [] => text(StatusCode::OK, "ready\n".to_owned()),
        missing => text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", missing.join(", "))),
    });
    let numbers = warp::path("metrics").and(warp::path::end()).map(move || {
        let mut response = text(StatusCode::OK, metrics.encode());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
        response
    });
    let read_only = warp::get().or(warp::head()).unify();
    read_only.and(health.or(ready).unify().or(numbers).unify()).boxed()
}

/// Joins filters, tried in order, into a service for [`super::Server::serve`]. What no filter takes gets a 404 with a JSON body.
pub fn service(
    filters: impl IntoIterator<Item = BoxedFilter<(Response,)>>,
) -> impl Service<hyper::Request<Incoming>, Response = Response, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    let none = warp::any().and_then(|| async { Err::<Response, _>(warp::reject::not_found()) }).boxed();
    let all = filters.into_iter().fold(none, filter_or);
    TowerToHyperService::new(warp::service(all.recover(refused).unify()))
}

fn filter_or(first: BoxedFilter<(Response,)>, then: BoxedFilter<(Response,)>) -> BoxedFilter<(Response,)> {
    first.or(then).unify().boxed()
}

async fn refused(rejection: Rejection) -> Result<Response, Infallible> {
    let failure = if rejection.is_not_found() {
        ApiFailure::new(Kind::NotFound, "there is nothing at this path")
    } else if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        ApiFailure::new(Kind::Invalid, "this method is not allowed here").with_status(StatusCode::METHOD_NOT_ALLOWED)
    } else {
        ApiFailure::new(Kind::Invalid, "the request makes no sense here")
    };
    Ok(failure.into_response())
}

fn text(status: StatusCode, text: String) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
