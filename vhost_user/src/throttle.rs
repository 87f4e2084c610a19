//! Whoever can fail can fail a million times a second: log lines about it are limited per socket.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Lets a burst through, then one line a second.
pub(crate) struct Throttle(Mutex<State>);

struct State {
    tokens: u32,
    filled: Instant,
    held_back: u64,
}

const BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(1);

impl Throttle {
    pub(crate) fn new() -> Self {
        Throttle(Mutex::new(State { tokens: BURST, filled: Instant::now(), held_back: 0 }))
    }

    /// `Some(n)`: log, and say that `n` lines were held back before this one.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let periods = now.saturating_duration_since(state.filled).as_secs();
        if periods > 0 {
            state.tokens = BURST.min(state.tokens.saturating_add(periods.min(u64::from(BURST)) as u32));
            state.filled += REFILL * u32::try_from(periods).unwrap_or(u32::MAX);
        }
        if state.tokens == 0 {
            state.held_back += 1;
            return None;
        }
        state.tokens -= 1;
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_a_second() {
        let throttle = Throttle::new();
        let start = Instant::now();
        assert_eq!((0..100).filter(|_| throttle.pass(start) == Some(0)).count(), BURST as usize);
        let later = start + Duration::from_millis(1100);
        assert_eq!(throttle.pass(later), Some(90));
        assert_eq!(throttle.pass(later), None);
        let much_later = start + Duration::from_secs(1000);
        assert_eq!((0..100).filter(|_| throttle.pass(much_later).is_some()).count(), BURST as usize);
    }
}
