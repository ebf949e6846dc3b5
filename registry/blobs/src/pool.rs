//! The fixed buffers between socket and store.

use std::sync::LazyLock;

use bytes::Bytes;
use parking_lot::Mutex;

/// What is hashed and written at a time, in bytes: long enough that handing it to another thread costs little.
pub(crate) const BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// The most that is gathered at a time at the beginning of an upload: where there is little, the last of it should not be much of it.
const FIRST_BYTES: usize = 1024 * 1024;
/// The beginning of an upload.
const FIRST_OFFSETS: u64 = 16 * 1024 * 1024;
/// Large buffers there are at most, 128 MiB in all: with two each, 32 uploads run at full speed.
const LARGE_MAX: usize = 64;
/// Large buffers kept when nobody needs them.
const IDLE_MAX: usize = 32;
/// Where a page of memory and a block of a disk begin: bytes that lie at the same place in both can go past the page cache.
pub(crate) const ALIGNMENT: usize = 4096;
/// What uploads get when all large buffers are in use: slower, but a stalled client cannot keep others waiting.
const SMALL_BYTES: usize = 64 * 1024;

static POOL: LazyLock<Mutex<Pool>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Pool {
    idle: Vec<Vec<u8>>,
    /// Large buffers in use.
    used: usize,
}

/// An empty buffer of a fixed capacity, which is filled and then given away as [`Bytes`]. Its memory returns to the pool
/// when the last of them is gone.
pub(crate) struct Buffer {
    /// Never grows beyond what it was made with, so that it stays where it is.
    bytes: Vec<u8>,
    /// What is not to be given away, so that the rest begins where it should.
    skip: usize,
    /// How much may be put in.
    capacity: usize,
    pooled: bool,
}

// === impl Buffer ===

impl Buffer {
    /// A buffer for the bytes from `offset` of an upload on. Its address is aligned as the offset is, and its end is.
    pub(crate) fn take(offset: u64) -> Self {
        let mut pool = POOL.lock();
        if pool.used >= LARGE_MAX {
            drop(pool);
            return Self::aligned(Vec::with_capacity(SMALL_BYTES + ALIGNMENT), offset, SMALL_BYTES, false);
        }
        pool.used += 1;
        let idle = pool.idle.pop();
        drop(pool);
        let bytes = idle.unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES + ALIGNMENT));
        let capacity = if offset < FIRST_OFFSETS { FIRST_BYTES } else { BUFFER_BYTES };
        Self::aligned(bytes, offset, capacity, true)
    }

    fn aligned(mut bytes: Vec<u8>, offset: u64, capacity: usize, pooled: bool) -> Self {
        let phase = usize::try_from(offset % ALIGNMENT as u64).unwrap_or(0);
        let skip = bytes.as_ptr().align_offset(ALIGNMENT) % ALIGNMENT + phase;
        bytes.resize(skip, 0);
        Self { bytes, skip, capacity: capacity - phase, pooled }
    }

    const fn len(&self) -> usize {
        self.bytes.len() - self.skip
    }

    /// Takes as many of the bytes as there is room for, and says how many.
    pub(crate) fn fill(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.capacity - self.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        taken
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == self.capacity
    }

    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.skip..]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.pooled {
            return;
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut pool = POOL.lock();
        pool.used -= 1;
        if pool.idle.len() < IDLE_MAX {
            pool.idle.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_bounded_and_come_back() {
        let mut all: Vec<Buffer> = (0..LARGE_MAX + 10).map(|_| Buffer::take(0)).collect();
        // Other tests of this process take buffers, too; they only make more of these small.
        let small = all.iter().filter(|buffer| buffer.capacity == SMALL_BYTES).count();
        assert!(small >= 10, "{small}");
        for buffer in &mut all {
            assert_eq!(buffer.as_ref().as_ptr().align_offset(ALIGNMENT), 0);
            let content = vec![1; BUFFER_BYTES + 1];
            assert_eq!(buffer.fill(&content), buffer.capacity);
            assert!(buffer.is_full());
            assert_eq!(buffer.fill(&content), 0);
        }
        let frozen: Vec<Bytes> = all.into_iter().map(Buffer::freeze).collect();
        let part = frozen[0].slice(10..20);
        drop(frozen);
        assert_eq!(part, vec![1; 10]);
        drop(part);
        let mut late = Buffer::take(FIRST_OFFSETS + ALIGNMENT as u64 * 5 + 10);
        assert_eq!(late.fill(&vec![1; BUFFER_BYTES]) % ALIGNMENT, ALIGNMENT - 10);
        assert_eq!(late.as_ref().as_ptr().align_offset(ALIGNMENT), ALIGNMENT - 10);
        drop(late);
        let pool = POOL.lock();
        assert!(pool.used < LARGE_MAX && pool.idle.len() <= IDLE_MAX, "{} {}", pool.used, pool.idle.len());
    }
}
