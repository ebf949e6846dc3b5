//! What to tell whom about the pieces here: one announcer per task on a host.

use std::time::Duration;

use proto::{HostId, PieceIndex, PieceSet};

use crate::Time;

/// Limits and tunables of an [`Announcer`].
#[derive(Clone, Debug)]
pub struct AnnounceConfig {
    /// News for one neighbour within this time go into one message.
    pub coalesce: Duration,
    /// This is a seed: tell of each piece to one neighbour first, and to the others once it has spread.
    pub seed: bool,
    /// On a seed: a piece that was told to one neighbour and not fetched within this time is told to another.
    pub reveal_again_after: Duration,
    /// Breaks ties differently on every host.
    pub seed_bits: u64,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum AnnounceEvent {
    /// The number of pieces is now known.
    Count {
        /// Pieces in the content.
        pieces: u32,
    },
    /// A neighbour wants to be told.
    Subscribed {
        /// Who.
        peer: HostId,
    },
    /// A neighbour is gone or wants no more.
    Unsubscribed {
        /// Who.
        peer: HostId,
    },
    /// A piece is here and verified.
    Stored {
        /// Which.
        piece: PieceIndex,
    },
    /// A neighbour told of its own pieces.
    PeerHas {
        /// Who.
        peer: HostId,
        /// What it told.
        added: PieceSet,
    },
    /// A piece was sent to a neighbour in full.
    Uploaded {
        /// To whom.
        peer: HostId,
        /// Which.
        piece: PieceIndex,
    },
    /// Nothing is waiting to be sent here: capacity would go unused.
    Idle,
    /// The moment of an [`AnnounceAction::WakeAt`] has come.
    Tick,
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnnounceAction {
    /// Tell a neighbour.
    Have {
        /// Whom.
        peer: HostId,
        /// Pieces it may ask for, in addition to those told before.
        added: PieceSet,
        /// They replace what it was told before.
        replaces: bool,
    },
    /// Send an [`AnnounceEvent::Tick`] at this moment; replaces the moment asked for before.
    WakeAt(Time),
}

/// Spreads the news of one task's pieces.
#[derive(Debug)]
pub struct Announcer {
    config: AnnounceConfig,
}
