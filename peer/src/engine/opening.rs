//! Opening a task: from here, in the cluster, from neighbours, at the origin.

use std::sync::Arc;

use proto::{Generation, Kind, TaskId, wire};
use tracing::info;

use super::actor::{self, Authority, Event, Start};
use super::cluster::Cluster;
use super::error::TaskError;
use super::shared::Shared;
use super::{Inner, OpenRequest, Route, authorize, headers, origin, orphan, seed};
use crate::store::{Content, NewTask};

impl Inner {
    /// Opens a task by the way that is asked for.
    pub(super) async fn open(self: &Arc<Self>, request: OpenRequest) -> Result<Arc<Shared>, TaskError> {
        let spec = &request.spec;
        if request.route == Route::OriginOnly {
            return self.open_at_origin(request, None).await;
        }
        // What is named by its digest needs nobody's confirmation: here or on its way is enough.
        if spec.content_addressed
            && let Some(digest) = &spec.digest
            && let Some(shared) = self.here((spec.id(), Generation::of_digest(digest))).await?
        {
            if shared.content.guarded() {
                // Named by its digest, it is the same for everybody who may have it.
                authorize::authorize(self, spec, &request.headers, shared.generation).await?;
                authorize::prove(self, spec, &request.headers, &shared).await?;
            }
            return Ok(shared);
        }
        match &self.cluster {
            Some(cluster) if cluster.is_configured() => {
                if cluster.is_up() {
                    self.open_in_cluster(cluster, request).await
                } else {
                    self.open_as_orphan(cluster, request).await
                }
            }
            _ if request.never_origin => Err(TaskError::new(
                Kind::Unavailable,
                "no supernode is configured, and going back to the origin is disabled",
            )),
            _ => self.open_at_origin(request, None).await,
        }
    }

    /// A task that is whole in the store or being downloaded at this moment.
    async fn here(self: &Arc<Self>, key: (TaskId, Generation)) -> Result<Option<Arc<Shared>>, TaskError> {
        if let Some(shared) = self.tasks.get(key)
            && (matches!(shared.ended(), Some(Ok(()))) || (shared.ended().is_none() && shared.is_wanted()))
            && self.is_intact(&shared)
        {
            return Ok(Some(shared));
        }
        let Some(content) = self.stored(key.0, Some(key.1)).await? else { return Ok(None) };
        if !content.is_complete() {
            return Ok(None);
        }
        let start = Start::serving(content.spec().clone());
        Ok(Some(self.start(content, start, &[]).await?))
    }

    async fn open_in_cluster(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
        request: OpenRequest,
    ) -> Result<Arc<Shared>, TaskError> {
        let spec = &request.spec;
        let held = self.stored(spec.id(), None).await?;
        let open = self.open_message(&request, held.as_deref());
        let (meta, opening) = cluster.open(open.clone(), self.config.open_timeout).await?;
        let guarded = meta.guarded;
        if guarded && !self.may_join(&request, &meta).await? {
            drop(opening);
            return self.open_alone(request).await;
        }
        let content = self.create_from_meta(spec, &meta).await?;
        let start = Start {
            authority: Authority::Cluster { open: Box::new(open), lost_since: None },
            body: None,
            spec: spec.clone(),
            headers: request.headers.clone(),
            peers: Vec::new(),
            orphan: false,
            seed_only: request.route == Route::SeedOnly,
        };
        let shared = self.start(content, start, &[]).await?;
        let opened = actor::ClusterEvent::Opened { meta: Box::new(meta) };
        for event in std::iter::once(opened).chain(opening.attach(&shared.events)) {
            let _ = shared.events.send(Event::Cluster(event)).await;
        }
        if guarded && spec.content_addressed {
            authorize::prove(self, spec, &request.headers, &shared).await?;
        }
        Ok(shared)
    }

    /// Whether the caller may share a task that was fetched with credentials.
    async fn may_join(&self, request: &OpenRequest, meta: &wire::TaskMeta) -> Result<bool, TaskError> {
        let (generation, _) = seed::checked_meta(meta)?;
        authorize::authorize(self, &request.spec, &request.headers, generation).await
    }

