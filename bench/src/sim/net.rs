//! The links of the simulated network: messages first, then pieces, shared max-min.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use swarm::Time;

use super::message::Body;

/// Shares smaller than this are not handed out any more, in bytes.
const EPSILON: f64 = 0.5;
/// Rounds of handing out what is left over; three in four ticks need fewer than six.
const ROUNDS_MAX: usize = 24;
/// The window over which no link may exceed its rate.
const WINDOW_US: u64 = 100_000;

/// A message under way.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) body: Body,
    bytes: f64,
}

/// A piece under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) id: u64,
    pub(super) piece: u32,
    pub(super) bad: bool,
    left: f64,
}

/// A transfer that ended at its sender.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) id: u64,
    pub(super) piece: u32,
    /// All bytes were sent.
    pub(super) whole: bool,
}

#[derive(Debug)]
struct Flow {
    from: usize,
    to: usize,
    queue: VecDeque<Transfer>,
}

#[derive(Debug, Default)]
struct Node {
    up_per_tick: f64,
    down_per_tick: f64,
    up_left: f64,
    down_left: f64,
    out: VecDeque<Envelope>,
    /// Arrived, but the link has no room for it yet, or the host stalls.
    held: VecDeque<Envelope>,
    flows: Vec<Flow>,
    gone: bool,
    stalled: bool,
    /// Bytes of each tick of the window, and their sums, up and down.
    ring: Vec<(f32, f32)>,
    sums: (f64, f64),
    pub_bytes: (f64, f64),
}

/// One direction of a link while a tick is shared out.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    left: f64,
    share: f64,
    flows: u32,
}

/// A flow that may get more.
#[derive(Clone, Copy, Debug)]
struct Live {
    from: u32,
    to: u32,
    given: u32,
    want: f64,
}

/// All links, and the alarm clock of all hosts.
#[derive(Debug)]
pub(super) struct Net {
    nodes: Vec<Node>,
    tick_us: u64,
    latency_ticks: usize,
    wheel: VecDeque<Vec<Envelope>>,
    wakes: BinaryHeap<Reverse<(Time, usize)>>,
    tick: u64,
    up: Vec<Side>,
    down: Vec<Side>,
    live: Vec<Live>,
    /// What each flow gets this tick: node, place among its flows, bytes.
    given: Vec<(usize, usize, f64)>,
    /// A link carried more than its rate allows in a window.
    pub(super) overruns: u64,
    pub(super) events: u64,
}

impl Net {
    pub(super) fn new(rates_bytes_per_s: &[(f64, f64)], tick_us: u64, latency_us: u64) -> Self {
        let per_tick = tick_us as f64 / 1e6;
        let ring = usize::try_from(WINDOW_US / tick_us).unwrap_or(1).max(1);
        let nodes = rates_bytes_per_s
            .iter()
            .map(|(up, down)| Node {
                up_per_tick: up * per_tick,
                down_per_tick: down * per_tick,
                ring: vec![(0.0, 0.0); ring],
                ..Node::default()
            })
            .collect();
        let latency_ticks = usize::try_from(latency_us.div_ceil(tick_us)).unwrap_or(1).max(1);
        let wheel = (0..=latency_ticks).map(|_| Vec::new()).collect();
        Self {
            nodes,
            tick_us,
            latency_ticks,
            wheel,
            wakes: BinaryHeap::new(),
            tick: 0,
            up: vec![Side::default(); rates_bytes_per_s.len()],
            down: vec![Side::default(); rates_bytes_per_s.len()],
            live: Vec::new(),
            given: Vec::new(),
            overruns: 0,
            events: 0,
        }
    }

    pub(super) const fn now(&self) -> Time {
        Time::from_micros(self.tick * self.tick_us)
    }

    /// Bytes a node has sent and received so far.
    pub(super) fn carried(&self, node: usize) -> (f64, f64) {
        self.nodes[node].pub_bytes
    }

    pub(super) fn send(&mut self, from: usize, to: usize, body: Body) {
        if self.nodes[from].gone {
            return;
        }
        let bytes = f64::from(body.bytes());
        self.nodes[from].out.push_back(Envelope { from, to, body, bytes });
    }

