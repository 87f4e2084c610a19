//! READ BUFFER and WRITE BUFFER (SPC-5, clauses 6.20 and 6.49): the echo buffer, with which an initiator tests its way to
//! the unit. Each path has its own, so none can be overwritten by another initiator; a reset empties it.

use crate::commands::Call;
use crate::{Action, Inventory, Key, Outcome, Sense, code};

/// Bytes of an echo buffer. It takes memory only on paths that use it.
const ECHO_LEN: u16 = 4096;

const MODE: u8 = 0x1F;
const DESCRIPTOR: u8 = 0x03;
const ECHO: u8 = 0x0A;
const ECHO_DESCRIPTOR: u8 = 0x0B;

/// READ BUFFER.
pub(crate) fn read(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const EBOS: u8 = 0x01;
    match call.cdb.byte(1) & MODE {
        // No buffer but the echo buffer: offset boundary and capacity are 0 for every buffer ID.
        DESCRIPTOR => call.data.put(&[0; 4]),
        ECHO => {
            let nothing = Sense::new(Key::IllegalRequest, code::COMMAND_SEQUENCE_ERROR);
            let Call { path, data, .. } = call;
            path.echo(|bytes| data.put(bytes)).ok_or(nothing)?;
        }
        ECHO_DESCRIPTOR => {
            let [high, low] = ECHO_LEN.to_be_bytes();
            call.data.put(&[EBOS, 0, high, low]);
        }
        _ => return Err(Sense::invalid_field(1, Some(4))),
    }
    Ok(call.data.answer(length(call)))
}

/// WRITE BUFFER: the CDB.
pub(crate) fn write(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    if call.cdb.byte(1) & MODE != ECHO {
        return Err(Sense::invalid_field(1, Some(4)));
    }
    match length(call) {
        0 => Ok(Action::Done(Outcome::GOOD)),
        len if len > usize::from(ECHO_LEN) => Err(Sense::invalid_field(6, None)),
        len => Ok(Action::DataOut { len }),
    }
}

/// WRITE BUFFER: the data.
pub(crate) fn write_data(call: &mut Call<'_>, data: &[u8]) -> Result<Action, Sense> {
    if data.len() != length(call) || data.len() > usize::from(ECHO_LEN) {
        return Err(Sense::LIST_LENGTH);
    }
    call.path.set_echo(data);
    Ok(Action::Done(Outcome::GOOD))
}

/// ALLOCATION LENGTH and PARAMETER LIST LENGTH have three bytes.
fn length(call: &Call<'_>) -> usize {
    usize::from(call.cdb.byte(6)) << 16 | usize::from(call.cdb.be16(7))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, drained, sense_of};
    use crate::{Cdb, SCRATCH_LEN};

    fn read(mode: u8, len: u16) -> [u8; 10] {
        let [high, low] = len.to_be_bytes();
        [0x3C, mode, 0, 0, 0, 0, 0, high, low, 0]
    }

    fn write(len: usize) -> [u8; 10] {
        let [_, a, b, c] = (len as u32).to_be_bytes();
        [0x3B, ECHO, 0x55, 0, 0, 0, a, b, c, 0]
    }

    #[test]
    fn descriptors() {
        let mut bench = Bench::new();
        assert_eq!(bench.data(&read(DESCRIPTOR, 255)), [0; 4]);
        assert_eq!(bench.data(&read(ECHO_DESCRIPTOR, 255)), [1, 0, 0x10, 0]);
        assert_eq!(bench.data(&read(ECHO_DESCRIPTOR, 1)), [1]);
        for mode in [0x00, 0x02, 0x04, 0x1A, 0x1F] {
            assert_eq!(bench.sense(&read(mode, 4)), Sense::invalid_field(1, Some(4)), "{mode:02X}");
        }
        assert_eq!(bench.sense(&[0x3B, 0x02, 0, 0, 0, 0, 0, 0, 4, 0]), Sense::invalid_field(1, Some(4)));
        assert_eq!(bench.sense(&[0x3C, 0x2A, 0, 0, 0, 0, 0, 0, 4, 0]), Sense::invalid_field(1, Some(5)));
    }

    #[test]
    fn what_was_written_comes_back_to_its_nexus_until_a_reset() {
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&read(ECHO, 255)).code(), 0x2C00, "nothing to read");
        let bytes: Vec<u8> = (0..ECHO_LEN).map(|n| n as u8).collect();
        assert!(matches!(bench.send(&write(4096), &bytes), Action::Done(Outcome::GOOD)));
        assert_eq!(bench.data(&read(ECHO, u16::MAX)), bytes);
        assert_eq!(bench.data(&read(ECHO, 3)), [0, 1, 2]);
        bench.send(&write(2), &[8, 9]);
        assert_eq!(bench.data(&read(ECHO, u16::MAX)), [8, 9]);
        let mut scratch = vec![0; SCRATCH_LEN];
        let cdb = Cdb::from_slice(&read(ECHO, 255));
        let foreign = bench.unit.execute(&bench.other, &cdb, &crate::testing::Luns, &mut scratch);
        assert_eq!(sense_of(&foreign).code(), 0x2C00, "another initiator's buffer");
        bench.unit.reset(Some(&bench.other));
        drained(&bench.path);
        assert_eq!(bench.sense(&read(ECHO, 255)).code(), 0x2C00);
    }

    #[test]
    fn lengths() {
        let mut bench = Bench::new();
        bench.good(&write(0));
        assert_eq!(bench.sense(&write(4097)), Sense::invalid_field(6, None));
        assert_eq!(bench.sense(&write(0x10_0000)), Sense::invalid_field(6, None));
        let mut scratch = vec![0; SCRATCH_LEN];
        let cdb = Cdb::from_slice(&write(4));
        let short = bench.unit.execute_out(&bench.path, &cdb, &[1, 2, 3], &mut scratch);
        assert_eq!(sense_of(&short), Sense::LIST_LENGTH);
    }
}
