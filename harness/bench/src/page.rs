//! The report as one offline HTML page.

use dpar_engine_api::CacheForm;
use dpar_export_files::page::{Section, frame};
use maud::{Markup, html};

use crate::measure::Measurement;
use crate::report::BenchReport;

/// Width and height of the plot of images per second, in units of its view box.
const PLOT: (f64, f64) = (720.0, 260.0);
/// Room around it for the numbers at its axes.
const MARGIN: f64 = 44.0;

/// The page.
pub fn page(report: &BenchReport) -> String {
    let parts = [
        Section { id: "cases", title: "Cases", body: cases(report) },
        Section { id: "batches", title: "Images per second over the batch", body: batches(report) },
        Section { id: "graphs", title: "Where the time goes", body: graphs(report) },
    ];
    let head = html! {
        div.verdict.pass {
            h1 { "Decoding cost" }
            p { (report.machine.cpu.as_deref().unwrap_or("a processor without a name")) ", " (report.machine.cores) " cores" }
        }
    };
    let gigabytes = report.machine.read_bytes_per_second / 1e9;
    let best = report.cases.iter().max_by(|a, b| a.images_per_second.total_cmp(&b.images_per_second));
    let figures = html! {
        dl.tiles {
            div {
                dt { "Read bandwidth" }
                dd { (format!("{gigabytes:.1} GB/s")) small { (report.machine.threads) " threads, measured first" @if let Some(n) = report.machine.read_streams { ", from " (n) " places in turns" } } }
            }
            @if let Some(best) = best {
                div {
                    dt { "Most images per second" }
                    dd { (number(best.images_per_second)) small { (best.engine) ", batch " (best.batch) } }
                }
                div {
                    dt { "Steps an image" }
                    dd { (format!("{:.1}", best.mean_steps)) small { "of " (best.tokens) " tokens" } }
                }
            }
        }
    };
    frame("Decoding cost", &head, &figures, &parts, &html! { (report.cases.len()) " cases." })
}

/// Three significant digits, without an exponent.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let places = (2.0 - value.abs().log10().floor()).clamp(0.0, 6.0);
    format!("{value:.*}", places as usize)
}

fn cases(report: &BenchReport) -> Markup {
    html! {
        p { "Times are of all rounds; a step is one token of every image that takes part. Weights are read once a call." }
        div.scroll {
            table {
                thead {
                    tr {
                        @for title in [
                            "System", "Precision", "Engine", "Threads", "Batch", "Schedule", "Threshold", "Images/s", "First token ms", "Step ms p50",
                            "p90", "p99", "Bandwidth", "Anonymous MB", "Mapped MB", "Steps",
                        ] { th scope="col" { (title) } }
                    }
                }
                tbody {
                    @for case in &report.cases {
                        tr {
                            th scope="row" { (case.system) }
                            td { (case.precision) }
                            td { (case.engine) " " (case.engine_version) }
                            td.number { (case.threads.map_or("engine's".to_owned(), |n| n.to_string())) }
                            td.number { (case.batch) }
                            td { (case.schedule.as_str()) }
                            td.number { (case.threshold.map_or("–".to_owned(), |n| n.to_string())) }
                            td.number { (number(case.images_per_second)) }
                            td.number { (number(case.first_token_ms())) }
                            @for ms in [case.step_ms.p50, case.step_ms.p90, case.step_ms.p99] { td.number { (number(ms)) } }
                            td.number { (format!("{:.0} %", report.bandwidth_percent(case))) }
                            @for bytes in [case.memory.map(|m| m.anonymous), case.memory.map(|m| m.mapped)] {
                                td.number { (bytes.map_or("–".to_owned(), |b| format!("{:.0}", b as f64 / 1e6))) }
                            }
                            td.number { (format!("{:.1}", case.mean_steps)) }
                        }
                    }
                }
            }
        }
    }
}

/// Cases that differ in the batch alone.
fn series(report: &BenchReport) -> Vec<(String, Vec<&Measurement>)> {
    let mut series: Vec<(String, Vec<&Measurement>)> = Vec::new();
    for case in &report.cases {
        let threshold = case.threshold.map_or(String::new(), |nats| format!(", threshold {nats}"));
        let name = format!(
            "{} {} on {}, {}{threshold}",
            case.system,
            case.precision,
            case.engine,
            case.schedule.as_str()
        );
        match series.iter_mut().find(|(n, _)| *n == name) {
            Some((_, cases)) => cases.push(case),
            None => series.push((name, vec![case])),
        }
    }
    for (_, cases) in &mut series {
        cases.sort_by_key(|c| c.batch);
    }
    series
}

