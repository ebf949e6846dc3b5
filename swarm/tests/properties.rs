//! What must hold whatever happens, under random sequences of events.

#[path = "properties/announcer.rs"]
mod announcer;
#[path = "properties/picker.rs"]
mod picker;
#[path = "properties/scheduler.rs"]
mod scheduler;
#[path = "properties/uploader.rs"]
mod uploader;
