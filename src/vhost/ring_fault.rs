//! Why a worker stops serving a ring.

/// What is wrong with a ring or its in-flight record.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum RingFault {
    #[error(
        "the available index went {available} ahead, but only {room} more requests can be under way"
    )]
    TooManyAvailable { available: u16, room: u16 },
    #[error("head {0} is not in the descriptor table")]
    Head(u16),
    #[error("the ring's memory cannot be accessed")]
    Memory,
    #[error(
        "the in-flight region names {recorded} requests, but the ring has {outstanding} that are \
         not done: it belongs to another ring; reset the device"
    )]
    Inflight { recorded: usize, outstanding: u16 },
    #[error("a ring of {ring} entries, but the in-flight region was made for {region}")]
    InflightSize { ring: u16, region: u16 },
}
