//! The neighbours of a picker, each at a place of its own for as long as it stays.

use std::collections::BTreeMap;

use proto::HostId;

use super::neighbour::Neighbour;

#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Option<Neighbour>>,
    free: Vec<usize>,
    by_id: BTreeMap<HostId, usize>,
    seeds: Vec<usize>,
}

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Places, taken or not.
    pub(super) const fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Places of the seeds.
    pub(super) fn seeds(&self) -> &[usize] {
        &self.seeds
    }

    pub(super) fn find(&self, peer: HostId) -> Option<usize> {
        self.by_id.get(&peer).copied()
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Neighbour> {
        self.slots.get(slot)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Neighbour> {
        self.slots.get_mut(slot)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Neighbour)> {
        self.slots.iter().enumerate().filter_map(|(slot, n)| n.as_ref().map(|n| (slot, n)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Neighbour)> {
        self.slots.iter_mut().enumerate().filter_map(|(slot, n)| n.as_mut().map(|n| (slot, n)))
    }

    pub(super) fn add(&mut self, neighbour: Neighbour) {
        let (id, seed) = (neighbour.id, neighbour.seed);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(neighbour);
                slot
            }
            None => {
                self.slots.push(Some(neighbour));
                self.slots.len() - 1
            }
        };
        self.by_id.insert(id, slot);
        if seed {
            self.seeds.push(slot);
        }
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Neighbour> {
        let gone = self.slots.get_mut(slot)?.take()?;
        self.by_id.remove(&gone.id);
        self.free.push(slot);
        self.seeds.retain(|s| *s != slot);
        Some(gone)
    }
}
