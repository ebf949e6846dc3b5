//! Going on without any supernode: the neighbours known so far are asked, then the origin, slowly.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use proto::frame::HASHES_PER_MESSAGE_MAX;
use proto::{Generation, PieceHash, TaskId, TaskSpec, root_of, wire};
use tracing::{debug, info};

use super::link::Link;
use super::seed::{Known, checked_meta, meta_of};
use super::{Inner, OpenRequest, mesh, origin};

/// Neighbours asked for a task at most.
const ASKED_MAX: usize = 32;
/// A neighbour has to be reached and to answer within this time.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Without a digest from the user, so many different hosts must tell the same root.
const AGREEING_MIN: usize = 2;
/// Pages of hashes asked for at most; with the largest pieces, a content of a terabyte.
const PAGES_MAX: usize = 16;

/// Generation and root as a neighbour tells them.
type Version = (Vec<u8>, Vec<u8>);

/// What this host answers when it is asked for a task's metadata.
pub(crate) async fn answer(inner: &Arc<Inner>, task: TaskId, ask: &wire::AskMeta) -> wire::Meta {
    let generation = Generation::from_bytes(&ask.generation).ok();
    let nothing = wire::Meta { task_id: task.to_bytes().to_vec().into(), meta: None, hashes: None };
    let Ok(Some(content)) = inner.stored(task, generation).await else { return nothing };
    // Only what is whole was checked as a whole.
    if !content.is_complete() {
        return nothing;
    }
    let page: Vec<PieceHash> =
        content.hashes(ask.first, HASHES_PER_MESSAGE_MAX).into_iter().map_while(|hash| hash).collect();
    wire::Meta {
        meta: Some(meta_of(&content, content.spec())),
        hashes: Some(wire::PieceHashes::from_hashes(ask.first, &page)),
        ..nothing
    }
}

/// Asks the hosts known so far for a task. Their word is taken when the user gave a digest to hold the whole against,
/// or when several of them agree.
pub(crate) async fn ask_neighbours(inner: &Arc<Inner>, spec: &TaskSpec) -> Option<(Known, Vec<wire::HostInfo>)> {
    let task = spec.id();
    let known = inner.mesh.known();
    // A seed that is not linked any more went with its supernode.
    let may_answer = |info: &&wire::HostInfo| !info.seed || info.id().is_ok_and(|host| inner.mesh.get(host).is_some());
    let answers = join_all(known.iter().filter(may_answer).take(ASKED_MAX).map(|info| async move {
        let asking = async {
            let link = mesh::connect(inner, info).await?;
            let meta = mesh::ask_meta(inner, &link, task, &[], 0).await?;
            meta.meta.is_some().then_some((link, meta))
        };
        tokio::time::timeout(ASK_TIMEOUT, asking).await.ok().flatten()
    }))
    .await;
    let mut agreeing: HashMap<Version, Vec<(Arc<Link>, wire::Meta)>> = HashMap::new();
    for (link, meta) in answers.into_iter().flatten() {
        let told = meta.meta.as_ref().expect("kept only with metadata");
        agreeing.entry((told.generation.to_vec(), told.root.to_vec())).or_default().push((link, meta));
    }
    let mut groups: Vec<_> = agreeing.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    for group in groups {
        if spec.digest.is_none() && group.len() < AGREEING_MIN {
            debug!(?task, "too few neighbours agree, and there is no digest to hold the content against");
            continue;
        }
        let hosts: Vec<wire::HostInfo> = group.iter().map(|(link, _)| link.info.clone()).collect();
        for (link, meta) in group {
            if let Some(known) = checked(inner, &link, task, meta).await {
                info!(?task, neighbours = hosts.len(), "no supernode answers: the task is opened from neighbours");
                return Some((known, hosts));
            }
        }
    }
    None
}

/// Drops what neighbours agree on when the origin has another generation by now. Nothing else tells of a URL that was
/// given a new content. An origin that is silent, or must not be asked, is taken for agreeing.
pub(crate) async fn unless_outdated(
    inner: &Arc<Inner>,
    request: &OpenRequest,
    found: Option<(Known, Vec<wire::HostInfo>)>,
) -> Option<(Known, Vec<wire::HostInfo>)> {
    let (known, hosts) = found?;
    if request.spec.digest.is_none() && !request.never_origin {
        let asking = origin::current_generation(inner, &request.spec, request.headers.clone());
        let now = tokio::time::timeout(ASK_TIMEOUT, asking).await.ok().flatten();
        if now.is_some_and(|now| now.to_bytes()[..] != known.meta.generation[..]) {
            info!(task = ?request.spec.id(), "what neighbours have is not what the origin has by now");
            return None;
        }
    }
    Some((known, hosts))
}

/// Takes all hashes from a neighbour and holds them against the root it told.
async fn checked(inner: &Arc<Inner>, link: &Arc<Link>, task: TaskId, first: wire::Meta) -> Option<Known> {
    let meta = first.meta?;
    let (_, layout) = checked_meta(&meta).ok()?;
    let root = meta.checked_root().ok().flatten()?;
    let count = layout.count()? as usize;
    let mut hashes = first.hashes?.checked().ok()?;
    for _ in 0..PAGES_MAX {
        if hashes.len() >= count {
            break;
        }
        let at = u32::try_from(hashes.len()).ok()?;
        let page = mesh::ask_meta(inner, link, task, &meta.generation, at).await?.hashes?.checked().ok()?;
        if page.is_empty() {
            return None;
        }
        hashes.extend(page);
    }
    (root_of(layout, &hashes) == Some(root)).then(|| Known { meta, hashes: hashes.into_iter().map(Some).collect() })
}
