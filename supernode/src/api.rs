//! Health, metrics, and reading tasks and hosts over HTTP.

use anyhow::Context as _;
use http::{Method, StatusCode};
use proto::Kind;
use service::http::{ApiFailure, BodyLimits, HttpMetrics, Listener, Readiness, Routes, Server, json};
use service::metrics::Metrics;
use tokio_util::sync::CancellationToken;

use crate::config::HttpConfig;
use crate::manager::Manager;

/// A bound HTTP listener, ready to serve.
#[derive(Debug)]
pub struct Api {
    server: Server,
    routes: Routes,
    metrics: Metrics,
}

/// Binds the listener.
///
/// # Errors
/// When the address cannot be listened on.
pub fn server(config: &HttpConfig, metrics: &Metrics, manager: &Manager) -> anyhow::Result<Api> {
    let listener = Listener::bind(&config.listen)
        .with_context(|| format!("cannot listen on {} ([http] listen)", config.listen))?;
    let server = Server::new(listener, config.limits.clone()).with_metrics(&HttpMetrics::new(metrics), "http");
    Ok(Api { server, routes: routes(manager), metrics: metrics.clone() })
}

fn routes(manager: &Manager) -> Routes {
    let (tasks, task, hosts) = (manager.clone(), manager.clone(), manager.clone());
    Routes::new(BodyLimits::default())
        .on(&Method::GET, "/api/skimmer/v1/tasks", move |_call| {
            let tasks = tasks.tasks();
            async move { json(StatusCode::OK, &tasks) }
        })
        .on(&Method::GET, "/api/skimmer/v1/tasks/{task}", move |call| {
            let manager = task.clone();
            async move {
                let id: proto::TaskId = call
                    .param("task")?
                    .parse()
                    .map_err(|_| ApiFailure::new(Kind::Invalid, "a task id has 64 hexadecimal characters"))?;
                let found = manager.tasks().into_iter().find(|view| view.task_id == id);
                match found {
                    Some(view) => json(StatusCode::OK, &view),
                    None => Err(ApiFailure::new(Kind::NotFound, "this supernode knows no such task")),
                }
            }
        })
        .on(&Method::GET, "/api/skimmer/v1/hosts", move |_call| {
            let hosts = hosts.hosts();
            async move { json(StatusCode::OK, &hosts) }
        })
}

impl Api {
    /// Serves until the token is cancelled.
    pub async fn serve(self, shutdown: CancellationToken) {
        let readiness = Readiness::default();
        let filters = [service::http::standard(&readiness, &self.metrics), self.routes.into_filter("api")];
        self.server.serve(service::http::service(filters), shutdown).await;
    }
}
