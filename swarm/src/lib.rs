//! The brain: who talks to whom, and which piece comes from where. Pure decisions.
//!
//! Every component here is `handle(now, event, &mut actions)`: it holds state, takes an event with the time it
//! happened at, and appends what should be done. It never performs IO, reads a clock, spawns, or draws randomness
//! from outside its seed, so the same code runs in production (crates `peer` and `supernode`), in property tests and
//! in the simulator (crate `bench`), and the same seed gives the same run.
//!
//! - [`Picker`]: on a host, for one task: which piece to ask of which neighbour.
//! - [`Announcer`]: on a host, for one task: what to tell whom about the pieces here. On a seed it hands each piece
//!   out once, in different hands, before it repeats any.
//! - [`Uploader`]: on a host, for all tasks: whose request is served next, and who is told to come back.
//! - [`Scheduler`]: on a supernode, for all tasks: who may talk to whom, and who may read the origin.

#![forbid(unsafe_code)]

mod announcer;
pub mod invariants;
mod picker;
mod scheduler;
mod time;
mod uploader;

pub use announcer::{AnnounceAction, AnnounceConfig, AnnounceEvent, Announcer};
pub use picker::{Outcome, Picker, PickerAction, PickerConfig, PickerEvent};
pub use scheduler::{
    HostFacts, InventoryItem, RefuseReason, Scheduler, SchedulerAction, SchedulerConfig, SchedulerEvent,
};
pub use time::Time;
pub use uploader::{RefuseUpload, UploadAction, UploadConfig, UploadEvent, Uploader};
