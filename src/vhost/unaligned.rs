//! Ring addresses that are not aligned as virtio demands. A guest chooses them, and the crate
//! `vhost` would end the connection because of them, which not every front end makes again;
//! so the message is taken here.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::net::RecvFlags;
use vhost::vhost_user::message::FrontendReq;

/// Bytes of a message's header, and of VHOST_USER_SET_VRING_ADDR with it.
const HEADER: usize = 12;
const LEN: usize = HEADER + 40;
/// What the addresses of descriptor table, used ring and available ring are multiples of,
/// with their places in the message.
const PARTS: [(&str, u64, usize); 3] = [
    ("descriptor table", 16, 20),
    ("used ring", 4, 28),
    ("available ring", 2, 36),
];

/// A message that was taken.
pub struct Unaligned {
    pub queue: u32,
    pub reason: io::Error,
}

/// Takes the next message if it has such an address. It is there as a whole.
///
/// # Errors
/// The stream fails.
pub fn take(stream: &UnixStream) -> io::Result<Option<Unaligned>> {
    let mut message = [0; LEN];
    let (_, len) = rustix::net::recv(stream, &mut message, RecvFlags::PEEK)?;
    let size = u32::from_ne_bytes(bytes(&message, 8));
    if len < LEN || usize::try_from(size).ok() != Some(LEN - HEADER) {
        return Ok(None);
    }
    let wrong = PARTS.iter().find_map(|(part, alignment, place)| {
        let address = u64::from_ne_bytes(bytes(&message, *place));
        let reason = format!("the {part} at {address:#x} is not at a multiple of {alignment}");
        (!address.is_multiple_of(*alignment)).then_some(reason)
    });
    let Some(reason) = wrong else {
        return Ok(None);
    };
    (&mut &*stream).read_exact(&mut message)?;
    Ok(Some(Unaligned {
        queue: u32::from_ne_bytes(bytes(&message, HEADER)),
        reason: io::Error::new(io::ErrorKind::InvalidInput, reason),
    }))
}

/// Tells the front end that the message is refused.
///
/// # Errors
/// The stream fails.
pub fn refuse(stream: &UnixStream) -> io::Result<()> {
    /// Version 1, an answer.
    const FLAGS: u32 = 1 | 1 << 2;
    let header = [FrontendReq::SET_VRING_ADDR.into(), FLAGS, 8].map(u32::to_ne_bytes);
    let mut answer = header.as_flattened().to_vec();
    answer.extend(1_u64.to_ne_bytes());
    (&mut &*stream).write_all(&answer)
}

fn bytes<const N: usize>(message: &[u8], place: usize) -> [u8; N] {
    let rest = message.get(place..).unwrap_or_default();
    rest.first_chunk().copied().unwrap_or([0; N])
}
