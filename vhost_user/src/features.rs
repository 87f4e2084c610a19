//! Which feature bits are offered, taken and borne.

use vhost::vhost_user::{VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_F_ANY_LAYOUT, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_ORDER_PLATFORM,
    VIRTIO_F_RING_RESET, VIRTIO_F_SR_IOV, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

pub(crate) const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
pub(crate) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
pub(crate) const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Offered on top of the device's own bits.
const TRANSPORT: u64 = PROTOCOL_FEATURES | EVENT_IDX | INDIRECT | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_F_ANY_LAYOUT;

/// Never offered and yet let through, because they are between the guest and its VMM, or ask for nothing that is not
/// done anyway: some front ends (QEMU's vhost-user-scsi) pass on what the guest took without a look at what we offered.
/// Bits that change what rings or requests look like (packed, in order, IOMMU, T10 PI) are not among them.
const HARMLESS: u64 = 1 << VIRTIO_F_NOTIFY_ON_EMPTY
    | 1 << VIRTIO_F_ORDER_PLATFORM
    | 1 << VIRTIO_F_SR_IOV
    | 1 << VIRTIO_F_NOTIFICATION_DATA
    | 1 << VIRTIO_F_RING_RESET;

pub(crate) fn offered(device: u64) -> u64 {
    device | TRANSPORT
}

/// The bits of `wanted` that were offered, or those that must be refused.
pub(crate) fn accept(offered: u64, wanted: u64) -> Result<u64, u64> {
    let refused = wanted & !offered & !HARMLESS;
    if refused == 0 { Ok(wanted & offered) } else { Err(refused) }
}

/// The protocol features offered. The message layer adds and handles REPLY_ACK.
pub(crate) fn protocol(config: bool) -> Protocol {
    let always = Protocol::MQ | Protocol::REPLY_ACK | Protocol::CONFIGURE_MEM_SLOTS | Protocol::RESET_DEVICE;
    if config { always | Protocol::CONFIG } else { always }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t35_features_never_offered() {
        let offer = offered(0b110);
        assert_eq!(accept(offer, 0b10 | 1 << 32 | 1 << 24 | 1 << 40), Ok(0b10 | 1 << 32));
        assert_eq!(accept(offer, 0), Ok(0));
        // Packed ring, IOMMU, in order, dirty log, T10 PI, and one that nobody knows.
        for bit in [34, 33, 35, 26, 3, 63] {
            assert_eq!(accept(offer, offer | 1 << bit), Err(1 << bit));
        }
    }

    #[test]
    fn what_is_offered() {
        assert_eq!(offered(0b1), 0b1 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32);
        assert_eq!(protocol(false).bits(), 1 | 1 << 3 | 1 << 13 | 1 << 15);
        assert_eq!(protocol(true).bits(), protocol(false).bits() | 1 << 9);
    }
}
