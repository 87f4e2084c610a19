//! All sources, and their text.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Registry, TextEncoder};

use crate::http::Server;
use crate::{Sink, Source};

/// Holds the sources and renders what they have to show.
pub struct Exporter {
    registry: Registry,
    sources: Sources,
}

/// The one collector of the registry. It describes nothing beforehand: what there is to show changes with every bdev.
#[derive(Clone, Default)]
struct Sources(Arc<RwLock<Vec<Arc<dyn Source>>>>);

impl Collector for Sources {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The list is out of the lock while sources are asked: one of them may be slow.
        let sources = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut sink = Sink::default();
        for source in sources {
            source.collect(&mut sink);
        }
        sink.into_families()
    }
}

impl Default for Exporter {
    fn default() -> Self {
        Self::new()
    }
}

impl Exporter {
    /// Without sources.
    ///
    /// # Panics
    /// Never: an empty registry takes its first collector.
    #[must_use]
    pub fn new() -> Self {
        let (registry, sources) = (Registry::new(), Sources::default());
        registry.register(Box::new(sources.clone())).expect("an empty registry takes its first collector");
        Exporter { registry, sources }
    }

    /// Adds a source; it is asked at every scrape from now on.
    pub fn add(&self, source: Arc<dyn Source>) {
        self.sources.0.write().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// Asks all sources; the answer in Prometheus' text format, families by name and series by label values.
    ///
    /// # Panics
    /// If a source breaks the rules of [`Sink`].
    #[must_use]
    pub fn render(&self) -> String {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather());
        text.expect("families from the sink have a name and a series each")
    }

    /// Serves `/metrics` and `/healthz` on `listen`, from a thread of its own, until the server is stopped.
    ///
    /// # Errors
    /// When the address cannot be listened on or no thread can be had.
    pub fn serve(self: Arc<Self>, listen: SocketAddr) -> io::Result<Server> {
        Server::start(self, listen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HistogramSnapshot;

    struct Fixed(fn(&mut Sink));

    impl Source for Fixed {
        fn collect(&self, sink: &mut Sink) {
            (self.0)(sink);
        }
    }

    fn render(sources: &[fn(&mut Sink)]) -> String {
        let exporter = Exporter::new();
        for source in sources {
            exporter.add(Arc::new(Fixed(*source)));
        }
        exporter.render()
    }

    #[test]
    fn nothing_given_is_nothing_shown() {
        assert_eq!(render(&[]), "");
        assert_eq!(render(&[|_| ()]), "");
    }

    #[test]
    fn families_of_several_sources_have_one_head() {
        let text = render(&[
            |sink| {
                sink.counter("pollux_turns_total", "Turns.", &[("reactor", "1")], 7.0);
                sink.gauge("pollux_inflight", "Requests in flight.", &[], 3.0);
            },
            |sink| sink.counter("pollux_turns_total", "Turns.", &[("reactor", "0")], 12_345_678_901_234.0),
        ]);
        assert_eq!(
            text,
            "# HELP pollux_inflight Requests in flight.\n\
             # TYPE pollux_inflight gauge\n\
             pollux_inflight 3\n\
             # HELP pollux_turns_total Turns.\n\
             # TYPE pollux_turns_total counter\n\
             pollux_turns_total{reactor=\"0\"} 12345678901234\n\
             pollux_turns_total{reactor=\"1\"} 7\n"
        );
    }

    #[test]
    fn users_may_name_things_as_they_like() {
        let text = render(&[|sink| {
            let name = "a\"b\\c\nd{e=\"f\"} 1\r\u{fc}";
            sink.gauge("pollux_a", "A \\ and\na new line.", &[("bdev", name), ("alias", "")], 1.5);
        }]);
        assert_eq!(
            text,
            "# HELP pollux_a A \\\\ and\\na new line.\n\
             # TYPE pollux_a gauge\n\
             pollux_a{bdev=\"a\\\"b\\\\c\\nd{e=\\\"f\\\"} 1\r\u{fc}\",alias=\"\"} 1.5\n"
        );
    }

    #[test]
    fn histograms_are_cumulative_seconds() {
        let text = render(&[|sink| {
            let histogram = pollux_core::Histogram::default();
            for ns in [500, 3000, 3000, 20_000_000_000] {
                histogram.record(ns);
            }
            let mut snapshot = HistogramSnapshot::default();
            snapshot.add(&histogram);
            sink.histogram("pollux_latency_seconds", "Latency.", &[("op", "read")], &snapshot);
        }]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "# TYPE pollux_latency_seconds histogram");
        assert_eq!(lines[2], "pollux_latency_seconds_bucket{op=\"read\",le=\"0.000001024\"} 1");
        assert_eq!(lines[4], "pollux_latency_seconds_bucket{op=\"read\",le=\"0.000004096\"} 3");
        assert_eq!(lines[26], "pollux_latency_seconds_bucket{op=\"read\",le=\"17.179869184\"} 3");
        assert_eq!(lines[27], "pollux_latency_seconds_bucket{op=\"read\",le=\"+Inf\"} 4");
        assert_eq!(lines[28], "pollux_latency_seconds_sum{op=\"read\"} 20.0000065");
        assert_eq!(lines[29..], ["pollux_latency_seconds_count{op=\"read\"} 4"]);
    }
}
