//! A client: it pushes, skips, mounts, tags, deletes and pulls at random, and writes down what it was told.

use std::{
    io,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use super::{
    EXPIRY, FRAGILE, REPOSITORIES, World,
    claims::{Claims, Owned, State},
    random::Random,
};
use crate::registry_faults::{
    content::{Blob, Manifest, location},
    http::{Client, Response},
};

/// More than this it does not keep.
const PRESENT_MAX: usize = 25;
/// Before it asks a process again that is not there.
const PAUSE: Duration = Duration::from_millis(20);
/// The lease is renewed when a tenth of it is over, so that nine tenths are certain; one more for what is slow here.
const CERTAIN_TENTHS: u32 = 8;

/// One client, between and during its turns.
#[derive(Debug)]
pub(super) struct Worker {
    id: u64,
    random: Random,
    clients: Vec<Client>,
    pushed: u64,
    pub(super) claims: Claims,
    /// Answers that cannot be.
    pub(super) wrong: Vec<String>,
    pub(super) done: u64,
    pub(super) unanswered: u64,
}

/// An answer that ends what the client was about: none came, or one that must not be.
struct GaveUp;

type Turn<T> = Result<T, GaveUp>;

impl Worker {
    pub(super) fn new(id: u64, random: Random) -> Self {
        let (claims, clients, wrong) = (Claims::default(), Vec::new(), Vec::new());
        Self { id, random, clients, pushed: 0, claims, wrong, done: 0, unanswered: 0 }
    }

    /// Works until it is told to stop, or sees something that cannot be.
    pub(super) fn work(&mut self, world: &World) {
        self.clients = world.addrs.iter().map(|addr| Client::new(*addr)).collect();
        while !world.stop.load(Ordering::Relaxed) && self.wrong.is_empty() {
            // What was given up is written down where it was.
            let _ = self.turn(world);
        }
    }

    fn turn(&mut self, world: &World) -> Turn<()> {
        let present = self.claims.present();
        let many = present.len() >= PRESENT_MAX;
        match self.random.below(100) {
            _ if present.is_empty() => self.push_image(world),
            0..30 if !many => self.push_image(world),
            30..36 if !many => self.push_index(&present),
            36..42 if !many => self.push_artifact(world, &present),
            42..55 => self.tag(&present),
            55..62 => self.untag(),
            62..68 => self.delete_blob(world),
            68..72 => self.abandon(world),
            72..84 => self.pull(&present),
            _ => self.delete(&present),
        }
    }

    // === requests ===

    /// Asks any of the processes. No answer, and a failure of the registry, end the turn.
    fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Turn<Response> {
        let process = self.random.below(self.clients.len());
        self.done += 1;
        let answer = self.clients[process].send(method, path, headers, body);
        match answer {
            Ok(response) if response.status < 500 => Ok(response),
            Ok(response) => {
                // Nobody took its database or its disk away.
                self.wrong.push(format!("{method} {path}: {}", response.told()));
                Err(GaveUp)
            }
            Err(error) => {
                self.unanswered += 1;
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.wrong.push(format!("{method} {path}: no answer in a minute"));
                }
                thread::sleep(PAUSE);
                Err(GaveUp)
            }
        }
    }

    fn cannot_be<T>(&mut self, what: &str, response: &Response) -> Turn<T> {
        self.wrong.push(format!("client {}: {what}: {}", self.id, response.told()));
        Err(GaveUp)
    }

    // === blobs ===

    /// Makes a blob be in a repository, one way or another. Gives the time from which on it certainly is.
    fn bring(&mut self, repository: usize, blob: &Blob) -> Turn<Instant> {
        let name = REPOSITORIES[repository];
        if self.random.chance(60) {
            let begun = Instant::now();
            match self.ask("HEAD", &blob.path(name), &[], &[])? {
                response if response.status == 200 => return Ok(begun),
                response if response.status == 404 => {}
                response => return self.cannot_be("HEAD of a blob", &response),
            }
        }
        let mut begun = Instant::now();
        let mut path = format!("/v2/{name}/blobs/uploads/");
        let mut whole = false;
        match self.random.below(4) {
            0 => {
                let other = REPOSITORIES[self.random.below(REPOSITORIES.len())];
                let from = if self.random.chance(50) { format!("&from={other}") } else { String::new() };
                path = format!("{path}?mount={}{from}", blob.digest);
            }
            1 => {
                path = format!("{path}?digest={}", blob.digest);
                whole = true;
            }
            _ => {}
        }
        let response = self.ask("POST", &path, &[], if whole { &blob.bytes } else { &[] })?;
        match response.status {
            201 => return Ok(begun),
            202 if !whole => {}
            _ => return self.cannot_be("POST of an upload", &response),
        }
        let Ok(upload) = location(&response) else { return self.cannot_be("POST of an upload", &response) };
        let first = Instant::now();
        let mut at = 0;
        while at < blob.bytes.len() && self.random.chance(40) {
            let length = 1 + self.random.below(blob.bytes.len() - at);
            let response = self.ask("PATCH", &upload, &[], &blob.bytes[at..at + length])?;
            self.is_upload(&response, 202, first)?;
            at += length;
        }
        begun = begun.max(Instant::now());
        let response = self.ask("PUT", &format!("{upload}?digest={}", blob.digest), &[], &blob.bytes[at..])?;
        self.is_upload(&response, 201, first)?;
        Ok(begun)
    }

    /// The upload goes on, unless it was left alone for too long.
    fn is_upload(&mut self, response: &Response, status: u16, begun: Instant) -> Turn<()> {
        match response.status {
            found if found == status => Ok(()),
            404 if begun.elapsed() > EXPIRY / 2 => Err(GaveUp),
            _ => self.cannot_be("an upload", response),
        }
    }

    /// Begins an upload and leaves it.
    fn abandon(&mut self, world: &World) -> Turn<()> {
        let name = REPOSITORIES[self.random.below(REPOSITORIES.len())];
        let response = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), &[], &[])?;
        let Ok(upload) = location(&response) else { return self.cannot_be("POST of an upload", &response) };
        let blob = &world.pool[self.random.below(world.pool.len())];
        let half = &blob.bytes[..blob.bytes.len() / 2];
        let response = self.ask("PATCH", &upload, &[], half)?;
        self.is_upload(&response, 202, Instant::now())?;
        if self.random.chance(30) {
            let response = self.ask("DELETE", &upload, &[], &[])?;
            self.is_upload(&response, 204, Instant::now())?;
        }
        Ok(())
    }

    fn delete_blob(&mut self, world: &World) -> Turn<()> {
        let name = REPOSITORIES[self.random.below(REPOSITORIES.len())];
        let blob = &world.pool[self.random.below(FRAGILE)];
        let response = self.ask("DELETE", &blob.path(name), &[], &[])?;
        // It is there, or not, or a manifest needs it.
        if [202, 404, 405].contains(&response.status) { Ok(()) } else { self.cannot_be("delete of a blob", &response) }
    }

    // === manifests ===

    fn layers(&mut self, world: &World) -> (Vec<Blob>, bool) {
        let mut chosen: Vec<usize> = (0..=self.random.below(3)).map(|_| self.random.below(world.pool.len())).collect();
        chosen.sort_unstable();
        chosen.dedup();
        let is_fragile = chosen.iter().any(|layer| *layer < FRAGILE);
        (chosen.into_iter().map(|layer| world.pool[layer].clone()).collect(), is_fragile)
    }

    fn name(&mut self) -> String {
        self.pushed += 1;
        format!("client {} manifest {}", self.id, self.pushed)
    }

    fn push_image(&mut self, world: &World) -> Turn<()> {
        let (layers, is_fragile) = self.layers(world);
        let manifest = Manifest::image(&self.name(), &layers);
        let repository = self.random.below(REPOSITORIES.len());
        self.push(world, Owned { repository, manifest, state: State::Absent, is_fragile })
    }

    fn push_artifact(&mut self, world: &World, present: &[usize]) -> Turn<()> {
        let (layers, is_fragile) = self.layers(world);
        let name = self.name();
        let subject = &self.claims.owned[present[self.random.below(present.len())]];
        let manifest = Manifest::artifact(&name, &layers, Some(&subject.manifest));
        let repository = subject.repository;
        self.push(world, Owned { repository, manifest, state: State::Absent, is_fragile })
    }

    fn push(&mut self, world: &World, owned: Owned) -> Turn<()> {
        let mut oldest = Instant::now();
        for blob in &owned.manifest.blobs {
            oldest = oldest.min(self.bring(owned.repository, blob)?);
        }
        // docker takes its time, and sometimes just as long as the lease is.
        if self.random.chance(25) {
            thread::sleep(world.lease.mul_f64(self.random.below(1300) as f64 / 1000.0));
        }
        let certain = (!owned.is_fragile).then_some(oldest + world.lease / 10 * CERTAIN_TENTHS);
        self.put_new(owned, certain)
    }

    fn push_index(&mut self, present: &[usize]) -> Turn<()> {
        let name = self.name();
        let repository = self.claims.owned[present[self.random.below(present.len())]].repository;
        let here = present.iter().map(|number| &self.claims.owned[*number]);
        let children: Vec<&Manifest> =
            here.filter(|owned| owned.repository == repository).map(|owned| &owned.manifest).take(3).collect();
        let manifest = Manifest::index(&name, &children);
        // Nobody else deletes them.
        let certain = Some(Instant::now() + Duration::from_secs(3600));
        self.put_new(Owned { repository, manifest, state: State::Absent, is_fragile: false }, certain)
    }

    /// Puts a manifest that is new. Until `certain` all it needs is there.
    fn put_new(&mut self, mut owned: Owned, certain: Option<Instant>) -> Turn<()> {
        let tag = self.random.chance(60).then(|| self.tag_name());
        let answer = self.put(&owned, tag.as_deref());
        let in_time = certain.is_some_and(|until| Instant::now() < until);
        let (repository, number) = (owned.repository, self.claims.owned.len());
        match answer {
            Ok(response) if response.status == 201 => owned.state = State::Present,
            Ok(response) if response.code() == "MANIFEST_BLOB_UNKNOWN" && !in_time => return Ok(()),
            Ok(response) => return self.cannot_be("push of a manifest", &response),
            Err(GaveUp) => owned.state = State::Unknown,
        }
        let is_sure = owned.state == State::Present;
        self.claims.owned.push(owned);
        if let Some(tag) = tag {
            if is_sure {
                self.claims.tag_is(repository, tag, Some(number));
            } else {
                self.claims.tag_is_unsure(repository, tag);
            }
        }
        if is_sure { Ok(()) } else { Err(GaveUp) }
    }

    fn put(&mut self, owned: &Owned, tag: Option<&str>) -> Turn<Response> {
        let digest = owned.manifest.digest.to_string();
        let path = format!("/v2/{}/manifests/{}", REPOSITORIES[owned.repository], tag.unwrap_or(&digest));
        self.ask("PUT", &path, &[("content-type", owned.manifest.kind)], &owned.manifest.bytes)
    }

    /// One of its tags. Few, so that they move.
    fn tag_name(&mut self) -> String {
        loop {
            // Those of which something was not answered are not used again.
            let tag = format!("c{}-t{}", self.id, self.random.below(8 + self.claims.unsure_tags.len() * 2));
            if !self.claims.unsure_tags.iter().any(|(_, unsure)| *unsure == tag) {
                return tag;
            }
        }
    }

    /// Pushes a manifest that is there once more, under a tag.
    fn tag(&mut self, present: &[usize]) -> Turn<()> {
        let number = present[self.random.below(present.len())];
        let tag = self.tag_name();
        let (repository, kind) = (self.claims.owned[number].repository, self.claims.owned[number].manifest.kind);
        let bytes = std::sync::Arc::clone(&self.claims.owned[number].manifest.bytes);
        let path = format!("/v2/{}/manifests/{tag}", REPOSITORIES[repository]);
        match self.ask("PUT", &path, &[("content-type", kind)], &bytes) {
            Ok(response) if response.status == 201 => {
                self.claims.tag_is(repository, tag, Some(number));
                Ok(())
            }
            // A child of an index that is there may have been deleted since.
            Ok(response) if response.code() == "MANIFEST_BLOB_UNKNOWN" && self.has_lost_a_child(number) => Ok(()),
            Ok(response) => self.cannot_be("push of a manifest that is there", &response),
            Err(GaveUp) => {
                self.claims.tag_is_unsure(repository, tag);
                Err(GaveUp)
            }
        }
    }

    fn has_lost_a_child(&self, number: usize) -> bool {
        let index = &self.claims.owned[number];
        index.manifest.children.iter().any(|child| {
            self.claims.owned.iter().any(|owned| {
                owned.repository == index.repository && owned.manifest.digest == *child && owned.state != State::Present
            })
        })
    }

    fn untag(&mut self) -> Turn<()> {
        let tags: Vec<_> = self.claims.tags.iter().filter(|(_, to)| to.is_some()).map(|(tag, _)| tag.clone()).collect();
        if tags.is_empty() {
            return Ok(());
        }
        let (repository, tag) = tags[self.random.below(tags.len())].clone();
        match self.ask("DELETE", &format!("/v2/{}/manifests/{tag}", REPOSITORIES[repository]), &[], &[]) {
            Ok(response) if response.status == 202 => {
                self.claims.tag_is(repository, tag, None);
                Ok(())
            }
            Ok(response) => self.cannot_be("delete of a tag that is there", &response),
            Err(GaveUp) => {
                self.claims.tag_is_unsure(repository, tag);
                Err(GaveUp)
            }
        }
    }

    fn delete(&mut self, present: &[usize]) -> Turn<()> {
        let number = present[self.random.below(present.len())];
        let owned = &self.claims.owned[number];
        let path = format!("/v2/{}/manifests/{}", REPOSITORIES[owned.repository], owned.manifest.digest);
        match self.ask("DELETE", &path, &[], &[]) {
            Ok(response) if response.status == 202 => {
                self.claims.went(number, true);
                Ok(())
            }
            Ok(response) => self.cannot_be("delete of a manifest that is there", &response),
            Err(GaveUp) => {
                self.claims.went(number, false);
                Err(GaveUp)
            }
        }
    }

    /// What is there pulls whole, whatever the others do.
    fn pull(&mut self, present: &[usize]) -> Turn<()> {
        let number = present[self.random.below(present.len())];
        let (name, manifest) = {
            let owned = &self.claims.owned[number];
            (REPOSITORIES[owned.repository], owned.manifest.clone())
        };
        let response = self.ask("GET", &format!("/v2/{name}/manifests/{}", manifest.digest), &[], &[])?;
        if response.status != 200 || *response.body != *manifest.bytes {
            return self.cannot_be("pull of a manifest that is there", &response);
        }
        for blob in &manifest.blobs {
            let response = self.ask("GET", &blob.path(name), &[], &[])?;
            if response.status != 200 || *response.body != *blob.bytes {
                return self.cannot_be(&format!("pull of {} that {} needs", blob.digest, manifest.digest), &response);
            }
        }
        Ok(())
    }
}
