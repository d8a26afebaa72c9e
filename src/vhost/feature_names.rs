//! The names of feature bits, for messages.

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config as config;
use virtio_bindings::virtio_ring as ring;

/// Bits that front ends or drivers are known to ask for.
const NAMES: [(u32, &str); 26] = [
    (blk::VIRTIO_BLK_F_SIZE_MAX, "SIZE_MAX"),
    (blk::VIRTIO_BLK_F_GEOMETRY, "GEOMETRY"),
    (blk::VIRTIO_BLK_F_RO, "RO"),
    (blk::VIRTIO_BLK_F_BLK_SIZE, "BLK_SIZE"),
    (blk::VIRTIO_BLK_F_FLUSH, "FLUSH"),
    (blk::VIRTIO_BLK_F_TOPOLOGY, "TOPOLOGY"),
    (blk::VIRTIO_BLK_F_CONFIG_WCE, "CONFIG_WCE"),
    (blk::VIRTIO_BLK_F_MQ, "MQ"),
    (blk::VIRTIO_BLK_F_DISCARD, "DISCARD"),
    (blk::VIRTIO_BLK_F_WRITE_ZEROES, "WRITE_ZEROES"),
    (blk::VIRTIO_BLK_F_SECURE_ERASE, "SECURE_ERASE"),
    (blk::VIRTIO_BLK_F_ZONED, "ZONED"),
    (config::VIRTIO_F_NOTIFY_ON_EMPTY, "NOTIFY_ON_EMPTY"),
    (26, "LOG_ALL"),
    (30, "PROTOCOL_FEATURES"),
    (config::VIRTIO_F_VERSION_1, "VERSION_1"),
    (config::VIRTIO_F_ANY_LAYOUT, "ANY_LAYOUT"),
    (ring::VIRTIO_RING_F_INDIRECT_DESC, "INDIRECT_DESC"),
    (ring::VIRTIO_RING_F_EVENT_IDX, "EVENT_IDX"),
    (config::VIRTIO_F_ACCESS_PLATFORM, "ACCESS_PLATFORM"),
    (config::VIRTIO_F_RING_PACKED, "RING_PACKED"),
    (config::VIRTIO_F_IN_ORDER, "IN_ORDER"),
    (config::VIRTIO_F_ORDER_PLATFORM, "ORDER_PLATFORM"),
    (config::VIRTIO_F_SR_IOV, "SR_IOV"),
    (config::VIRTIO_F_NOTIFICATION_DATA, "NOTIFICATION_DATA"),
    (config::VIRTIO_F_RING_RESET, "RING_RESET"),
];

/// Such as `RING_PACKED, bit 50`.
pub fn of(features: u64) -> String {
    let set = (0..u64::BITS).filter(|bit| features >> bit & 1 != 0);
    let name = |bit: u32| match NAMES.iter().find(|(known, _)| *known == bit) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("bit {bit}"),
    };
    set.map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn features_are_named_and_unknown_ones_numbered() {
        assert_eq!(
            super::of(1 << 34 | 1 << 40 | 1 << 50),
            "RING_PACKED, RING_RESET, bit 50"
        );
        assert_eq!(super::of(1 << 63 | 1), "bit 0, bit 63");
    }
}
