//! What has happened in a storm, counted while it rages, and what has to have happened for the storm to have been one.

/// What has happened.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) good: u64,
    pub(crate) early: u64,
    pub(crate) told: u64,
    pub(crate) conflicts: u64,
    pub(crate) increments: u64,
    pub(crate) functions: u64,
    pub(crate) found: u64,
    pub(crate) deaths: u64,
    pub(crate) stops: u64,
    /// Commands that a stopped queue had not taken.
    pub(crate) left: u64,
}

impl Tally {
    const fn named(&self) -> [(&'static str, u64); 10] {
        let Tally { good, early, told, conflicts, increments, functions, found, deaths, stops, left } = *self;
        [
            ("good", good),
            ("early", early),
            ("told", told),
            ("conflicts", conflicts),
            ("increments", increments),
            ("functions", functions),
            ("found", found),
            ("deaths", deaths),
            ("stops", stops),
            ("left", left),
        ]
    }

    /// What has not happened more often than `enough` says, where that is not 0: its names with how often it has.
    pub(crate) fn lacks(&self, enough: &Tally) -> Vec<(&'static str, u64)> {
        let pairs = self.named().into_iter().zip(enough.named());
        pairs.filter(|((_, have), (_, more_than))| *more_than > 0 && have <= more_than).map(|(of, _)| of).collect()
    }
}
