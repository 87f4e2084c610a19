//! Any command to a whole device of any type, whatever its owner allows: what goes on is what may.

#[path = "oracle/passing.rs"]
mod passing;

use std::sync::Arc;

use pollux_scsi::{Action, Allow, Cdb, Identity, Inventory, LogicalUnit, Nexus, Path, SCRATCH_LEN};
use proptest::prelude::*;
use uuid::Uuid;

struct Luns;

impl Inventory for Luns {
    fn luns(&self, visit: &mut dyn FnMut(u16)) {
        visit(0);
    }
}

fn unit(device_type: u8, allow: Allow) -> (Arc<LogicalUnit>, Arc<Path>, Vec<u8>) {
    let unit = LogicalUnit::new(Identity::from_uuid(Uuid::from_u128(7), "any"), None);
    unit.pass_through(allow);
    unit.set_device_type(device_type);
    let path = unit.attach(Nexus::new(1, "c".into(), 1, 0), 0);
    let mut scratch = vec![0; SCRATCH_LEN];
    while path.has_attention() {
        unit.execute(&path, &Cdb::new([0; 32]), &Luns, &mut scratch);
    }
    (unit, path, scratch)
}

/// Sends a command; whether it goes on.
fn passes(device_type: u8, allow: Allow, bytes: [u8; 32], list: &[u8]) -> bool {
    let (unit, path, mut scratch) = unit(device_type, allow);
    let cdb = Cdb::new(bytes);
    let (action, list) = match unit.execute(&path, &cdb, &Luns, &mut scratch) {
        Action::DataOut { len } => {
            assert!((1..=4096).contains(&len), "each command has a copy of its own");
            let mut list = list.to_vec();
            list.resize(len, 0);
            (unit.execute_out(&path, &cdb, &list, &mut scratch), Some(list))
        }
        action => (action, None),
    };
    match action {
        Action::Pass(pass) => {
            passing::check(device_type, allow, &bytes, list.as_deref(), pass);
            true
        }
        Action::Done(outcome) => {
            assert!(bytes[0] == 0xA0 || outcome.sense.is_some(), "{bytes:02x?} is answered here: {outcome:?}");
            assert_eq!(unit.refused(), u64::from(bytes[0] != 0xA0), "{bytes:02x?}");
            false
        }
        action => panic!("{bytes:02x?}: {action:?}"),
    }
}

fn any_type() -> impl Strategy<Value = u8> {
    prop_oneof![prop::sample::select(vec![0x00, 0x01, 0x05, 0x08, 0x14]), 0u8..0x20]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_on_may(
        device_type in any_type(), allow in 0u8..0x80, few in any::<bool>(), opcode in any::<u8>(), action in 0u8..0x20,
        bytes in prop::collection::vec((1usize..32, any::<u8>()), 0..6), list in prop::collection::vec(0u8..3, 0..16),
    ) {
        let mut cdb = [0; 32];
        (cdb[0], cdb[1]) = (opcode, action);
        if opcode == 0x7F {
            (cdb[1], cdb[7], cdb[9]) = (0, 24, action);
        }
        bytes.into_iter().for_each(|(at, byte)| cdb[at] = byte);
        let allow = if few { Allow::empty() } else { Allow::from_bits_truncate(allow) };
        passes(device_type, allow, cdb, &list);
    }
}

/// Every opcode with every service action, without and with each permission: the second list is no shorter than it must be.
#[test]
fn each_permission_lets_something_go_on() {
    let count = |device_type: u8, allow: Allow| {
        let all = (0..=0xFFu8).flat_map(|opcode| (0..0x20u8).map(move |action| (opcode, action)));
        all.filter(|(opcode, action)| {
            let mut cdb = [0; 32];
            (cdb[0], cdb[1]) = (*opcode, *action);
            if *opcode == 0x7F {
                (cdb[1], cdb[7], cdb[9]) = (0, 24, *action);
            }
            passes(device_type, allow, cdb, &[])
        })
        .count()
    };
    for device_type in [0x00, 0x01, 0x14, 0x0D] {
        let free = count(device_type, Allow::empty());
        for (name, allow) in Allow::NAMES {
            let more = count(device_type, allow) > free;
            let has = allow != Allow::FORMAT || matches!(device_type, 0x00 | 0x14);
            assert_eq!(more, has, "{name} on {device_type:#x}");
        }
    }
}
