//! What simulated hosts say to each other, and what it costs on the wire.

use proto::{HostId, PieceSet};
use swarm::RefuseUpload;

/// Bytes of IP and TCP headers of one packet.
const PACKET: u32 = 40;
/// Length prefix, field tags, and the task id and generation that most messages carry.
const FRAME: u32 = 4 + 4 + 34 + 18;
/// A host's record in a list of peers: identity, name, address, place, transports.
const HOST_INFO: u32 = 110;
/// Payload of one packet; a longer message costs more headers.
const PAYLOAD: u32 = 1_460;

/// A message between hosts, or between a host and the supernode.
#[derive(Clone, Debug)]
pub(super) enum Body {
    // Between hosts.
    Subscribe,
    Have {
        added: PieceSet,
        replaces: bool,
        queued_bytes: u64,
        upload_bytes_per_s: u64,
    },
    Request {
        id: u64,
        piece: u32,
        expires_ms: u32,
    },
    Cancel {
        id: u64,
    },
    Refused {
        id: u64,
        why: Refused,
        queued_bytes: u64,
    },
    /// The piece's bytes came through a flow before; `bad` is what a hash will find out.
    Piece {
        id: u64,
        piece: u32,
        bad: bool,
    },
    /// The connection broke.
    Reset,
    // To the supernode.
    Hello {
        inventory_total: u32,
    },
    Inventory {
        complete: bool,
        downloading: bool,
        pieces: u32,
    },
    Open {
        have_pieces: u32,
    },
    Close {
        complete: bool,
    },
    Progress {
        pieces: u32,
        neighbours: u32,
    },
    NeedPeers {
        wanted: u32,
        unreachable: Vec<HostId>,
    },
    BadPiece {
        piece: u32,
        from: HostId,
    },
    // From the supernode.
    Opened {
        hashes: PieceSet,
    },
    Peers {
        peers: Vec<HostId>,
        seeds: Vec<HostId>,
    },
    Hashes {
        pieces: PieceSet,
    },
    SessionLost,
}

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Uploader(RefuseUpload),
    Missing,
}

impl Body {
    /// Said between two hosts, of which the seed is one, rather than between a host and the supernode.
    pub(super) const fn is_between_hosts(&self) -> bool {
        matches!(
            self,
            Self::Subscribe
                | Self::Have { .. }
                | Self::Request { .. }
                | Self::Cancel { .. }
                | Self::Refused { .. }
                | Self::Piece { .. }
                | Self::Reset
        )
    }

    /// Bytes on the wire, headers included.
    pub(super) fn bytes(&self) -> u32 {
        let frame = match self {
            Self::Have { added, .. } => FRAME + 12 + 3 * runs(added),
            Self::Request { .. } => FRAME + 12,
            Self::Cancel { .. } => 4 + 12,
            Self::Refused { .. } => 4 + 12,
            // The bytes of the content are counted by the flow.
            Self::Piece { .. } => 4 + 12,
            Self::Subscribe | Self::Close { .. } => FRAME,
            // A reset, and a session that ends, are packets without a body.
            Self::Reset | Self::SessionLost => 0,
            Self::Hello { .. } => HOST_INFO,
            Self::Inventory { .. } | Self::Progress { .. } => FRAME + 8,
            // The specification of the task and the caller's headers.
            Self::Open { .. } => FRAME + 400,
            Self::NeedPeers { unreachable, .. } => FRAME + 4 + 18 * len(unreachable),
            Self::BadPiece { .. } => FRAME + 22,
            Self::Opened { hashes } => FRAME + 500 + 36 * hashes.len(),
            Self::Peers { peers, seeds } => FRAME + HOST_INFO * (len(peers) + len(seeds)),
            Self::Hashes { pieces } => FRAME + 32 * pieces.len(),
        };
        frame + PACKET * (frame / PAYLOAD + 1)
    }
}

fn len<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

fn runs(set: &PieceSet) -> u32 {
    let mut runs = 0;
    let mut next = None;
    for piece in set.iter() {
        runs += u32::from(next != Some(piece.0));
        next = Some(piece.0 + 1);
    }
    runs
}
