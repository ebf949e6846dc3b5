//! Who was served bad pieces by whom, and who is given to nobody any more.

use std::collections::{BTreeMap, BTreeSet};

use proto::HostId;

/// Hosts one reporter is believed to have been served badly by; a reporter that accuses everybody is itself the defect.
const ACCUSED_PER_REPORTER_MAX: usize = 16;
/// Excluded hosts remembered.
const EXCLUDED_MAX: usize = 4_096;
/// Hosts with reports against them that are remembered.
const ACCUSED_MAX: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Blame {
    reports: BTreeMap<HostId, BTreeSet<HostId>>,
    by_reporter: BTreeMap<HostId, BTreeSet<HostId>>,
    excluded: BTreeSet<HostId>,
}

impl Blame {
    pub(super) const fn excluded(&self) -> &BTreeSet<HostId> {
        &self.excluded
    }

    /// A report; true when it makes the accused an excluded host.
    pub(super) fn report(&mut self, reporter: HostId, accused: HostId, reports_max: u32) -> bool {
        let named = self.by_reporter.entry(reporter).or_default();
        if self.excluded.contains(&accused) || (named.len() >= ACCUSED_PER_REPORTER_MAX && !named.contains(&accused)) {
            return false;
        }
        if self.reports.len() >= ACCUSED_MAX && !self.reports.contains_key(&accused) {
            return false;
        }
        named.insert(accused);
        let reporters = self.reports.entry(accused).or_default();
        reporters.insert(reporter);
        // One reporter alone never suffices, whatever the configuration says.
        if reporters.len() < reports_max.max(2) as usize || self.excluded.len() >= EXCLUDED_MAX {
            return false;
        }
        self.reports.remove(&accused);
        self.excluded.insert(accused)
    }

    /// A host is gone. An excluded one stays excluded: it would only have to reconnect otherwise.
    pub(super) fn forget(&mut self, host: HostId) {
        self.reports.remove(&host);
        for accused in self.by_reporter.remove(&host).unwrap_or_default() {
            if let Some(reporters) = self.reports.get_mut(&accused) {
                reporters.remove(&host);
                if reporters.is_empty() {
                    self.reports.remove(&accused);
                }
            }
        }
    }
}
