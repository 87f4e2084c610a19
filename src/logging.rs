//! The log: lines on standard error (journald adds the rest), with a level that `log_set_level` changes while the daemon
//! runs.
//!
//! SPDK has a level for its log and one for what it prints; here both go to the same place. `log_set_level` sets both,
//! `log_set_print_level` the second, and the second decides.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

/// SPDK's names for levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing at all.
    Disabled,
    /// What failed.
    Error,
    /// What may go wrong.
    Warning,
    /// What an operator wants to know; the default.
    Notice,
    /// The same here.
    Info,
    /// What a developer wants to know.
    Debug,
}

impl Level {
    /// All, by name.
    pub const ALL: [(&'static str, Level); 6] = [
        ("DISABLED", Level::Disabled),
        ("ERROR", Level::Error),
        ("WARNING", Level::Warning),
        ("NOTICE", Level::Notice),
        ("INFO", Level::Info),
        ("DEBUG", Level::Debug),
    ];

    /// Finds a level by its name, in any case as SPDK does.
    #[must_use]
    pub fn parse(name: &str) -> Option<Level> {
        Self::ALL.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, level)| *level)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, level)| *level == self).map_or("NOTICE", |(name, _)| name)
    }

    const fn filter(self) -> LevelFilter {
        match self {
            Level::Disabled => LevelFilter::OFF,
            Level::Error => LevelFilter::ERROR,
            Level::Warning => LevelFilter::WARN,
            Level::Notice | Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
        }
    }
}

#[derive(Debug)]
struct Levels {
    log: Level,
    print: Level,
}

/// The log's levels, changeable.
#[derive(Debug)]
pub struct Logging {
    handle: reload::Handle<LevelFilter, Registry>,
    levels: Mutex<Levels>,
}

impl Logging {
    /// Starts logging in this process. If something else does already, the levels are kept without effect.
    #[must_use]
    pub fn start(level: Level) -> Logging {
        let (filter, handle) = reload::Layer::new(level.filter());
        let lines = fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(false);
        let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
        Logging { handle, levels: Mutex::new(Levels { log: level, print: level }) }
    }

    /// The level of the log.
    #[must_use]
    pub fn level(&self) -> Level {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner).log
    }

    /// The level of what is printed.
    #[must_use]
    pub fn print_level(&self) -> Level {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner).print
    }

    /// Sets the level of the log and of what is printed.
    pub fn set_level(&self, level: Level) {
        *self.levels.lock().unwrap_or_else(PoisonError::into_inner) = Levels { log: level, print: level };
        self.apply(level);
    }

    /// Sets the level of what is printed.
    pub fn set_print_level(&self, level: Level) {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner).print = level;
        self.apply(level);
    }

    fn apply(&self, level: Level) {
        // Fails only if the process's subscriber is not ours (in tests).
        let _ = self.handle.reload(level.filter());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (name, level) in Level::ALL {
            assert_eq!((Level::parse(name), level.name()), (Some(level), name));
        }
        assert_eq!(Level::parse("warning"), Some(Level::Warning));
        assert_eq!(Level::parse("LOUD"), None);
    }

    #[test]
    fn the_print_level_follows_the_log_level_and_not_the_other_way() {
        let logging = Logging::start(Level::Notice);
        logging.set_level(Level::Debug);
        assert_eq!((logging.level(), logging.print_level()), (Level::Debug, Level::Debug));
        logging.set_print_level(Level::Error);
        assert_eq!((logging.level(), logging.print_level()), (Level::Debug, Level::Error));
        logging.set_level(Level::Notice);
        assert_eq!(logging.print_level(), Level::Notice);
    }
}
