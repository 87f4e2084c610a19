//! At which instants a snapshot can have been cut, after all that is known of its content.

/// A moment: everything that begins or ends has one of its own.
pub(super) type Time = u64;

/// A set of moments: ranges that rise and do not touch, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moments(Vec<(Time, Time)>);

impl Moments {
    pub(super) fn between(first: Time, last: Time) -> Self {
        Moments(if first <= last { vec![(first, last)] } else { Vec::new() })
    }

    pub(super) const fn none() -> Self {
        Moments(Vec::new())
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn last(&self) -> Option<Time> {
        self.0.last().map(|range| range.1)
    }

    pub(super) fn and(&self, other: &Moments) -> Moments {
        let meet = |a: &(Time, Time), b: &(Time, Time)| (a.0.max(b.0), a.1.min(b.1));
        let pairs = self.0.iter().flat_map(|a| other.0.iter().map(move |b| meet(a, b)));
        Moments::of(pairs.collect())
    }

    pub(super) fn or(&self, other: &Moments) -> Moments {
        Moments::of(self.0.iter().chain(&other.0).copied().collect())
    }

    fn of(mut ranges: Vec<(Time, Time)>) -> Self {
        ranges.retain(|range| range.0 <= range.1);
        ranges.sort_unstable();
        let mut all: Vec<(Time, Time)> = Vec::new();
        for range in ranges {
            match all.last_mut() {
                Some(last) if range.0 <= last.1.saturating_add(1) => last.1 = last.1.max(range.1),
                _ => all.push(range),
            }
        }
        Moments(all)
    }
}

/// One cut, of one volume or a group.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    pub(super) begun: Time,
    /// When its end was acknowledged.
    pub(super) ended: Option<Time>,
    /// When it can have been.
    pub(super) moments: Moments,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_moments_meet_and_join() {
        let a = Moments::between(1, 5).or(&Moments::between(10, 20));
        assert_eq!(a.and(&Moments::between(4, 12)), Moments(vec![(4, 5), (10, 12)]));
        assert!(a.and(&Moments::between(6, 9)).is_empty());
        assert_eq!(a.or(&Moments::between(6, 9)), Moments::between(1, 20));
        assert!(Moments::between(3, 2).is_empty() && Moments::none().is_empty());
    }
}