/// One line a series over a logarithmic axis of batches; series are told apart by dashes, not by colour.
fn batches(report: &BenchReport) -> Markup {
    let series = series(report);
    let most = report.cases.iter().map(|c| c.images_per_second).fold(f64::MIN_POSITIVE, f64::max);
    let largest = report.cases.iter().map(|c| c.batch).max().unwrap_or(1).max(2) as f64;
    let x = |batch: usize| MARGIN + (PLOT.0 - 2.0 * MARGIN) * (batch as f64).log2() / largest.log2();
    let y = |rate: f64| PLOT.1 - MARGIN - (PLOT.1 - 2.0 * MARGIN) * rate / most;
    let mut sizes: Vec<usize> = report.cases.iter().map(|c| c.batch).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let dashes = |i: usize| ["none", "6 4", "2 3", "10 3 2 3"][i % 4];
    html! {
        div.scroll {
            svg viewBox={ "0 0 " (PLOT.0) " " (PLOT.1) } style="width:100%;max-width:46rem" role="img"
                aria-label="Images per second over the batch; the table of cases has the numbers" {
                @for part in [0.0, 0.5, 1.0] {
                    @let level = y(most * part);
                    line x1=(MARGIN) x2=(PLOT.0 - MARGIN) y1=(level) y2=(level) stroke="var(--line)" {}
                    text x=(MARGIN - 6.0) y=(level + 4.0) text-anchor="end" font-size="12" fill="var(--soft)" {
                        (number(most * part))
                    }
                }
                @for size in &sizes {
                    text x=(x(*size)) y=(PLOT.1 - MARGIN + 18.0) text-anchor="middle" font-size="12" fill="var(--soft)" {
                        (size)
                    }
                }
                @for (i, (_, cases)) in series.iter().enumerate() {
                    @let points: Vec<String> =
                        cases.iter().map(|c| format!("{:.1},{:.1}", x(c.batch), y(c.images_per_second))).collect();
                    polyline points=(points.join(" ")) fill="none" stroke="var(--bar)" stroke-width="2.5"
                        stroke-dasharray=(dashes(i)) {}
                    @for case in cases {
                        circle cx=(x(case.batch)) cy=(y(case.images_per_second)) r="4" fill="var(--bar)" {
                            title { (case.engine) ", batch " (case.batch) ": " (number(case.images_per_second)) }
                        }
                    }
                }
            }
        }
        ul {
            @for (i, (name, _)) in series.iter().enumerate() {
                li {
                    svg viewBox="0 0 48 8" width="48" height="8" aria-hidden="true" {
                        line x1="0" x2="48" y1="4" y2="4" stroke="var(--bar)" stroke-width="2.5" stroke-dasharray=(dashes(i)) {}
                    }
                    " " (name)
                }
            }
        }
    }
}

fn graphs(report: &BenchReport) -> Markup {
    html! {
        p { "Shares of the wall time; what is in no graph is the loop: the sampler, the patch rule, the books of the caches." }
        @for case in &report.cases {
            h3 { (case.name()) }
            div.scroll {
                table {
                    thead {
                        tr {
                            @for title in ["Graph", "Caches", "Share", "Calls an image", "Rows a call", "ms a call", "GB/s of weights"] {
                                th scope="col" { (title) }
                            }
                        }
                    }
                    tbody {
                        @for (name, share) in &case.graphs {
                            @let calls = share.cost.calls.max(1) as f64;
                            tr {
                                th scope="row" { (name) }
                                td { (share.caches.map_or("–", CacheForm::as_str)) }
                                td.number { (format!("{:.1} %", share.percent)) (bar(share.percent)) }
                                td.number { (number(calls / case.all_images().max(1) as f64)) }
                                td.number { (number(share.cost.rows as f64 / calls)) }
                                td.number { (number(1e3 * share.cost.seconds / calls)) }
                                td.number { (number(share.weight_bytes as f64 * calls / share.cost.seconds / 1e9)) }
                            }
                        }
                        tr {
                            th scope="row" { "the loop" }
                            td { "–" }
                            td.number { (format!("{:.1} %", case.loop_percent)) (bar(case.loop_percent)) }
                            @for _ in 0..4 { td.number { "–" } }
                        }
                    }
                }
            }
        }
    }
}

fn bar(percent: f64) -> Markup {
    html! { span.share { i style={ "width:" (format!("{:.1}", percent.clamp(0.0, 100.0))) "%" } {} } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.0, 0.001_234_5, 1.234_5, 12.345, 1234.5].map(number);
        assert_eq!(shown, ["0", "0.00123", "1.23", "12.3", "1234"]);
    }
}
