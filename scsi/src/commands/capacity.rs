//! READ CAPACITY (SBC-4, clauses 5.20 and 5.21).

use crate::commands::Call;
use crate::{Action, Inventory, Sense};

/// READ CAPACITY(10). PMI and the address that goes with it are obsolete and ignored.
pub(crate) fn read_capacity_10(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const LEN: usize = 8;
    // FFFFFFFFh sends the initiator to READ CAPACITY(16).
    let last = u32::try_from(last_lba(call)).unwrap_or(u32::MAX);
    call.data.put(&last.to_be_bytes());
    call.data.put(&call.geometry.block_size().to_be_bytes());
    Ok(call.data.answer(LEN))
}

/// READ CAPACITY(16).
pub(crate) fn read_capacity_16(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const LBPME: u8 = 0x80;
    const LBPRZ: u8 = 0x40;
    // The device may have gone since the command came in.
    let shape = call.unit.last_shape().ok_or(Sense::NOT_READY)?;
    let block = call.geometry.block_size();
    let mut data = [0; 32];
    data[..8].copy_from_slice(&last_lba(call).to_be_bytes());
    data[8..12].copy_from_slice(&block.to_be_bytes());
    data[13] = (shape.physical_block_size / block).max(1).ilog2().min(15) as u8;
    data[14] = match shape.discard {
        Some(discard) => LBPME | if discard.reads_zero { LBPRZ } else { 0 },
        None => 0,
    };
    call.data.put(&data);
    Ok(call.data.answer(call.cdb.be32(10) as usize))
}

/// A unit that is ready has at least one block.
fn last_lba(call: &Call<'_>) -> u64 {
    call.geometry.blocks().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Bench, shape};
    use pollux_core::{Discard, Shape};

    const RC16: [u8; 16] = [0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];

    #[test]
    fn capacities_of_a_small_disk() {
        let mut bench = Bench::new();
        assert_eq!(bench.data(&[0x25]), [0, 0, 0x0F, 0xFF, 0, 0, 2, 0]);
        let mut want = vec![0, 0, 0, 0, 0, 0, 0x0F, 0xFF, 0, 0, 2, 0, 0, 3, 0xC0, 0];
        want.resize(32, 0);
        assert_eq!(bench.data(&RC16), want);
        let mut short = RC16;
        short[13] = 12;
        assert_eq!(bench.data(&short), want[..12]);
    }

    #[test]
    fn a_disk_beyond_32_bits_sends_to_the_long_form() {
        let discard = Some(Discard { granularity: 4096, alignment: 0, reads_zero: false });
        let large = Shape { num_blocks: 1 << 40, block_size: 4096, discard, ..shape() };
        let mut bench = Bench::with(Some(large));
        assert_eq!(bench.data(&[0x25]), [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x10, 0]);
        assert_eq!(bench.data(&RC16)[..15], [0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x10, 0, 0, 0, 0x80]);
        let mut exact = Bench::with(Some(Shape { num_blocks: 1 << 32, ..shape() }));
        assert_eq!(exact.data(&[0x25])[..4], [0xFF; 4]);
    }

    #[test]
    fn full_provisioning_claims_nothing() {
        let mut bench = Bench::with(Some(Shape { discard: None, physical_block_size: 512, ..shape() }));
        assert_eq!(bench.data(&RC16)[12..16], [0, 0, 0, 0]);
    }

    #[test]
    fn obsolete_fields_are_ignored() {
        let mut bench = Bench::new();
        assert_eq!(bench.data(&[0x25, 0xE1, 1, 2, 3, 4, 0, 0, 1, 0]).len(), 8);
    }
}
