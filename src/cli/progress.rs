//! How far something is, on a terminal only: a bar on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::units::{duration, size};

/// How often a bar with numbers is drawn.
const EVERY: Duration = Duration::from_millis(100);

/// See the module's description.
pub(crate) struct Bar {
    what: String,
    began: Instant,
    drawn: Option<Instant>,
    percent: Option<u64>,
    terminal: bool,
}

impl Bar {
    pub(crate) fn new(what: &str) -> Self {
        let terminal = io::stderr().is_terminal();
        Bar { what: what.into(), began: Instant::now(), drawn: None, percent: None, terminal }
    }

    /// Parts of any kind.
    pub(crate) fn show(&mut self, done: u64, total: u64) {
        let percent = percent(done, total);
        if self.terminal && self.percent != Some(percent) {
            self.percent = Some(percent);
            self.draw(&bar(&self.what, percent));
        }
    }

    /// Bytes: with sizes, how fast it goes and how long it will take.
    pub(crate) fn show_bytes(&mut self, done: u64, total: u64) {
        if self.terminal && self.drawn.is_none_or(|drawn| drawn.elapsed() >= EVERY) {
            self.draw(&bytes(&self.what, done, total, self.began.elapsed()));
        }
    }

    fn draw(&mut self, text: &str) {
        self.drawn = Some(Instant::now());
        let _ = write!(io::stderr(), "\r{text}\x1b[K");
    }

    /// Takes it away again.
    pub(crate) fn end(&self) {
        if self.drawn.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn percent(done: u64, total: u64) -> u64 {
    (u128::from(done) * 100 / u128::from(total.max(1))) as u64
}

fn bar(what: &str, percent: u64) -> String {
    let full = (percent / 4).min(25) as usize;
    format!("{what} [{}{}] {percent:3} %", "#".repeat(full), " ".repeat(25 - full))
}

fn bytes(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let a_second = (done as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
    let left = total.saturating_sub(done).checked_div(a_second).filter(|_| elapsed > Duration::from_secs(1));
    let left = left.map(|left| format!(", {} left", duration(left))).unwrap_or_default();
    let rate = size(a_second);
    format!("{} {} of {}, {rate}/s{left}", bar(what, percent(done, total)), size(done), size(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_its_length() {
        assert!((0..=120).all(|percent| bar("x", percent).len() == bar("x", 0).len()));
    }

    #[test]
    fn bytes_say_how_fast_and_how_long() {
        let shown = bytes("copying", 1 << 30, 4 << 30, Duration::from_secs(4));
        assert!(shown.ends_with(" 25 % 1 GiB of 4 GiB, 256 MiB/s, 12 s left"), "{shown}");
        for (done, total) in [(0, 0), (7, 0), (u64::MAX, u64::MAX), (0, u64::MAX)] {
            assert!(!bytes("x", done, total, Duration::ZERO).contains("left"));
        }
    }
}