    pub(super) fn start(&mut self, from: usize, to: usize, id: u64, piece: u32, bytes: u32, bad: bool) {
        let transfer = Transfer { id, piece, bad, left: f64::from(bytes) };
        let flows = &mut self.nodes[from].flows;
        match flows.iter_mut().find(|f| f.to == to) {
            Some(flow) => flow.queue.push_back(transfer),
            None => flows.push(Flow { from, to, queue: VecDeque::from([transfer]) }),
        }
    }

    pub(super) fn wake_at(&mut self, node: usize, at: Time) {
        self.wakes.push(Reverse((at, node)));
    }

    /// A host whose alarm is due; it may be an old alarm.
    pub(super) fn next_wake(&mut self) -> Option<usize> {
        let now = self.now();
        let &Reverse((at, node)) = self.wakes.peek()?;
        if at > now {
            return None;
        }
        self.wakes.pop();
        if self.nodes[node].stalled {
            // Looked at again when it is running again, or a little later.
            self.wakes.push(Reverse((Time::from_micros(now.as_micros() + 50_000), node)));
            return self.next_wake();
        }
        Some(node)
    }

    pub(super) fn set_stalled(&mut self, node: usize, stalled: bool) {
        self.nodes[node].stalled = stalled;
    }

    /// Ends a connection: transfers between the two are cut, both ways.
    pub(super) fn cut(&mut self, a: usize, b: usize, done: &mut Vec<Done>) {
        for (from, to) in [(a, b), (b, a)] {
            self.nodes[from].flows.retain(|flow| {
                if flow.to == to {
                    done.extend(flow.queue.iter().map(|t| Done { from, to, id: t.id, piece: t.piece, whole: false }));
                }
                flow.to != to
            });
        }
    }

    /// A host is gone: nothing comes from it or reaches it any more.
    pub(super) fn remove(&mut self, node: usize, done: &mut Vec<Done>) {
        for other in 0..self.nodes.len() {
            if other != node {
                self.cut(other, node, done);
            }
        }
        done.retain(|d| d.from != node);
        let gone = &mut self.nodes[node];
        gone.gone = true;
        gone.out.clear();
        gone.held.clear();
    }

