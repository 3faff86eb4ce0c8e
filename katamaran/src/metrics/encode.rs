//! Writes a page in the text exposition format, version 0.0.4: the one that node_exporter's textfile
//! collector reads. (OpenMetrics names the families of counters without `_total`, and that collector
//! would lose their type.)

use prometheus::TextEncoder;
use prometheus::proto;

use super::catalogue::{Family, Kind, catalogue};
use super::page::{Histogram, Page, Value};

/// What the format's media type is.
pub(super) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Last line of a page: a file without it was cut short. To Prometheus it is a comment.
pub(super) const END: &str = "# EOF";

pub(super) fn encode(page: &Page) -> String {
    let families: Vec<proto::MetricFamily> = catalogue()
        .iter()
        .filter_map(|family| encode_family(family, page))
        .collect();
    let mut text = TextEncoder::new()
        .encode_to_string(&families)
        .expect("every family has a name and series, and a String takes everything");
    text.push_str(END);
    text.push('\n');
    text
}

fn encode_family(family: &'static Family, page: &Page) -> Option<proto::MetricFamily> {
    let metrics: Vec<proto::Metric> = page
        .series(family)
        .map(|(labels, value)| {
            let mut metric = proto::Metric::default();
            metric.set_label(
                family
                    .labels
                    .iter()
                    .zip(labels)
                    .map(|(name, value)| label(name, value))
                    .collect(),
            );
            match (value, family.kind) {
                (Value::Histogram(histogram), Kind::Histogram(bounds)) => {
                    metric.set_histogram(encode_histogram(histogram, bounds));
                }
                (Value::Number(number), Kind::Counter) => {
                    let mut counter = proto::Counter::default();
                    counter.set_value(*number);
                    metric.set_counter(counter);
                }
                (Value::Number(number), _) => {
                    let mut gauge = proto::Gauge::default();
                    gauge.set_value(*number);
                    metric.set_gauge(gauge);
                }
                (Value::Histogram(_), _) => {
                    debug_assert!(false, "{} is no histogram", family.name);
                }
            }
            metric
        })
        .collect();
    if metrics.is_empty() {
        return None;
    }
    let mut encoded = proto::MetricFamily::default();
    encoded.set_name(family.name.to_owned());
    encoded.set_help(family.help.to_owned());
    encoded.set_field_type(match family.kind {
        Kind::Gauge => proto::MetricType::GAUGE,
        Kind::Counter => proto::MetricType::COUNTER,
        Kind::Histogram(_) => proto::MetricType::HISTOGRAM,
    });
    encoded.set_metric(metrics);
    Some(encoded)
}

fn encode_histogram(histogram: &Histogram, bounds: &[f64]) -> proto::Histogram {
    let mut cumulative = 0;
    let buckets = bounds
        .iter()
        .zip(&histogram.buckets)
        .map(|(bound, count)| {
            cumulative += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(cumulative);
            bucket
        })
        .collect();
    let mut encoded = proto::Histogram::default();
    encoded.set_bucket(buckets);
    encoded.set_sample_count(histogram.count());
    encoded.set_sample_sum(histogram.sum);
    encoded
}

fn label(name: &str, value: &str) -> proto::LabelPair {
    let mut pair = proto::LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::catalogue::{DISK_SIZE, DOWNTIME, LOST};

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut page = Page::default();
        page.count(&LOST, &["source"], 2.0);
        page.observe(&DOWNTIME, &["source"], 0.0166);
        page.set(
            &DISK_SIZE,
            &["source", "00000000000000aa", "odd \"name\"\\\n"],
            1_073_741_824.0,
        );
        let text = encode(&page);
        for line in [
            "# HELP katamaran_migration_lost_packets_total Packets of the VM that the ledger says were lost.",
            "# TYPE katamaran_migration_lost_packets_total counter",
            "katamaran_migration_lost_packets_total{role=\"source\"} 2",
            "# TYPE katamaran_migration_downtime_seconds histogram",
            "katamaran_migration_downtime_seconds_bucket{role=\"source\",le=\"0.01\"} 0",
            "katamaran_migration_downtime_seconds_bucket{role=\"source\",le=\"0.02\"} 1",
            "katamaran_migration_downtime_seconds_bucket{role=\"source\",le=\"+Inf\"} 1",
            "katamaran_migration_downtime_seconds_sum{role=\"source\"} 0.0166",
            "katamaran_migration_downtime_seconds_count{role=\"source\"} 1",
            "katamaran_migration_disk_size_bytes{role=\"source\",session=\"00000000000000aa\",drive=\"odd \\\"name\\\"\\\\\\n\"} 1073741824",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        assert!(!text.contains("ram_size"), "nothing measured it:\n{text}");
    }
}
