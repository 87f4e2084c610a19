//! Where sources put their series.
//!
//! Names, help texts and label names are the program's own and held to Prometheus' rules by assertions; label values come
//! from users and may be anything, the encoder escapes them.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::HistogramSnapshot;

/// Something that has numbers to show.
pub trait Source: Send + Sync {
    /// Puts them into the sink. Called at each scrape on the HTTP thread: reads memory and must not wait for a reactor.
    fn collect(&self, sink: &mut Sink);
}

/// Takes series; one family for each name, whoever gives its series.
#[derive(Default)]
pub struct Sink {
    families: BTreeMap<&'static str, Family>,
}

struct Family {
    kind: MetricType,
    help: &'static str,
    metrics: Vec<Metric>,
    /// The label sets that are there: a scrape with the same series twice is refused as a whole by Prometheus.
    seen: BTreeSet<Vec<(&'static str, String)>>,
}

impl Sink {
    /// A number that only grows.
    ///
    /// # Panics
    /// If the name does not end in `_total`, or name, help or labels break the rules of [`Sink`].
    pub fn counter(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64) {
        assert!(name.ends_with("_total"), "counter {name} has to end in _total");
        let mut counter = Counter::default();
        counter.set_value(value);
        self.add(MetricType::COUNTER, name, help, labels, |metric| metric.set_counter(counter));
    }

    /// A number that goes up and down.
    ///
    /// # Panics
    /// If the name ends in `_total`, or name, help or labels break the rules of [`Sink`].
    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64) {
        assert!(!name.ends_with("_total"), "gauge {name} must not end in _total");
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        self.add(MetricType::GAUGE, name, help, labels, |metric| metric.set_gauge(gauge));
    }

    /// Latencies, shown in seconds.
    ///
    /// # Panics
    /// If the name does not end in `_seconds`, or name, help or labels break the rules of [`Sink`].
    pub fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: &HistogramSnapshot,
    ) {
        assert!(name.ends_with("_seconds"), "histogram {name} has to end in _seconds");
        assert!(labels.iter().all(|(label, _)| *label != "le"), "the label le of {name} is the histogram's own");
        self.add(MetricType::HISTOGRAM, name, help, labels, |metric| metric.set_histogram(value.to_proto()));
    }

    fn add(
        &mut self,
        kind: MetricType,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        set: impl FnOnce(&mut Metric),
    ) {
        let family = self.families.entry(name).or_insert_with(|| {
            assert!(is_name(name) && !help.is_empty(), "{name} is no name for a metric, or has no help");
            Family { kind, help, metrics: Vec::new(), seen: BTreeSet::new() }
        });
        assert_eq!((family.kind, family.help), (kind, help), "{name} has two kinds or two helps");
        if !family.seen.insert(labels.iter().map(|(label, value)| (*label, (*value).to_owned())).collect()) {
            tracing::warn!("the series {name} {labels:?} is there twice; the first is shown");
            return;
        }
        let mut metric = Metric::from_label(labels.iter().map(pair).collect());
        set(&mut metric);
        family.metrics.push(metric);
    }

    pub(crate) fn into_families(self) -> Vec<MetricFamily> {
        let families = self.families.into_iter();
        families
            .map(|(name, family)| {
                let mut proto = MetricFamily::default();
                proto.set_name(name.to_owned());
                proto.set_help(family.help.to_owned());
                proto.set_field_type(family.kind);
                proto.set_metric(family.metrics);
                proto
            })
            .collect()
    }
}

fn pair((label, value): &(&'static str, &str)) -> LabelPair {
    assert!(is_name(label) && !label.starts_with("__"), "{label} is no name for a label");
    let mut pair = LabelPair::default();
    pair.set_name((*label).to_owned());
    pair.set_value((*value).to_owned());
    pair
}

/// Lower case, as our names are; Prometheus itself would take more.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics(put: impl FnOnce(&mut Sink) + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(|| put(&mut Sink::default())).is_err()
    }

    #[test]
    fn names_follow_their_kind() {
        assert!(panics(|sink| sink.counter("a_ops", "A", &[], 1.0)));
        assert!(panics(|sink| sink.gauge("a_total", "A", &[], 1.0)));
        assert!(panics(|sink| sink.histogram("a_latency", "A", &[], &HistogramSnapshot::default())));
        assert!(panics(|sink| sink.histogram("a_seconds", "A", &[("le", "1")], &HistogramSnapshot::default())));
        assert!(!panics(|sink| sink.histogram("a_seconds", "A", &[("op", "1")], &HistogramSnapshot::default())));
    }

    #[test]
    fn names_are_names() {
        for name in ["1a", "a-b", "A", "", "a b", "ä"] {
            assert!(panics(|sink| sink.gauge(name, "A", &[], 1.0)), "{name}");
            assert!(panics(|sink| sink.gauge("a", "A", &[(name, "v")], 1.0)), "{name}");
        }
        assert!(panics(|sink| sink.gauge("a", "", &[], 1.0)), "no help");
        assert!(panics(|sink| sink.gauge("a", "A", &[("__a", "v")], 1.0)), "reserved");
    }

    #[test]
    fn a_name_means_one_thing() {
        assert!(panics(|sink| {
            sink.gauge("a", "A", &[], 1.0);
            sink.gauge("a", "Another", &[], 1.0);
        }));
        assert!(panics(|sink| {
            sink.gauge("a_seconds", "A", &[], 1.0);
            sink.histogram("a_seconds", "A", &[], &HistogramSnapshot::default());
        }));
    }

    #[test]
    fn the_same_series_is_shown_once() {
        let mut sink = Sink::default();
        sink.gauge("a", "A", &[("x", "1"), ("y", "2")], 1.0);
        sink.gauge("a", "A", &[("x", "1"), ("y", "2")], 2.0);
        sink.gauge("a", "A", &[("x", "2"), ("y", "1")], 3.0);
        let families = sink.into_families();
        let values: Vec<f64> = families[0].get_metric().iter().map(|metric| metric.get_gauge().get_value()).collect();
        assert_eq!((families.len(), values), (1, vec![1.0, 3.0]));
    }
}
