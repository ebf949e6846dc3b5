//! The cluster manager: fetches each file from its origin once, seeds it and schedules peers.

#![forbid(unsafe_code)]
