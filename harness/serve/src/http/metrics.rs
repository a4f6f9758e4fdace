//! `GET /metrics`: what the service counts, in Prometheus' text format.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use axum::extract::State;
use axum::response::Response;

use super::problem::typed;
use super::service::Service;
use crate::stats::{Histogram, Stats, read};

pub(crate) async fn metrics(State(service): State<Arc<Service>>) -> Response {
    typed("text/plain; version=0.0.4", exposition(&service))
}

/// A family: its name, type and help, then its samples.
fn family(out: &mut String, name: &str, kind: &str, help: &str, samples: &[(String, String)]) {
    // Writing to a text cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

/// Labels of a sample.
fn labels(pairs: &[(&str, &str)]) -> String {
    let quoted = |value: &str| value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    let pairs: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}=\"{}\"", quoted(v))).collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

fn one(value: impl Display) -> [(String, String); 1] {
    [(String::new(), value.to_string())]
}

/// A counter of every model.
type Counter = (&'static str, &'static str, &'static str, fn(&Stats) -> &AtomicU64);

/// Counters and gauges of a scheduler: name, type, help.
const COUNTERS: &[Counter] = &[
    ("dpar_rows_busy", "gauge", "Images that are being decoded.", |s| &s.busy),
    ("dpar_queue_images", "gauge", "Images that wait for a row.", |s| &s.waiting),
    ("dpar_images_done_total", "counter", "Images that are complete.", |s| &s.done),
    ("dpar_images_failed_total", "counter", "Images that failed.", |s| &s.failed),
    ("dpar_images_dropped_total", "counter", "Images whose requester went away.", |s| &s.dropped),
    ("dpar_images_late_total", "counter", "Images that waited or took too long.", |s| &s.late),
    ("dpar_queue_full_total", "counter", "Requests that found the queue full.", |s| &s.full),
    ("dpar_tokens_total", "counter", "Tokens that were drawn.", |s| &s.tokens),
    ("dpar_steps_total", "counter", "Patches that ended: steps of the large transformer.", |s| &s.patches),
];

/// A histogram of every model.
type Durations = (&'static str, &'static str, fn(&Stats) -> &Histogram);

/// Histograms of a scheduler.
const DURATIONS: &[Durations] = &[
    ("dpar_queue_seconds", "From the request to its row.", |s| &s.queue_time),
    ("dpar_first_patch_seconds", "From the request to the end of its first patch.", |s| &s.first_patch),
    ("dpar_decode_seconds", "From the row to the complete image.", |s| &s.decode_time),
    ("dpar_image_seconds", "From the request to the complete image.", |s| &s.latency),
];

fn exposition(service: &Service) -> String {
    let mut out = String::new();
    let answered = service.answered.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let requests: Vec<_> = answered
        .iter()
        .map(|((route, status), n)| {
            (labels(&[("route", route), ("status", &status.to_string())]), n.to_string())
        })
        .collect();
    family(&mut out, "dpar_requests_total", "counter", "Requests by route and status.", &requests);
    let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let open = one(number(&service.connections));
    family(&mut out, "dpar_connections", "gauge", "Open connections.", &open);
    let refused = one(number(&service.refused_connections));
    family(&mut out, "dpar_connections_refused_total", "counter", "Connections over the limit.", &refused);

    let models: Vec<_> = service.models().iter().map(|m| (m, m.current())).collect();
    for (name, kind, help, counter) in COUNTERS {
        let of = models
            .iter()
            .map(|(m, s)| (labels(&[("model", m.name())]), read(counter(s.stats())).to_string()));
        family(&mut out, name, kind, help, &of.collect::<Vec<_>>());
    }
    let rows = models.iter().map(|(m, s)| (labels(&[("model", m.name())]), s.limits().rows.to_string()));
    family(&mut out, "dpar_rows", "gauge", "Images that can be decoded together.", &rows.collect::<Vec<_>>());
    let changes =
        models.iter().map(|(m, _)| (labels(&[("model", m.name())]), number(&m.changes).to_string()));
    let help = "Times that the bundle was changed while it was served.";
    family(&mut out, "dpar_model_changes_total", "counter", help, &changes.collect::<Vec<_>>());
    for (name, help, histogram) in DURATIONS {
        family(&mut out, name, "histogram", help, &[]);
        for (model, scheduler) in &models {
            let (histogram, model) = (histogram(scheduler.stats()), model.name());
            for (bound, n) in histogram.cumulative() {
                let le = labels(&[("model", model), ("le", &bound.to_string())]);
                let _ = writeln!(out, "{name}_bucket{le} {n}");
            }
            let (count, le) = (histogram.count(), labels(&[("model", model), ("le", "+Inf")]));
            let _ = writeln!(out, "{name}_bucket{le} {count}");
            let of = labels(&[("model", model)]);
            let _ =
                writeln!(out, "{name}_sum{of} {}\n{name}_count{of} {count}", histogram.sum().as_secs_f64());
        }
    }
    graphs(&mut out, &models.iter().map(|(m, s)| (m.name(), s.stats())).collect::<Vec<_>>());
    out
}

/// Calls of each graph: with the rows of all calls, how full they are.
fn graphs(out: &mut String, models: &[(&str, &Stats)]) {
    let calls: Vec<_> = models
        .iter()
        .flat_map(|(model, stats)| stats.graphs().into_iter().map(move |calls| (*model, calls)))
        .map(|(model, calls)| (labels(&[("model", model), ("graph", calls.graph.as_str())]), calls))
        .collect();
    let column = |value: &dyn Fn(&dpar_export_decode::generate::GraphCalls) -> String| -> Vec<_> {
        calls.iter().map(|(labels, calls)| (labels.clone(), value(calls))).collect()
    };
    let (number, rows) = (column(&|c| c.calls.to_string()), column(&|c| c.rows.to_string()));
    let seconds = column(&|c| c.time.as_secs_f64().to_string());
    let cached = calls.iter().filter(|(_, calls)| calls.caches.is_some());
    let memory: Vec<_> = cached.map(|(labels, c)| (labels.clone(), c.cache_bytes.to_string())).collect();
    let help = "Memory of the cache of each graph; of a model, the sum.";
    family(out, "dpar_cache_bytes", "gauge", help, &memory);
    family(out, "dpar_graph_calls_total", "counter", "Calls of each graph.", &number);
    family(out, "dpar_graph_rows_total", "counter", "Rows of all calls of each graph.", &rows);
    family(out, "dpar_graph_seconds_total", "counter", "Time in the engine by graph.", &seconds);
}
