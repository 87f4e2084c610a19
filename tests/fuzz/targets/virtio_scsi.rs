//! virtio-scsi headers and LUN fields from the guest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pollux_vhost_scsi::request::{COMMAND_LEN, Command, Control};
use pollux_vhost_scsi::{Address, lun};

fuzz_target!(|data: &[u8]| {
    if let Some(bytes) = data.first_chunk::<COMMAND_LEN>() {
        let command = Command::new(*bytes);
        assert_eq!(command.tag().to_le_bytes(), bytes[8..16]);
        assert_eq!(command.cdb()[..], bytes[19..]);
        address(command.lun());
    }
    if let Some(Control::Tmf { lun, .. }) = Control::parse(data) {
        assert!(data.len() >= 24, "a function from a header that is too short");
        address(lun);
    }
    if let Some(field) = data.first_chunk::<8>() {
        address(*field);
    }
});

fn address(field: [u8; 8]) {
    match Address::decode(field) {
        Address::Unit { target, lun } => {
            assert!(field[0] == 1 && field[1] == target && lun <= lun::MAX_LUN && field[4..] == [0; 4]);
        }
        Address::WellKnown { target } | Address::Absent { target } => assert!(field[0] == 1 && field[1] == target),
        Address::Bad => assert_ne!(field[0], 1),
    }
}
