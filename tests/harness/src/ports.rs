//! Which ports servers listen on.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    net::{IpAddr, TcpListener},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result};

/// Below Linux' `ip_local_port_range`: a connection that goes out must not take the port of a server that restarts.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

/// A port of this address that nobody listens on. No other call of this process gets it before 22,000 others were given,
/// so it may be listened on later, and again and again.
pub(crate) fn free(ip: IpAddr) -> Result<u16> {
    // Programs that run at the same time begin at different ports.
    static NEXT: LazyLock<AtomicU32> =
        LazyLock::new(|| AtomicU32::new((RandomState::new().hash_one("") % u64::from(COUNT)) as u32));
    (0..COUNT)
        .map(|_| FIRST + (NEXT.fetch_add(1, Ordering::Relaxed) % u32::from(COUNT)) as u16)
        .find(|port| TcpListener::bind((ip, *port)).is_ok())
        .with_context(|| format!("no port of {ip} is free"))
}
