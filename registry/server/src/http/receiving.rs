//! Memory for manifests that clients are sending: all of them together have a bound.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oci::ErrorCode;
use service::config::ByteSize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Failure;

const KIB: usize = 1024;
/// What a body has from its first byte on: most manifests fit.
const FIRST_BYTES: usize = 4 * KIB;
/// Bodies up to this size may take all there is, larger ones leave a quarter: few large ones that come slowly must not keep everybody out.
const SMALL_BYTES: usize = 64 * KIB;
const COME_BACK: Duration = Duration::from_secs(5);

/// Bounds the memory of all manifests that are received, until they are answered.
#[derive(Clone, Debug)]
pub(crate) struct Receiving {
    kib: Arc<Semaphore>,
    /// What large ones leave.
    kept_kib: usize,
}

/// A body that is coming. It takes memory as its bytes arrive, not as they are announced: whoever announces much and sends nothing costs nothing.
pub(super) struct Growing {
    bytes: BytesMut,
    /// It will not have more bytes than this.
    most: usize,
    of: Receiving,
    held: Held,
}

/// A body's share of the memory, given back when dropped.
pub(super) struct Held(Option<OwnedSemaphorePermit>);

// === impl Receiving ===

impl Receiving {
    pub(crate) fn new(most: ByteSize) -> Self {
        let kib = most.as_usize() / KIB;
        Self { kib: Arc::new(Semaphore::new(kib)), kept_kib: kib / 4 }
    }

    pub(super) fn begin(&self, most: usize) -> Growing {
        Growing { bytes: BytesMut::new(), most, of: self.clone(), held: Held(None) }
    }

    /// So much more for a body that then has `capacity`.
    fn take(&self, bytes: usize, capacity: usize) -> Option<OwnedSemaphorePermit> {
        let kib = bytes.div_ceil(KIB);
        // Two that look at the same moment may both go below; there is never more given than there is.
        if capacity > SMALL_BYTES && self.kib.available_permits() < kib + self.kept_kib {
            return None;
        }
        Arc::clone(&self.kib).try_acquire_many_owned(u32::try_from(kib).ok()?).ok()
    }
}

// === impl Growing ===

impl Growing {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            self.grow(needed)?;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Twice as much each time, so that a body is not copied for every piece of it.
    fn grow(&mut self, needed: usize) -> Result<(), Failure> {
        let capacity = (2 * self.bytes.capacity()).max(FIRST_BYTES).min(self.most).max(needed);
        let more = self.of.take(capacity - self.bytes.capacity(), capacity).ok_or_else(|| {
            let message = "too many manifests are being received";
            Failure::later(503, ErrorCode::Unavailable, message, COME_BACK)
        })?;
        match &mut self.held.0 {
            Some(held) => held.merge(more),
            none => *none = Some(more),
        }
        // A new one instead of `reserve`, which rounds up. While it is copied there are two, one of them in each thread at most.
        let mut larger = BytesMut::with_capacity(capacity);
        larger.extend_from_slice(&self.bytes);
        self.bytes = larger;
        Ok(())
    }

    pub(super) fn end(self) -> (Bytes, Held) {
        (self.bytes.freeze(), self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kib(size: usize) -> Vec<u8> {
        vec![b'x'; size * KIB]
    }

    #[test]
    fn all_together_have_a_bound() {
        let receiving = Receiving::new(ByteSize::kib(1024));
        let mut large: Vec<Growing> = (0..4).map(|_| receiving.begin(256 * KIB)).collect();
        large[..3].iter_mut().for_each(|body| body.push(&kib(256)).unwrap());
        let refused = large[3].push(&kib(256)).unwrap_err().into_response();
        assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"5".parse().unwrap()));
        // Small ones find room, until there is none.
        let mut small: Vec<Growing> = (0..5).map(|_| receiving.begin(64 * KIB)).collect();
        small[..4].iter_mut().for_each(|body| body.push(&kib(64)).unwrap());
        assert!(small[4].push(b"x").is_err());
        // An answered one gives back what it had, and not before.
        let (bytes, held) = large.remove(0).end();
        assert_eq!(bytes.len(), 256 * KIB);
        drop(bytes);
        assert!(small[4].push(b"x").is_err());
        drop(held);
        small[4].push(b"x").unwrap();
        drop((large, small));
        assert_eq!(receiving.kib.available_permits(), 1024);
    }

    #[test]
    fn bytes_that_do_not_come_cost_nothing() {
        let receiving = Receiving::new(ByteSize::kib(64));
        let mut bodies: Vec<Growing> = (0..16).map(|_| receiving.begin(usize::MAX)).collect();
        bodies.iter_mut().for_each(|body| body.push(b"ten bytes.").unwrap());
        assert_eq!(receiving.kib.available_permits(), 0);
    }

    #[test]
    fn it_grows_to_what_is_announced_and_no_further() {
        let receiving = Receiving::new(ByteSize::mib(8));
        let mut body = receiving.begin(100_000);
        for _ in 0..100 {
            body.push(&[b'y'; 1000]).unwrap();
        }
        assert_eq!((body.len(), body.bytes.capacity()), (100_000, 100_000));
        assert!(body.end().0.iter().all(|byte| *byte == b'y'));
    }
}
