//! Stores that are given up, cut, or changed behind the daemon's back, with the
//! real binary and real files: nothing that was once invalid is ever active, and
//! nothing that was cut reads as zeroes.
#![allow(
    unsafe_code,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)] // Tests; unsafe only in the helpers. Not all of their functions are used here.

#[path = "../common/guest.rs"]
mod guest;
#[path = "../refusals/world.rs"]
mod world;

mod cut;
mod golden;
mod invalid;

use guest::{Ask, Guest, Kind};
use world::World;

/// One request on a connection of its own; whether it succeeded.
pub fn request(world: &World, socket: &str, kind: Kind, sector: u64, data: &mut [u8]) -> bool {
    let mut guest = Guest::connect(&world.path(socket), 1, 1);
    ask(&mut guest, kind, sector, data)
}

/// The same on a guest's first slot.
pub fn ask(guest: &mut Guest, kind: Kind, sector: u64, data: &mut [u8]) -> bool {
    let ask = Ask {
        kind,
        sector,
        len: data.len(),
        offset: 0,
        cut: 0,
    };
    if kind == Kind::Write {
        guest.memory(0)[..data.len()].copy_from_slice(data);
    }
    guest.submit(0, &ask);
    guest.kick();
    let mut done = Vec::new();
    guest.wait(&mut done);
    if kind == Kind::Read {
        data.copy_from_slice(&guest.memory(0)[..data.len()]);
    }
    done[0].1 == 0
}

/// The word of the header that is not zero while the store is valid.
pub fn valid_word(bytes: &[u8]) -> u32 {
    bytes
        .get(4..8)
        .map_or(0, |word| u32::from_le_bytes(word.try_into().unwrap()))
}