    /// Begins a tick: the messages that have arrived, as far as links had room for them.
    pub(super) fn arrive(&mut self, arrived: &mut Vec<Envelope>) {
        for node in &mut self.nodes {
            node.up_left = node.up_per_tick;
            node.down_left = node.down_per_tick;
        }
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            while !node.stalled
                && node.down_left > 0.0
                && let Some(envelope) = node.held.pop_front()
            {
                take(&mut node.held, &mut node.down_left, envelope, arrived);
            }
        }
        for envelope in self.wheel.pop_front().unwrap_or_default() {
            let node = &mut self.nodes[envelope.to];
            if node.gone {
                continue;
            }
            if node.stalled || node.down_left <= 0.0 || !node.held.is_empty() {
                node.held.push_back(envelope);
            } else {
                take(&mut node.held, &mut node.down_left, envelope, arrived);
            }
        }
        self.wheel.push_back(Vec::new());
        self.events += arrived.len() as u64;
    }

    /// Ends a tick: messages leave first, then pieces flow through what is left.
    pub(super) fn flow(&mut self, done: &mut Vec<Done>) {
        for node in &mut self.nodes {
            while !node.stalled
                && node.up_left > 0.0
                && let Some(mut envelope) = node.out.pop_front()
            {
                let sent = envelope.bytes.min(node.up_left);
                node.up_left -= sent;
                if sent < envelope.bytes {
                    // The receiver's link is charged for the whole when all of it has left.
                    envelope.bytes -= sent;
                    node.out.push_front(envelope);
                    break;
                }
                envelope.bytes = f64::from(envelope.body.bytes());
                self.wheel[self.latency_ticks - 1].push(envelope);
            }
        }
        self.share();
        self.advance(done);
        self.account();
        self.tick += 1;
    }

    /// Progressive filling: in each round every flow gets the smaller of its two links' equal shares; who has enough,
    /// or whose link is full, leaves. What is left over is shared among the rest.
    fn share(&mut self) {
        let (mut live, mut given) = (std::mem::take(&mut self.live), std::mem::take(&mut self.given));
        live.clear();
        given.clear();
        for (at, node) in self.nodes.iter().enumerate() {
            self.up[at] = Side { left: node.up_left, share: 0.0, flows: 0 };
            self.down[at] = Side { left: node.down_left, share: 0.0, flows: 0 };
            if node.stalled || node.gone {
                continue;
            }
            for (place, flow) in node.flows.iter().enumerate() {
                let to = &self.nodes[flow.to];
                if !to.stalled && !to.gone {
                    let want = flow.queue.iter().map(|t| t.left).sum();
                    live.push(Live { from: at as u32, to: flow.to as u32, given: given.len() as u32, want });
                    given.push((at, place, 0.0));
                }
            }
        }
        let (up, down) = (&mut self.up, &mut self.down);
        for _ in 0..ROUNDS_MAX {
            if live.is_empty() {
                break;
            }
            for flow in &live {
                up[flow.from as usize].flows += 1;
                down[flow.to as usize].flows += 1;
            }
            for side in up.iter_mut().chain(down.iter_mut()) {
                side.share = side.left / f64::from(side.flows.max(1));
                side.flows = 0;
            }
            for flow in &mut live {
                let (from, to) = (&mut up[flow.from as usize], &mut down[flow.to as usize]);
                let part = from.share.min(to.share).min(flow.want);
                flow.want -= part;
                from.left -= part;
                to.left -= part;
                given[flow.given as usize].2 += part;
            }
            live.retain(|f| {
                f.want > EPSILON && up[f.from as usize].left > EPSILON && down[f.to as usize].left > EPSILON
            });
        }
        for (at, place, mut bytes) in given.iter().copied() {
            for transfer in &mut self.nodes[at].flows[place].queue {
                let part = bytes.min(transfer.left);
                transfer.left -= part;
                bytes -= part;
            }
        }
        for (at, node) in self.nodes.iter_mut().enumerate() {
            node.up_left = self.up[at].left;
            node.down_left = self.down[at].left;
        }
        self.live = live;
        self.given = given;
    }

    /// Pieces whose last byte has left.
    fn advance(&mut self, done: &mut Vec<Done>) {
        // A message is taken to leave when its tick begins, the last byte of a piece when it ends.
        let at = self.latency_ticks;
        for node in &mut self.nodes {
            for flow in &mut node.flows {
                while let Some(transfer) = flow.queue.front().copied()
                    && transfer.left <= EPSILON
                {
                    flow.queue.pop_front();
                    let Transfer { id, piece, bad, .. } = transfer;
                    done.push(Done { from: flow.from, to: flow.to, id, piece, whole: true });
                    let body = Body::Piece { id, piece, bad };
                    let bytes = f64::from(body.bytes());
                    self.wheel[at].push(Envelope { from: flow.from, to: flow.to, body, bytes });
                }
            }
            node.flows.retain(|flow| !flow.queue.is_empty());
        }
    }

    fn account(&mut self) {
        for node in &mut self.nodes {
            let used = (node.up_per_tick - node.up_left, node.down_per_tick - node.down_left);
            node.pub_bytes.0 += used.0;
            node.pub_bytes.1 += used.1;
            let slots = node.ring.len();
            let at = usize::try_from(self.tick).unwrap_or(0) % slots;
            let old = std::mem::replace(&mut node.ring[at], (used.0 as f32, used.1 as f32));
            node.sums.0 += f64::from(node.ring[at].0) - f64::from(old.0);
            node.sums.1 += f64::from(node.ring[at].1) - f64::from(old.1);
            let limit = slots as f64;
            // A message longer than what a tick has left is charged at once; a packet's worth of slack.
            let slack = 1_500.0;
            if node.sums.0 > node.up_per_tick * limit + slack || node.sums.1 > node.down_per_tick * limit + slack {
                self.overruns += 1;
            }
        }
    }
}

/// Charges an arriving message to the link; what is too long for this tick takes the next ones too.
fn take(held: &mut VecDeque<Envelope>, left: &mut f64, mut envelope: Envelope, arrived: &mut Vec<Envelope>) {
    let part = envelope.bytes.min(*left);
    *left -= part;
    envelope.bytes -= part;
    if envelope.bytes > 0.0 {
        held.push_front(envelope);
    } else {
        arrived.push(envelope);
    }
}
