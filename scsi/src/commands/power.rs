//! START STOP UNIT (SBC-4, clause 5.31) and PREVENT ALLOW MEDIUM REMOVAL.
//!
//! A unit that is stopped serves what does not touch the medium and refuses the rest with 02h/04h/02h. It is started by
//! START, by a reset of any kind, and by another initiator's arrival: nobody can stop a unit under somebody else. The
//! state is one of the path that has stopped the unit, and goes with it.

use crate::commands::Call;
use crate::{Action, Inventory, Outcome, Plan, Sense};

const OPTIONS: usize = 4;

/// START STOP UNIT. The unit takes nothing new from the moment it is stopped; what was acknowledged is made durable then,
/// unless NO_FLUSH. The table refuses LOEJ, as nothing can be ejected, and the power conditions.
pub(crate) fn start_stop(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const IMMED: u8 = 0x01;
    const NO_FLUSH: u8 = 0x04;
    const START: u8 = 0x01;
    if call.cdb.bit(OPTIONS, START) {
        call.unit.start();
        return Ok(Action::Done(Outcome::GOOD));
    }
    if !call.unit.stop(call.path) {
        return Err(Sense::invalid_field(OPTIONS as u16, Some(0)));
    }
    if call.cdb.bit(OPTIONS, NO_FLUSH) {
        return Ok(Action::Done(Outcome::GOOD));
    }
    Ok(Action::Plan(Plan::flush(call.cdb.bit(1, IMMED))))
}

/// PREVENT ALLOW MEDIUM REMOVAL: the medium cannot be removed anyway.
pub(crate) fn prevent_allow(_: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    Ok(Action::Done(Outcome::GOOD))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, drained, shape};
    use crate::{Attention, Nexus, Step};
    use pollux_core::Shape;

    const START: [u8; 6] = [0x1B, 0, 0, 0, 1, 0];
    const STOP: [u8; 6] = [0x1B, 0, 0, 0, 0, 0];
    const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];

    /// A unit with one initiator.
    fn alone() -> Bench {
        let bench = Bench::new();
        bench.unit.detach(&bench.other);
        drained(&bench.path);
        bench
    }

    fn flush(action: Action) -> bool {
        let Action::Plan(mut plan) = action else { panic!("{action:?}") };
        assert_eq!((plan.next(), plan.next()), (Some(Step::Flush), None));
        plan.immediate()
    }

    fn is_stopped(bench: &mut Bench) -> bool {
        match bench.execute(&READ) {
            Action::Io { .. } => false,
            other => {
                assert_eq!(crate::testing::sense_of(&other), Sense::STOPPED);
                true
            }
        }
    }

    #[test]
    fn a_stop_flushes_and_what_touches_the_medium_is_refused() {
        let mut bench = alone();
        assert!(!flush(bench.execute(&STOP)));
        assert!(is_stopped(&mut bench));
        assert_eq!(bench.sense(&[0, 0, 0, 0, 0, 0]), Sense::STOPPED);
        assert_eq!(bench.sense(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Sense::STOPPED);
        assert_eq!(bench.data(&[0x03, 1, 0, 0, 252, 0]), [0x72, 2, 4, 2, 0, 0, 0, 0]);
        assert_eq!(bench.data(&[0x25]), [0, 0, 0x0F, 0xFF, 0, 0, 2, 0], "the capacity is known");
        assert_eq!(bench.data(&[0x1A, 0, 0x08, 0, 0xFF, 0])[4..8], [0, 0, 0x10, 0]);
        assert_eq!(bench.data(&[0x12, 0, 0, 0, 36, 0])[0], 0);
        bench.good(&START);
        assert!(!is_stopped(&mut bench));
        assert!(flush(bench.execute(&[0x1B, 1, 0, 0, 0, 0])), "IMMED");
        bench.good(&START);
        bench.good(&[0x1B, 0, 0, 0, 4, 0]);
        assert!(is_stopped(&mut bench), "NO_FLUSH");
    }

    #[test]
    fn modes_of_a_stopped_unit_can_be_changed() {
        let mut bench = alone();
        flush(bench.execute(&STOP));
        let mut list = vec![0, 0, 0, 0, 0x08, 0x12];
        list.resize(24, 0);
        bench.send(&[0x15, 0x10, 0, 0, 24, 0], &list);
        assert!(is_stopped(&mut bench));
        assert!(!bench.unit.write_cache_enabled());
    }

    #[test]
    fn resets_and_losses_start_it_again() {
        let mut bench = alone();
        let ends: [fn(&Bench); 4] = [
            |bench| bench.unit.reset(Some(&bench.path)),
            |bench| bench.unit.reset(None),
            |bench| bench.path.nexus().lost(),
            |bench| bench.path.nexus().restarted(),
        ];
        for end in ends {
            flush(bench.execute(&STOP));
            assert!(is_stopped(&mut bench));
            end(&bench);
            drained(&bench.path);
            assert!(!is_stopped(&mut bench));
        }
    }

    #[test]
    fn a_device_that_comes_back_larger_is_still_stopped() {
        let mut bench = alone();
        flush(bench.execute(&STOP));
        bench.unit.set_shape(None);
        bench.unit.set_shape(Some(Shape { num_blocks: 5000, ..shape() }));
        drained(&bench.path);
        assert!(is_stopped(&mut bench));
        bench.good(&START);
        assert_eq!(bench.unit.geometry().blocks(), 5000);
    }

    #[test]
    fn a_missing_device_is_missing_first() {
        let mut bench = alone();
        flush(bench.execute(&STOP));
        bench.unit.set_shape(None);
        assert_eq!(bench.sense(&READ), Sense::NOT_READY);
        assert_eq!(bench.sense(&[0x25]), Sense::NOT_READY);
    }

    #[test]
    fn a_unit_is_never_stopped_under_another_initiator() {
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&STOP), Sense::invalid_field(4, Some(0)), "two initiators");
        assert!(!is_stopped(&mut bench));
        bench.unit.detach(&bench.other);
        let second_port = bench.unit.attach(Nexus::new(1, "c1b".into(), 3, 0), 0);
        drained(&bench.path);
        assert!(!flush(bench.execute(&STOP)), "two paths of one initiator");
        assert!(is_stopped(&mut bench));
        let newcomer = bench.unit.attach(Nexus::new(9, "c9".into(), 4, 0), 0);
        assert!(!is_stopped(&mut bench));
        assert_eq!(drained(&newcomer), [Attention::PowerOn]);
        bench.unit.detach(&newcomer);
        flush(bench.execute(&STOP));
        bench.unit.detach(&bench.path);
        assert!(bench.unit.geometry().has(crate::geometry::Flags::READY), "who stopped it is gone");
        drop(second_port);
    }

    #[test]
    fn what_is_not_offered() {
        let mut bench = alone();
        assert_eq!(bench.sense(&[0x1B, 0, 0, 0, 3, 0]), Sense::invalid_field(4, Some(1)), "LOEJ");
        assert_eq!(bench.sense(&[0x1B, 0, 0, 0, 0x10, 0]), Sense::invalid_field(4, Some(4)), "POWER CONDITION");
        bench.good(&[0x1E, 0, 0, 0, 1, 0]);
        bench.good(&[0x1E, 0, 0, 0, 0, 0]);
    }
}