    /// The origin gives this caller another content than the one that others share: it is fetched for this caller.
    async fn open_alone(self: &Arc<Self>, request: OpenRequest) -> Result<Arc<Shared>, TaskError> {
        if request.never_origin {
            return Err(TaskError::new(
                Kind::Unavailable,
                "the origin has another content for this caller, and going back to it is disabled",
            ));
        }
        info!(task = ?request.spec.id(), "the origin gives this caller another content than others: not shared");
        self.open_at_origin(request, None).await
    }

    /// No supernode answers: neighbours, then, after a random delay, the origin.
    async fn open_as_orphan(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
        request: OpenRequest,
    ) -> Result<Arc<Shared>, TaskError> {
        let spec = request.spec.clone();
        let since = tokio::time::Instant::now();
        let found = orphan::ask_neighbours(self, &spec).await;
        if let Some((known, hosts)) = orphan::unless_outdated(self, &request, found).await {
            if known.meta.guarded && !self.may_join(&request, &known.meta).await? {
                return self.open_alone(request).await;
            }
            let content = self.create_from_meta(&spec, &known.meta).await?;
            let open = self.open_message(&request, Some(&content));
            let headers = request.headers;
            let start = Start {
                authority: Authority::Cluster { open: Box::new(open), lost_since: Some(since) },
                body: None,
                spec: spec.clone(),
                headers: headers.clone(),
                peers: hosts,
                orphan: false,
                seed_only: false,
            };
            let shared = self.start(content, start, &known.hashes).await?;
            attach_orphan(cluster, &shared).await;
            if known.meta.guarded && spec.content_addressed {
                authorize::prove(self, &spec, &headers, &shared).await?;
            }
            return Ok(shared);
        }
        if request.never_origin {
            return Err(TaskError::new(
                Kind::Unavailable,
                "no supernode answers, no neighbour has the content, and going back to the origin is disabled",
            ));
        }
        let delay = self.orphan_delay(spec.id());
        info!(task = ?spec.id(), delay_ms = delay.as_millis() as u64, "no supernode answers: waiting before reading the origin");
        tokio::select! {
            () = tokio::time::sleep(delay) => self.open_at_origin(request, Some(since)).await,
            () = cluster.wait_up() => self.open_in_cluster(cluster, request).await,
        }
    }

    /// Reads the origin itself. `orphaned` says since when no supernode answers.
    async fn open_at_origin(
        self: &Arc<Self>,
        request: OpenRequest,
        orphaned: Option<tokio::time::Instant>,
    ) -> Result<Arc<Shared>, TaskError> {
        let spec = request.spec.clone();
        let held = self.stored(spec.id(), None).await?;
        let resolved = origin::resolve(self, &spec, request.headers.clone(), held.as_deref()).await?;
        let content = self
            .create(NewTask {
                task: spec.id(),
                generation: resolved.generation,
                layout: resolved.layout,
                digest: spec.digest.clone(),
                guarded: resolved.guarded,
                headers: resolved.headers,
                spec: seed::without_secrets(&spec),
                confirmed: true,
            })
            .await?;
        let open = self.open_message(&request, Some(&content));
        let authority = match orphaned {
            Some(_) => Authority::Cluster { open: Box::new(open), lost_since: orphaned },
            None => Authority::alone(),
        };
        let start = Start {
            authority,
            body: resolved.body,
            spec: spec.clone(),
            headers: request.headers,
            peers: Vec::new(),
            orphan: orphaned.is_some(),
            seed_only: false,
        };
        let shared = self.start(content, start, &[]).await?;
        if let (Some(cluster), true) = (&self.cluster, orphaned.is_some()) {
            attach_orphan(cluster, &shared).await;
        }
        Ok(shared)
    }

    fn open_message(&self, request: &OpenRequest, held: Option<&Content>) -> wire::OpenTask {
        wire::OpenTask {
            task_id: request.spec.id().to_bytes().to_vec().into(),
            spec: Some((&request.spec).into()),
            headers: headers::to_wire(&request.headers),
            have_generation: held.map(|content| content.generation().to_bytes().to_vec()).unwrap_or_default().into(),
            have_pieces: held.map_or(0, |content| content.have().len()),
            priority: request.priority,
            never_origin: request.never_origin,
        }
    }
}

/// Lets a task that was begun without a supernode hear of one.
async fn attach_orphan(cluster: &Cluster, shared: &Shared) {
    if let Some(found) = cluster.attach_orphan(shared.task, &shared.events) {
        let _ = shared.events.send(Event::Cluster(found)).await;
    }
}
