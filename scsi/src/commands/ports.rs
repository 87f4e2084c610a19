//! Target ports: which there are for an initiator, and that all are equally good (SPC-5, clauses 5.18 and 6.36).
//!
//! A unit may be exported by controllers of several virtual machines. An initiator is told of the ports that lead it, and
//! not others, to the unit: those of its own paths.

use crate::commands::Call;
use crate::data_in::DataIn;
use crate::{Action, Inventory, LogicalUnit, Path, Sense};

/// The one target port group.
pub(crate) const GROUP: u16 = 1;

/// REPORT TARGET PORT GROUPS: one group, active/optimized, which is the only state there is.
pub(crate) fn report_groups(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const FORMAT_TYPE: u8 = 0xE0;
    const EXTENDED_HEADER: u8 = 0x20;
    let extended = call.cdb.byte(1) & FORMAT_TYPE == EXTENDED_HEADER;
    call.data.put(&[0; 4]);
    if extended {
        // FORMAT TYPE; no implicit transitions, so no time for them.
        call.data.put(&[0x10, 0, 0, 0]);
    }
    let ports: Vec<u16> = call.unit.ports_of(call.path).into_keys().collect();
    put_group(&ports, &mut call.data);
    let len = u32::try_from(call.data.len() - 4).unwrap_or(u32::MAX);
    call.data.set(0, &len.to_be_bytes());
    Ok(call.data.answer(call.cdb.be32(6) as usize))
}

/// A target port group descriptor (SPC-5, table 313).
fn put_group(ports: &[u16], data: &mut DataIn<'_>) {
    const ACTIVE_OPTIMIZED: u8 = 0x00;
    const AO_SUP: u8 = 0x01;
    // TARGET PORT COUNT is one byte.
    let ports = &ports[..ports.len().min(255)];
    let [group_high, group_low] = GROUP.to_be_bytes();
    data.put(&[ACTIVE_OPTIMIZED, AO_SUP, group_high, group_low, 0, 0, 0, ports.len() as u8]);
    for port in ports {
        data.put(&[0, 0]);
        data.put(&port.to_be_bytes());
    }
}

/// Puts the descriptors of VPD page 88h (SPC-5, clause 7.7.15): the same ports, each with a name by T10 vendor
/// identification. What the initiator port is called is left out; it knows.
pub(crate) fn put_ports(unit: &LogicalUnit, path: &Path, data: &mut DataIn<'_>) {
    const ASCII: u8 = 0x02;
    const OF_PORT_T10: u8 = 0x11;
    const VENDOR: &[u8; 8] = b"POLLUX  ";
    for (port, name) in unit.ports_of(path) {
        // DESIGNATOR LENGTH is one byte.
        let name = &name.as_bytes()[..name.len().min(255 - VENDOR.len())];
        let len = (VENDOR.len() + name.len()) as u8;
        let [high, low] = port.to_be_bytes();
        let [list_high, list_low] = (u16::from(len) + 4).to_be_bytes();
        data.put(&[0, 0, high, low, 0, 0, 0, 0, 0, 0, list_high, list_low, ASCII, OF_PORT_T10, 0, len]);
        data.put(VENDOR);
        data.put(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Nexus;
    use crate::testing::{Bench, drained};

    const ALL: [u8; 4] = [0, 0, 1, 0];

    fn cdb(format: u8, [a, b, c, d]: [u8; 4]) -> [u8; 12] {
        [0xA3, format | 0x0A, 0, 0, 0, 0, a, b, c, d, 0, 0]
    }

    #[test]
    fn one_group_with_the_ports_of_the_initiator() {
        let mut bench = Bench::new();
        let group = [0x00, 0x01, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1];
        assert_eq!(bench.data(&cdb(0, ALL)), [&[0, 0, 0, 12], &group[..]].concat());
        assert_eq!(bench.data(&cdb(0x20, ALL)), [&[0, 0, 0, 16, 0x10, 0, 0, 0], &group[..]].concat());
        assert_eq!(bench.data(&cdb(0, [0, 0, 0, 6])), [0, 0, 0, 12, 0, 1]);
        let second = bench.unit.attach(Nexus::new(1, "second".into(), 0x0201, 0), 5);
        let third = bench.unit.attach(Nexus::new(1, "second".into(), 0x0201, 9), 5);
        drained(&second);
        let two = [0x00, 0x01, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 2, 1];
        assert_eq!(bench.data(&cdb(0, ALL)), [&[0, 0, 0, 16], &two[..]].concat(), "each port once, no foreign one");
        bench.unit.detach(&second);
        bench.unit.detach(&third);
        assert_eq!(bench.data(&cdb(0, ALL)).len(), 16);
    }

    #[test]
    fn other_formats_are_refused() {
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&cdb(0x40, ALL)), Sense::invalid_field(1, Some(6)));
        assert_eq!(bench.sense(&cdb(0x80, ALL)), Sense::invalid_field(1, Some(7)));
    }
}
