//! What to tell whom about the pieces here: one announcer per task on a host.

mod reveal;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::{HostId, PieceIndex, PieceSet};

use crate::Time;
use reveal::Reveals;

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
    count: Option<u32>,
    stored: PieceSet,
    listeners: BTreeMap<HostId, Listener>,
    due: BTreeSet<(Time, HostId)>,
    armed: Option<Time>,
    reveals: Option<Reveals>,
}

/// A neighbour that wants to be told.
#[derive(Debug, Default)]
struct Listener {
    /// What it has or was told of, or will be with the next message: no news to it.
    knows: PieceSet,
    pending: Vec<PieceIndex>,
    /// When its next message goes out, when one is to go out.
    due: Option<Time>,
    /// When the last one went out; the first one replaces what it knew.
    sent_at: Option<Time>,
}

// === impl AnnounceConfig ===

impl Default for AnnounceConfig {
    fn default() -> Self {
        Self {
            coalesce: Duration::from_millis(COALESCE_MS),
            seed: false,
            reveal_again_after: Duration::from_millis(1_000),
            seed_bits: 0,
        }
    }
}

/// Three to ten pieces of an ordinary link go into one message; the first after a quiet time goes at once.
const COALESCE_MS: u64 = 40;

// === impl Announcer ===

impl Announcer {
    /// An announcer with no pieces and nobody to tell.
    #[must_use]
    pub fn new(config: AnnounceConfig) -> Self {
        let reveals = config.seed.then(|| Reveals::new(config.seed_bits, config.reveal_again_after));
        Self {
            config,
            count: None,
            stored: PieceSet::new(),
            listeners: BTreeMap::new(),
            due: BTreeSet::new(),
            armed: None,
            reveals,
        }
    }

    /// Takes what happened and appends what should be done.
    pub fn handle(&mut self, now: Time, event: AnnounceEvent, actions: &mut Vec<AnnounceAction>) {
        match event {
            AnnounceEvent::Count { pieces } => self.count = Some(pieces),
            AnnounceEvent::Subscribed { peer } => self.subscribe(now, peer),
            AnnounceEvent::Unsubscribed { peer } => {
                if let Some(listener) = self.listeners.remove(&peer) {
                    if let Some(due) = listener.due {
                        self.due.remove(&(due, peer));
                    }
                    if let Some(reveals) = &mut self.reveals {
                        reveals.forget(peer);
                    }
                }
            }
            AnnounceEvent::Stored { piece } => {
                if self.stored.insert(piece) {
                    match &mut self.reveals {
                        Some(reveals) => reveals.stored(piece),
                        None => self.tell_all(now, piece),
                    }
                }
            }
            AnnounceEvent::PeerHas { peer, added } => {
                if let Some(listener) = self.listeners.get_mut(&peer) {
                    for piece in added.iter() {
                        listener.knows.insert(piece);
                        if let Some(reveals) = &mut self.reveals {
                            reveals.seen_at(peer, piece);
                        }
                    }
                }
            }
            AnnounceEvent::Uploaded { peer, piece } => {
                if let Some(reveals) = &mut self.reveals {
                    reveals.fetched(piece);
                }
                if let Some(listener) = self.listeners.get_mut(&peer) {
                    listener.knows.insert(piece);
                }
            }
            AnnounceEvent::Idle => {
                if let Some(reveals) = &mut self.reveals {
                    reveals.idle();
                }
            }
            AnnounceEvent::Tick => self.armed = None,
        }
        self.reveal(now);
        self.flush(now, actions);
        self.arm(actions);
    }

    fn subscribe(&mut self, now: Time, peer: HostId) {
        let told = match &self.reveals {
            Some(reveals) => reveals.public(),
            None => self.stored.clone(),
        };
        if let Some(due) = self.listeners.remove(&peer).and_then(|old| old.due) {
            self.due.remove(&(due, peer));
        }
        if let Some(reveals) = &mut self.reveals {
            reveals.forget(peer);
        }
        let listener = Listener { pending: told.iter().collect(), knows: told, due: Some(now), ..Listener::default() };
        self.listeners.insert(peer, listener);
        self.due.insert((now, peer));
    }

    fn tell_all(&mut self, now: Time, piece: PieceIndex) {
        for (peer, listener) in &mut self.listeners {
            listener.tell(now, *peer, piece, self.config.coalesce, &mut self.due);
        }
    }

    fn reveal(&mut self, now: Time) {
        let Some(reveals) = &mut self.reveals else { return };
        let all_here = self.count.is_some_and(|count| self.stored.len() >= count);
        let (listeners, due, coalesce) = (&mut self.listeners, &mut self.due, self.config.coalesce);
        reveals.run(now, all_here, listeners, |peer, listener, piece| listener.tell(now, peer, piece, coalesce, due));
    }

    fn flush(&mut self, now: Time, actions: &mut Vec<AnnounceAction>) {
        while let Some(&(due, peer)) = self.due.first()
            && due <= now
        {
            self.due.pop_first();
            let Some(listener) = self.listeners.get_mut(&peer) else { continue };
            listener.due = None;
            let added = listener.pending.drain(..).collect();
            let replaces = listener.sent_at.is_none();
            listener.sent_at = Some(now);
            actions.push(AnnounceAction::Have { peer, added, replaces });
        }
    }

    fn arm(&mut self, actions: &mut Vec<AnnounceAction>) {
        let due = self.due.first().map(|(at, _)| *at);
        // Without listeners there is nobody to tell again.
        let again = self.reveals.as_ref().filter(|_| !self.listeners.is_empty()).and_then(Reveals::next_again);
        if let Some(next) = [due, again].into_iter().flatten().min()
            && self.armed.is_none_or(|armed| next < armed)
        {
            self.armed = Some(next);
            actions.push(AnnounceAction::WakeAt(next));
        }
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let only_stored =
            self.listeners.values().all(|l| l.pending.iter().all(|p| self.stored.contains(*p) && l.knows.contains(*p)));
        let due_once = self.due.len() == self.listeners.values().filter(|l| l.due.is_some()).count();
        let pending_due = self.listeners.values().all(|l| l.pending.is_empty() || l.due.is_some());
        match (only_stored, due_once, pending_due) {
            (false, ..) => Err("a piece was told of that is not here"),
            (_, false, _) => Err("a message is due without a listener"),
            (.., false) => Err("news wait without a moment"),
            _ => Ok(()),
        }
    }
}

// === impl Listener ===

impl Listener {
    fn tell(
        &mut self,
        now: Time,
        me: HostId,
        piece: PieceIndex,
        coalesce: Duration,
        due: &mut BTreeSet<(Time, HostId)>,
    ) {
        if !self.knows.insert(piece) {
            return;
        }
        self.pending.push(piece);
        if self.due.is_some() {
            return;
        }
        let at = self.sent_at.map_or(now, |sent| now.max(sent + coalesce));
        self.due = Some(at);
        due.insert((at, me));
    }
}
