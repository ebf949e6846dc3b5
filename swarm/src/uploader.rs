//! Whose request is served next: one uploader per host, for all tasks.

use std::time::Duration;

use proto::{Generation, HostId, PieceIndex, TaskId};

use crate::Time;

/// Limits and tunables of an [`Uploader`].
#[derive(Clone, Debug)]
pub struct UploadConfig {
    /// Pieces being sent at the same time at most.
    pub slots: u32,
    /// Requests of one neighbour waiting at most; more are refused as busy.
    pub queue_per_peer_max: u32,
    /// Requests waiting in all at most; more are refused as busy.
    pub queue_max: u32,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum UploadEvent {
    /// A neighbour asks for a piece that is here.
    Request {
        /// Who.
        from: HostId,
        /// Its number for the request.
        id: u64,
        /// The task.
        task: TaskId,
        /// The generation.
        generation: Generation,
        /// The piece.
        piece: PieceIndex,
        /// Its length in bytes.
        bytes: u32,
        /// Worthless after waiting so long.
        expires: Duration,
    },
    /// A neighbour takes a request back.
    Cancel {
        /// Who.
        from: HostId,
        /// Which request.
        id: u64,
    },
    /// A [`UploadAction::Send`] has ended, well or not.
    Sent {
        /// To whom.
        to: HostId,
        /// Which request.
        id: u64,
    },
    /// A neighbour is gone; its waiting requests with it.
    Left {
        /// Who.
        peer: HostId,
    },
    /// The moment of an [`UploadAction::WakeAt`] has come.
    Tick,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseUpload {
    /// The queue is full.
    Busy,
    /// It waited too long.
    Expired,
    /// It was taken back.
    Cancelled,
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadAction {
    /// Send a piece; [`UploadEvent::Sent`] must follow.
    Send {
        /// To whom.
        to: HostId,
        /// For which request.
        id: u64,
        /// The task.
        task: TaskId,
        /// The generation.
        generation: Generation,
        /// The piece.
        piece: PieceIndex,
    },
    /// Answer without bytes.
    Refuse {
        /// Whom.
        to: HostId,
        /// For which request.
        id: u64,
        /// Why.
        why: RefuseUpload,
    },
    /// Send an [`UploadEvent::Tick`] at this moment; replaces the moment asked for before.
    WakeAt(Time),
}

/// Orders the uploads of one host.
#[derive(Debug)]
pub struct Uploader {
    config: UploadConfig,
}
