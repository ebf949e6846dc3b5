//! The segments this process wrote or read lately: so that it need not read them back to make a part of them.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use object_store::path::Path;
use parking_lot::Mutex;

/// Bounded by the bytes it holds; the oldest go first. What is in it is right for ever: segments do not change.
#[derive(Debug)]
pub(super) struct SegmentCache {
    max_bytes: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Path, Bytes>,
    order: VecDeque<Path>,
    bytes: usize,
}

impl SegmentCache {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, inner: Mutex::default() }
    }

    pub(super) fn get(&self, key: &Path) -> Option<Bytes> {
        self.inner.lock().entries.get(key).cloned()
    }

    pub(super) fn put(&self, key: Path, content: Bytes) {
        let mut inner = self.inner.lock();
        inner.bytes += content.len();
        inner.order.push_back(key.clone());
        if let Some(old) = inner.entries.insert(key, content) {
            inner.bytes -= old.len();
        }
        while inner.bytes > self.max_bytes {
            let Some(oldest) = inner.order.pop_front() else { break };
            if let Some(old) = inner.entries.remove(&oldest) {
                inner.bytes -= old.len();
            }
        }
    }

    /// The segment has gone, or has become part of a part.
    pub(super) fn remove(&self, key: &Path) {
        let mut inner = self.inner.lock();
        if let Some(old) = inner.entries.remove(key) {
            inner.bytes -= old.len();
            inner.order.retain(|other| other != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_so_many_bytes_and_no_more() {
        let cache = SegmentCache::new(10);
        let key = |n: usize| Path::from(format!("k{n}"));
        for n in 0..4 {
            cache.put(key(n), Bytes::from(vec![0; 4]));
        }
        let held: Vec<bool> = (0..4).map(|n| cache.get(&key(n)).is_some()).collect();
        assert_eq!(held, [false, false, true, true]);
        cache.put(key(2), Bytes::from(vec![0; 6]));
        assert_eq!(cache.get(&key(2)).map(|content| content.len()), Some(6));
        cache.remove(&key(3));
        cache.put(key(5), Bytes::from(vec![0; 11]));
        assert!(cache.get(&key(5)).is_none(), "larger than the cache");
        let inner = cache.inner.lock();
        assert_eq!((inner.bytes, inner.entries.len(), inner.order.len()), (0, 0, 0));
    }
}
