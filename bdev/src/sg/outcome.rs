//! What the kernel's words mean: error numbers of the calls, and the three statuses of a command that has ended.

use pollux_core::{Delivery, ScsiAnswer};
use rustix::io::Errno;

use super::raw::Header;

/// A command that could not be sent.
pub(super) fn refused(errno: Errno) -> Delivery {
    match errno {
        Errno::NODEV | Errno::NXIO => Delivery::Gone,
        // No memory for the data, no place in the queue.
        Errno::NOMEM | Errno::AGAIN | Errno::DOM | Errno::INTR | Errno::BUSY => Delivery::Busy,
        // More than the host adapter takes at once.
        Errno::INVAL | Errno::TOOBIG => Delivery::TooLong,
        // The memory that was named is not there, or anything else.
        _ => Delivery::Failed,
    }
}

/// A command that has ended. A status of the device's goes before what others say about it: they say it because of that.
/// Of one that the device has not answered nothing was moved, whatever the residual: it is 0 where nobody has set it, and
/// what lies in the driver's memory then is of another command.
pub(super) fn answer(header: &Header, sense: &[u8], len: u64) -> ScsiAnswer {
    // More than all of it, or less than nothing, is what some adapters say after an overrun.
    let residual = u64::try_from(header.resid).unwrap_or(0).min(len);
    if header.status != 0 {
        return ScsiAnswer::answered(header.status, sense, residual);
    }
    match of_host(header.host_status).or_else(|| of_driver(header.driver_status)) {
        None => ScsiAnswer::answered(0, sense, residual),
        Some(delivery) => ScsiAnswer::undelivered(delivery, len),
    }
}

/// `DID_*`: what the host adapter's driver says.
const fn of_host(status: u16) -> Option<Delivery> {
    Some(match status {
        // OK, PASSTHROUGH
        0x00 | 0x0A => return None,
        // NO_CONNECT, BAD_TARGET
        0x01 | 0x04 => Delivery::Gone,
        // BUS_BUSY, SOFT_ERROR, IMM_RETRY, REQUEUE
        0x02 | 0x0B | 0x0C | 0x0D => Delivery::Busy,
        // TIME_OUT, ABORT
        0x03 | 0x05 => Delivery::Aborted,
        // RESET
        0x08 => Delivery::Reset,
        // PARITY, TRANSPORT_DISRUPTED, TRANSPORT_FAILFAST, TRANSPORT_MARGINAL
        0x06 | 0x0E | 0x0F | 0x14 => Delivery::Transport,
        // TARGET_FAILURE, MEDIUM_ERROR
        0x10 | 0x13 => Delivery::Target,
        // NEXUS_FAILURE
        0x11 => Delivery::Nexus,
        // ERROR, BAD_INTR, ALLOC_FAILURE, and what is not known
        _ => Delivery::Failed,
    })
}

/// `DRIVER_*`: what older kernels' middle layer says; the upper half is advice.
const fn of_driver(status: u16) -> Option<Delivery> {
    Some(match status & 0x0F {
        // OK, SENSE
        0x00 | 0x08 => return None,
        // BUSY
        0x01 => Delivery::Busy,
        // TIMEOUT
        0x06 => Delivery::Aborted,
        _ => Delivery::Failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(status: u8, host_status: u16, driver_status: u16, resid: i32) -> ScsiAnswer {
        let mut header = Header::EMPTY;
        (header.status, header.host_status, header.driver_status, header.resid) =
            (status, host_status, driver_status, resid);
        answer(&header, &[0x70], 100)
    }

    #[test]
    fn the_devices_status_goes_before_all_others() {
        for (host, driver) in [(0, 0), (0x07, 0x08), (0x10, 0x08), (0x11, 0)] {
            let answer = ended(0x18, host, driver, 5);
            assert_eq!((answer.delivery, answer.status, answer.residual), (Delivery::Answered, 0x18, 5));
            assert_eq!(answer.sense(), [0x70]);
        }
        assert_eq!(ended(0, 0, 0x08, 0).delivery, Delivery::Answered);
    }

    #[test]
    fn errors_of_the_bus_are_told_apart() {
        use Delivery::{Aborted, Busy, Failed, Gone, Nexus, Reset, Target, Transport};
        let want = [
            (0x01, Gone),
            (0x02, Busy),
            (0x03, Aborted),
            (0x04, Gone),
            (0x05, Aborted),
            (0x06, Transport),
            (0x07, Failed),
            (0x08, Reset),
            (0x0B, Busy),
            (0x0D, Busy),
            (0x0E, Transport),
            (0x0F, Transport),
            (0x10, Target),
            (0x11, Nexus),
            (0x12, Failed),
            (0x14, Transport),
            (0xFF, Failed),
        ];
        for (host, delivery) in want {
            assert_eq!(ended(0, host, 0, 100).delivery, delivery, "{host:x}");
        }
        assert_eq!(ended(0, 0, 0x06, 0).delivery, Aborted);
        assert_eq!(ended(0, 0, 0x14, 0).delivery, Failed, "advice is no part of it");
    }

    #[test]
    fn nothing_was_moved_of_what_the_device_has_not_answered() {
        for (host, driver, resid) in [(0x01, 0, 0), (0x03, 0, 0), (0x08, 0, 0), (0x0E, 0, 40), (0, 0x06, 0)] {
            assert_eq!(ended(0, host, driver, resid).residual, 100, "{host:x}");
        }
    }

    #[test]
    fn residuals_stay_inside_the_data() {
        assert_eq!([-7, 0, 100, 101].map(|resid| ended(0, 0, 0, resid).residual), [0, 0, 100, 100]);
    }

    #[test]
    fn calls_that_fail_have_a_meaning() {
        assert_eq!(refused(Errno::NODEV), Delivery::Gone);
        assert_eq!(refused(Errno::NOMEM), Delivery::Busy);
        assert_eq!(refused(Errno::INVAL), Delivery::TooLong);
        assert_eq!(refused(Errno::FAULT), Delivery::Failed);
        assert_eq!(refused(Errno::PERM), Delivery::Failed);
    }
}
