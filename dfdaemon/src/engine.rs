//! The HTTP side's [`Downloads`] over the engine.

use std::pin::Pin;
use std::sync::Arc;

use http::StatusCode;
use peer::engine::{Engine, Task, TaskError};
use proto::ByteRange;

use crate::downloads::{
    BodyStream, DownloadError, Downloads, OpenRequest, OpenedTask, OriginAnswer, Route, TaskBody, TaskInfo,
};

/// Opens tasks with the host's engine.
#[derive(Clone, Debug)]
pub(crate) struct EngineDownloads(pub(crate) Engine);

impl Downloads for EngineDownloads {
    fn open(
        &self,
        request: OpenRequest,
    ) -> Pin<Box<dyn Future<Output = Result<OpenedTask, DownloadError>> + Send + '_>> {
        Box::pin(async move {
            let route = match request.route {
                Route::P2p => peer::engine::Route::P2p,
                Route::SeedOnly => peer::engine::Route::SeedOnly,
                Route::OriginOnly => peer::engine::Route::OriginOnly,
            };
            let open = peer::engine::OpenRequest {
                spec: request.spec,
                headers: request.headers,
                route,
                priority: request.priority,
                never_origin: request.never_origin,
                rate_bytes_per_s: request.rate_bytes_per_s,
            };
            let task = self.0.open(open).await.map_err(converted)?;
            let info = task.info();
            let info = TaskInfo {
                task: info.task,
                generation: info.generation,
                length: task.length(),
                headers: info.headers.clone(),
                guarded: info.guarded,
                from_cache: info.from_cache,
            };
            Ok(OpenedTask { info, body: Arc::new(Body(task)) })
        })
    }
}

struct Body(Task);

impl TaskBody for Body {
    fn reader(&self, range: Option<ByteRange>) -> BodyStream {
        let (task, mut reader) = (self.0.clone(), self.0.reader(range));
        Box::pin(async_stream::stream! {
            while let Some(item) = reader.next().await {
                yield item.map_err(converted);
            }
            drop(task);
        })
    }
}

fn converted(error: TaskError) -> DownloadError {
    let answer = error.origin().and_then(|origin| {
        let status = StatusCode::from_u16(origin.status).ok()?;
        Some(OriginAnswer { status, headers: origin.headers.clone(), body: origin.body.clone() })
    });
    let converted = DownloadError::new(error.kind(), error.to_string()).with_source(error);
    match answer {
        Some(answer) => converted.with_origin(answer),
        None => converted,
    }
}
