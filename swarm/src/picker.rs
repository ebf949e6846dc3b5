//! Which piece to ask of which neighbour: one picker per task on a host.

use std::time::Duration;

use proto::{HostId, PieceIndex, PieceSet};

use crate::Time;

/// Limits and tunables of a [`Picker`].
#[derive(Clone, Debug)]
pub struct PickerConfig {
    /// Pieces ahead of the reader that may be asked for; rarest first within it.
    pub window_pieces: u32,
    /// Length of a piece in bytes, to turn speeds into numbers of requests.
    pub piece_len_bytes: u32,
    /// Requests outstanding at one neighbour at most.
    pub outstanding_per_peer_max: u32,
    /// Requests outstanding in all at most.
    pub outstanding_max: u32,
    /// A request that was not answered within this time is asked of somebody else.
    pub request_expiry: Duration,
    /// With no verified byte for so long, [`PickerAction::Starving`] is said.
    pub starving_after: Duration,
    /// Fewer useful neighbours than this, and more are asked for.
    pub neighbours_wanted: u32,
    /// Breaks ties differently on every host; the low bits of the host id.
    pub seed: u64,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum PickerEvent {
    /// The number of pieces is now known.
    Count {
        /// Pieces in the content.
        pieces: u32,
    },
    /// The hashes of these further pieces are known: only such pieces are asked for.
    Verifiable {
        /// Pieces, in addition to those told before.
        pieces: PieceSet,
    },
    /// A piece is in the store, however it came there.
    Stored {
        /// Which.
        piece: PieceIndex,
    },
    /// A neighbour may be asked.
    Joined {
        /// Who.
        peer: HostId,
        /// It is a supernode's seed.
        seed: bool,
    },
    /// A neighbour is gone; its outstanding requests with it.
    Left {
        /// Who.
        peer: HostId,
    },
    /// A neighbour told of its pieces.
    Have {
        /// Who.
        peer: HostId,
        /// Pieces it offers.
        added: PieceSet,
        /// They replace what it told before.
        replaces: bool,
        /// Bytes waiting to be sent by it.
        queued_bytes: u64,
        /// Bytes per second it has lately sent in all; 0 = not known.
        upload_bytes_per_s: u64,
    },
    /// A request ended. After [`Outcome::Good`] the piece is in the store; no `Stored` follows.
    Ended {
        /// Who was asked.
        peer: HostId,
        /// For which piece.
        piece: PieceIndex,
        /// How it ended.
        outcome: Outcome,
    },
    /// Where readers are: the first piece the foremost reader lacks. Without readers the whole content is wanted in
    /// any order.
    Reader {
        /// That piece, `None` without readers.
        next: Option<PieceIndex>,
    },
    /// Only part of the content is wanted (a ranged read); both ends included. `None` = all.
    Wanted {
        /// First and last piece.
        pieces: Option<(PieceIndex, PieceIndex)>,
    },
    /// The moment of a [`PickerAction::WakeAt`] has come.
    Tick,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Verified and stored.
    Good {
        /// Bytes of the piece.
        bytes: u32,
    },
    /// The bytes were not what the hash says: that neighbour is cut off.
    Bad,
    /// Its queue is full.
    Busy {
        /// Bytes waiting to be sent by it.
        queued_bytes: u64,
    },
    /// It does not have the piece after all.
    Missing,
    /// Cancelled, expired or failed over there, or the connection broke: nobody's fault.
    Failed,
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PickerAction {
    /// Ask for a piece.
    Request {
        /// Whom.
        peer: HostId,
        /// For which piece.
        piece: PieceIndex,
        /// It may drop the request after waiting so long.
        expires: Duration,
    },
    /// Take a request back.
    Cancel {
        /// Whom it was put to.
        peer: HostId,
        /// For which piece.
        piece: PieceIndex,
    },
    /// This neighbour served bad bytes: report it and cut it off.
    Distrust {
        /// Who.
        peer: HostId,
        /// The bad piece.
        piece: PieceIndex,
    },
    /// Ask the supernode for more neighbours.
    NeedPeers {
        /// How many.
        wanted: u32,
    },
    /// Nothing verified has arrived for `starving_after`, and pieces are still wanted: time for another way. Said
    /// again after each further `starving_after`.
    Starving,
    /// Everything that is wanted is stored.
    Complete,
    /// Send a [`PickerEvent::Tick`] at this moment; replaces the moment asked for before.
    WakeAt(Time),
}

/// Chooses pieces and neighbours for one task.
#[derive(Debug)]
pub struct Picker {
    config: PickerConfig,
}
