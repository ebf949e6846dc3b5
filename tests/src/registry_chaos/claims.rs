//! What a client knows must be true.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context, Result, ensure};

use super::REPOSITORIES;
use crate::registry_faults::{content::Manifest, http::Client};

/// What is known of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its push was acknowledged.
    Present,
    /// Its delete was.
    Absent,
    /// Something was not answered: it is whole, or not there.
    Unknown,
}

/// A manifest that this client pushed.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) repository: usize,
    pub(super) manifest: Manifest,
    pub(super) state: State,
    /// It needs a layer that may be deleted by name before the manifest comes.
    pub(super) is_fragile: bool,
}

/// All a client knows.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pub(super) owned: Vec<Owned>,
    /// Repository and tag, and the number of the manifest; none = it was deleted. What is not certain is not in here.
    pub(super) tags: BTreeMap<(usize, String), Option<usize>>,
    /// Tags of which something was not answered.
    pub(super) unsure_tags: BTreeSet<(usize, String)>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) present: u64,
    absent: u64,
    unknown_present: u64,
    unknown_absent: u64,
    tags: u64,
    /// Blobs that were compared already.
    seen: BTreeSet<(usize, String)>,
    expected_tags: BTreeMap<usize, BTreeMap<String, bool>>,
    referrers: BTreeMap<(usize, String), BTreeSet<String>>,
}

// === impl Claims ===

impl Claims {
    /// The numbers of manifests that are certainly there.
    pub(super) fn present(&self) -> Vec<usize> {
        (0..self.owned.len()).filter(|number| self.owned[*number].state == State::Present).collect()
    }

    /// A tag was moved, or not.
    pub(super) fn tag_is(&mut self, repository: usize, tag: String, manifest: Option<usize>) {
        self.tags.insert((repository, tag), manifest);
    }

    pub(super) fn tag_is_unsure(&mut self, repository: usize, tag: String) {
        self.tags.remove(&(repository, tag.clone()));
        self.unsure_tags.insert((repository, tag));
    }

    /// A manifest takes its tags along; whether it went may not be certain.
    pub(super) fn went(&mut self, number: usize, certain: bool) {
        self.owned[number].state = if certain { State::Absent } else { State::Unknown };
        let of_it: Vec<_> =
            self.tags.iter().filter(|(_, to)| **to == Some(number)).map(|(tag, _)| tag.clone()).collect();
        for tag in of_it {
            if certain {
                self.tags.insert(tag, None);
            } else {
                self.tag_is_unsure(tag.0, tag.1);
            }
        }
    }

    pub(super) fn verify(&self, client: &mut Client, tally: &mut Tally) -> Result<()> {
        for owned in &self.owned {
            let name = REPOSITORIES[owned.repository];
            let digest = owned.manifest.digest.to_string();
            let response = client.manifest(name, &digest)?;
            let is_there = response.status == 200;
            ensure!(is_there || response.status == 404, "{name}@{digest}: {}", response.told());
            match (owned.state, is_there) {
                (State::Present, true) => tally.present += 1,
                (State::Absent, false) => tally.absent += 1,
                (State::Unknown, true) => tally.unknown_present += 1,
                (State::Unknown, false) => tally.unknown_absent += 1,
                (state, _) => anyhow::bail!("{name}@{digest} should be {state:?}: {}", response.told()),
            }
            if !is_there {
                continue;
            }
            let what = || format!("{name}@{digest}, {:?}", owned.state);
            ensure!(*response.body == *owned.manifest.bytes, "{}: other bytes", what());
            for blob in &owned.manifest.blobs {
                if tally.seen.insert((owned.repository, blob.digest.to_string())) {
                    client.pulls_blob(name, blob).with_context(what)?;
                }
            }
            if let (Some(subject), State::Present) = (&owned.manifest.subject, owned.state) {
                tally.referrers.entry((owned.repository, subject.to_string())).or_default().insert(digest);
            }
        }
        for ((repository, tag), number) in &self.tags {
            let name = REPOSITORIES[*repository];
            let response = client.manifest(name, tag)?;
            let found = response.header("docker-content-digest").map(ToOwned::to_owned);
            let expected = number.map(|number| self.owned[number].manifest.digest.to_string());
            let is_right = if expected.is_some() { found == expected } else { response.status == 404 };
            ensure!(is_right, "{name}:{tag} is {found:?} instead of {expected:?}: {}", response.status);
            tally.tags += 1;
            tally.expected_tags.entry(*repository).or_default().insert(tag.clone(), expected.is_some());
        }
        Ok(())
    }
}

// === impl Tally ===

impl Tally {
    /// Lists agree with what was found one by one.
    pub(super) fn lists(&self, client: &mut Client) -> Result<()> {
        for (repository, expected) in &self.expected_tags {
            let name = REPOSITORIES[*repository];
            let listed: BTreeSet<String> = client.tags(name)?.into_iter().collect();
            let wrong: Vec<_> = expected.iter().filter(|(tag, there)| listed.contains(*tag) != **there).collect();
            ensure!(wrong.is_empty(), "the list of tags of {name} is wrong about {wrong:?}");
        }
        for ((repository, subject), expected) in &self.referrers {
            let subject = subject.parse().context("a digest")?;
            let listed: BTreeSet<String> = client.referrers(REPOSITORIES[*repository], &subject)?.into_iter().collect();
            let missing: Vec<_> = expected.difference(&listed).collect();
            ensure!(missing.is_empty(), "referrers of {subject} are missing: {missing:?}");
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { present, absent, unknown_present, unknown_absent, tags, .. } = self;
        write!(
            f,
            "{present} manifests whole, {absent} gone, {tags} tags right; of those nobody was told of {unknown_present} \
             whole, {unknown_absent} not there"
        )
    }
}
