//! What must always hold, checked from scratch: used by tests and by the simulator after events.
//!
//! Each check costs time in the size of the whole state, so none runs in production.

use crate::{Announcer, Picker, Scheduler, Uploader};

/// A component broke a rule of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{component}: {broken}")]
pub struct Violation {
    /// Which component.
    pub component: &'static str,
    /// What should not be.
    pub broken: &'static str,
}

/// One request per piece outside the endgame, for verifiable pieces only, never at a distrusted host; the limits and
/// the counts that are kept along the way.
///
/// # Errors
/// The first rule that does not hold.
pub fn picker(picker: &Picker) -> Result<(), Violation> {
    picker.check().map_err(|broken| Violation { component: "picker", broken })
}

/// Nobody is told of a piece that is not here, and no news is forgotten.
///
/// # Errors
/// The first rule that does not hold.
pub fn announcer(announcer: &Announcer) -> Result<(), Violation> {
    announcer.check().map_err(|broken| Violation { component: "announcer", broken })
}

/// Slots and queues within their limits, no slot idle while requests wait.
///
/// # Errors
/// The first rule that does not hold.
pub fn uploader(uploader: &Uploader) -> Result<(), Violation> {
    uploader.check().map_err(|broken| Violation { component: "uploader", broken })
}

/// Edges have two ends of one generation, degrees are bounded, nothing is kept of hosts that are gone.
///
/// # Errors
/// The first rule that does not hold.
pub fn scheduler(scheduler: &Scheduler) -> Result<(), Violation> {
    scheduler.check().map_err(|broken| Violation { component: "scheduler", broken })
}
