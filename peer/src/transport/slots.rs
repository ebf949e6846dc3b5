//! How many connections strangers may hold open here, in all and each.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// The places, and who has them.
#[derive(Debug)]
pub(super) struct Slots {
    total_max: usize,
    per_ip_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    per_ip: HashMap<IpAddr, usize>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    ip: IpAddr,
}

/// No place is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("too many connections")]
    Total,
    #[error("too many connections from this address")]
    PerIp,
}

impl Slots {
    pub(super) fn new(total_max: usize, per_ip_max: usize) -> Arc<Self> {
        Arc::new(Self { total_max, per_ip_max, taken: Mutex::default() })
    }

    /// Takes a place for a connection from this address.
    pub(super) fn take(self: &Arc<Self>, ip: IpAddr) -> Result<Arc<Slot>, Full> {
        let ip = who(ip);
        let mut taken = self.taken.lock();
        if taken.total >= self.total_max {
            return Err(Full::Total);
        }
        let of_ip = taken.per_ip.entry(ip).or_default();
        if *of_ip >= self.per_ip_max {
            return Err(Full::PerIp);
        }
        *of_ip += 1;
        taken.total += 1;
        drop(taken);
        Ok(Arc::new(Slot { slots: Arc::clone(self), ip }))
    }

    /// Places taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.lock().total
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock();
        taken.total -= 1;
        if let Some(of_ip) = taken.per_ip.get_mut(&self.ip) {
            *of_ip -= 1;
            if *of_ip == 0 {
                taken.per_ip.remove(&self.ip);
            }
        }
    }
}

/// Whom an address stands for: one machine can have all of an IPv6 /64.
fn who(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip @ IpAddr::V4(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transport_slots_count_in_all_and_by_address() {
        let slots = Slots::new(3, 2);
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().expect("an address"));
        let first = slots.take(a).expect("free");
        let _second = slots.take(a).expect("free");
        assert_eq!(slots.take(a).unwrap_err(), Full::PerIp);
        let _third = slots.take(b).expect("free");
        assert_eq!(slots.take(b).unwrap_err(), Full::Total);
        drop(first);
        assert!(slots.take(a).is_ok());
        assert_eq!(slots.taken(), 2);
    }

    #[test]
    fn transport_slots_take_a_v6_network_for_one() {
        let slots = Slots::new(9, 1);
        let _held = slots.take("2001:db8::1".parse().unwrap()).expect("free");
        assert_eq!(slots.take("2001:db8::ffff:1".parse().unwrap()).unwrap_err(), Full::PerIp);
        assert!(slots.take("2001:db8:0:1::1".parse().unwrap()).is_ok());
        let _v4 = slots.take("::ffff:10.0.0.1".parse().unwrap()).expect("free");
        assert_eq!(slots.take("10.0.0.1".parse().unwrap()).unwrap_err(), Full::PerIp);
    }
}
