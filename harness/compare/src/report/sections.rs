//! The page's sections: checks, flips, samples, entropy maps, steps, environment, provenance.

use dpar_export_bundle::SourceEntry;
use dpar_export_files::page::Section;
use maud::{Markup, html};

use super::chart::{histogram, outline};
use super::pixels::{gradient, heat, images};
use super::{Column, MOST_FLIPS, Page, Samples};
use crate::check::{Check, Status};

/// Bars of the histogram of steps.
const BARS: usize = 32;

/// The sections that have something to say.
pub(super) fn all(page: &Page) -> Vec<Section> {
    let mut parts = vec![
        Section { id: "checks", title: "Checks", body: checks(page) },
        Section { id: "flips", title: "Differing decisions", body: flips(page) },
    ];
    if let Some(samples) = page.samples.as_ref().filter(|s| !s.items.is_empty()) {
        if samples.items.iter().any(|s| s.pixels.is_some()) {
            parts.push(Section { id: "samples", title: "Samples", body: sample_grid(samples) });
        }
        if samples.entropy_range().is_some() {
            parts.push(Section { id: "entropy", title: "Entropy maps", body: entropy_maps(samples) });
        }
        parts.push(Section { id: "steps", title: "Steps", body: steps(samples) });
    }
    parts.push(Section { id: "environment", title: "Environment", body: environment(page) });
    parts.push(Section { id: "provenance", title: "Provenance", body: provenance(page) });
    parts
}

/// A table that scrolls inside its own frame where the screen is narrow.
fn scroll(label: &str, table: &Markup) -> Markup {
    html! { div.scroll role="region" aria-label=(label) tabindex="0" { (table) } }
}

fn checks(page: &Page) -> Markup {
    let table = html! {
        table {
            thead {
                tr {
                    th scope="col" { "Check" }
                    @for column in &page.columns { th scope="col" { (column.label) } }
                }
            }
            tbody {
                @for name in page.check_names() {
                    tr {
                        th scope="row" { (name) }
                        @for column in &page.columns { td { (cell(column, name)) } }
                    }
                }
                @if page.columns.iter().any(|c| c.not_run.is_some()) {
                    tr {
                        th scope="row" { "engine" }
                        @for column in &page.columns {
                            td {
                                @match &column.not_run {
                                    Some(why) => {
                                        @if column.required { span.mark.fail { "✗ did not run" } }
                                        @else { span.mark.none { "not run" } }
                                        span.why { (why) }
                                    },
                                    None => span.mark.pass { "✓ ran" },
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    html! {
        p {
            "Tensors are held against a named tolerance; the bar shows how much of it the largest difference takes. "
            "Decisions (patch boundaries, tokens, codes) must be equal, near-ties apart."
        }
        (scroll("Checks by engine", &table))
    }
}

fn cell(column: &Column, name: &str) -> Markup {
    let Some(check) = column.checks.iter().find(|c| c.name == name) else {
        return html! { span.mark.none { "–" } };
    };
    let (class, text) = match check.status {
        Status::Pass => ("mark pass", "✓ pass"),
        Status::Fail => ("mark fail", "✗ FAIL"),
        Status::Inconclusive => ("mark", "? inconclusive"),
        Status::NotRun => ("mark none", "not run"),
    };
    html! { span class=(class) { (text) } (measure(check)) span.why { (check.detail) } }
}

/// The largest difference and its share of what is allowed.
fn measure(check: &Check) -> Markup {
    let Some((found, limit)) = check.max_abs.zip(check.limit) else { return html! {} };
    let percent = match limit > 0.0 {
        true => found / limit * 100.0,
        false if found == 0.0 => 0.0,
        false => f64::INFINITY,
    };
    let class = if percent > 100.0 || percent.is_nan() { "share over" } else { "share" };
    let width = if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 100.0 };
    html! {
        " " (number(found)) " of " (number(limit))
        span class=(class) aria-hidden="true" { i style={ "width:" (format!("{width:.1}")) "%" } {} }
    }
}

/// Counts as they are, other numbers by their magnitude.
fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e6 { format!("{value}") } else { format!("{value:.1e}") }
}

fn flips(page: &Page) -> Markup {
    let flips = page.flips();
    if flips.is_empty() {
        return html! { p { "No decision differs." } };
    }
    let table = html! {
        table {
            thead {
                tr {
                    @for title in
                        ["Verdict", "Engine", "Check", "Image", "Slot", "Decision", "Reference", "Found", "Margin", "Near-tie below"]
                    { th scope="col" { (title) } }
                }
            }
            tbody {
                @for (column, check, flip) in flips.iter().take(MOST_FLIPS) {
                    @let [reference, found] = flip.choices();
                    tr {
                        td {
                            @if flip.near_tie { span.mark { "near-tie" } } @else { span.mark.fail { "✗ defect" } }
                        }
                        td { (column.label) }
                        th scope="row" { (check.name) }
                        td { (flip.image) }
                        td { (flip.slot) }
                        td { (flip.kind) }
                        td { (reference) }
                        td { (found) }
                        td.number { (flip.margin.map_or_else(|| "none".to_owned(), |m| format!("{m:.1e}"))) }
                        td.number { (format!("{:.1e}", flip.limit)) }
                    }
                }
            }
        }
    };
    html! {
        p {
            "The first decision of each image that differs: what follows it cannot be compared. A margin is the distance "
            "to the tie: of an entropy to the threshold in nats, or of the logits of the two chosen tokens, to which a draw adds "
            "the same noise on both sides (drawn by the inverse CDF, the probability between the draw and the other token's share)."
        }
        (scroll("Differing decisions", &table))
        @if flips.len() > MOST_FLIPS { p { "and " (flips.len() - MOST_FLIPS) " more; the JSON report has all." } }
    }
}

fn how(samples: &Samples) -> String {
    let draw = samples.draw;
    // A parity run shows what it drew.
    let fewer = if samples.items.len() < usize::from(draw.num) {
        format!(" (the run drew no more: --images is fewer than the {} of --report-images)", draw.num)
    } else {
        String::new()
    };
    format!(
        "{} images drawn by {} for this report{fewer}: seed {}, guidance {}",
        samples.items.len(),
        samples.engine,
        draw.seed,
        draw.cfg_scale
    )
}

/// A picture with the patches over it.
fn tile(samples: &Samples, index: usize, uri: &str, alt: &str) -> Markup {
    let lengths = &samples.items[index].patch_lengths;
    let rows = samples.tokens / samples.grid.max(1);
    let path = outline(lengths, samples.grid);
    html! {
        div.tile {
            img src=(uri) alt=(alt);
            svg viewBox={ "0 0 " (samples.grid) " " (rows) } preserveAspectRatio="none" aria-hidden="true" {
                path.halo d=(path) {}
                path.line d=(path) {}
            }
        }
    }
}

fn sample_grid(samples: &Samples) -> Markup {
    let uris = images(samples);
    html! {
        p {
            (how(samples)) ". Each tile is one patch and one step of the large transformer: flat areas take few, detail "
            "takes many."
        }
        fieldset {
            legend { "Show" }
            input type="radio" name="view" id="view-patches" checked;
            label for="view-patches" { "with patches" }
            input type="radio" name="view" id="view-image";
            label for="view-image" { "images alone" }
            div.grid {
                @for (i, sample) in samples.items.iter().enumerate() {
                    @let steps = sample.patch_lengths.len();
                    @if let Some(uri) = &uris[i] {
                        figure {
                            (tile(samples, i, uri, &format!("Sample {i} of class {}, in {steps} patches", sample.class)))
                            figcaption { b { "class " (sample.class) } ", " (steps) " steps" }
                        }
                    }
                }
            }
        }
    }
}

fn entropy_maps(samples: &Samples) -> Markup {
    let range = samples.entropy_range().unwrap_or((0.0, 1.0));
    let (low, high) = range;
    let mark =
        samples.threshold.filter(|t| (low..=high).contains(t)).map(|t| (t - low) / (high - low) * 100.0);
    html! {
        p {
            "How uncertain the entropy model is about each token, in nats; lines are the patch boundaries. "
            @if let Some(threshold) = samples.threshold { "Above the threshold of " (threshold) " a patch begins. " }
            "The first token has no entropy (grey)."
        }
        div.scale style={ "background:" (gradient()) } aria-hidden="true" {
            @if let Some(mark) = mark { i style={ "left:" (format!("{mark:.1}")) "%" } {} }
        }
        div.ends {
            span { (format!("{low:.2}")) }
            @if let Some(t) = samples.threshold { span { "threshold " (t) } }
            span { (format!("{high:.2}")) " nats" }
        }
        div.grid.maps {
            @for (i, sample) in samples.items.iter().enumerate() {
                @let known: Vec<f32> = sample.entropy.iter().copied().filter(|e| e.is_finite()).collect();
                @let mean = known.iter().sum::<f32>() / known.len().max(1) as f32;
                figure {
                    (tile(samples, i, &heat(&sample.entropy, samples.grid, range),
                        &format!("Entropy of sample {i}: {mean:.2} nats on average")))
                    figcaption { b { "class " (sample.class) } ", mean " (format!("{mean:.2}")) }
                }
            }
        }
    }
}

fn steps(samples: &Samples) -> Markup {
    let values = samples.steps();
    let bins = histogram(&values, BARS);
    let tallest = bins.iter().map(|b| b.count).max().unwrap_or(1).max(1);
    let range = |first: usize, last: usize| match first == last {
        true => first.to_string(),
        false => format!("{first} to {last}"),
    };
    let (low, high) = (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
    let table = html! {
        table {
            thead { tr { th scope="col" { "Steps" } th scope="col" { "Images" } } }
            tbody {
                @for bin in bins.iter().filter(|b| b.count > 0) {
                    tr { th scope="row" { (range(bin.first, bin.last)) } td { (bin.count) } }
                }
            }
        }
    };
    html! {
        p {
            "Steps of the large transformer: " (format!("{:.2}", samples.mean_steps())) " on average, " (low) " to " (high)
            "; a model without patches takes " (samples.tokens) "."
        }
        div.bars role="img" aria-label={ "Histogram of steps over " (values.len()) " images; the table below has its numbers" } {
            @for bin in &bins {
                div {
                    @if bin.count > 0 { span { (bin.count) } }
                    i style={ "height:" (format!("{:.1}", bin.count as f64 / tallest as f64 * 85.0)) "%" } {}
                }
            }
        }
        div.ends.wide {
            span { (bins.first().map_or(0, |b| b.first)) }
            span { "steps an image" }
            span { (bins.last().map_or(0, |b| b.last)) }
        }
        details { summary { "As a table" } (scroll("Steps", &table)) }
    }
}

fn environment(page: &Page) -> Markup {
    let engines = page.columns.iter().filter_map(|c| Some((c.engine.as_ref()?, c)));
    let table = html! {
        table {
            thead {
                tr {
                    @for title in ["Engine", "Version", "Device", "Provider", "Threads", "Library", "Computes"] {
                        th scope="col" { (title) }
                    }
                }
            }
            tbody {
                @for (e, column) in engines {
                    tr {
                        th scope="row" { (e.engine) }
                        td { (e.version) }
                        td { (e.device) }
                        td { (e.provider) }
                        td { (e.threads.map_or_else(|| "its choice".to_owned(), |t| t.to_string())) }
                        td { (e.library.as_deref().map_or("compiled in", |l| l.rsplit('/').next().unwrap_or(l))) }
                        td { (column.arithmetic.as_deref().unwrap_or("–")) }
                    }
                }
            }
        }
    };
    html! {
        p { "What really ran. Precision of the graphs: " (page.provenance.precision) "." }
        (scroll("Engines", &table))
    }
}

fn provenance(page: &Page) -> Markup {
    let chain = &page.provenance;
    let source = |s: &SourceEntry| {
        html! {
            tr { th scope="row" { "checkpoint" } td { (s.role) ": " (s.name) } td { code { (s.sha256) } } }
        }
    };
    let table = html! {
        table {
            thead { tr { th scope="col" { "Step" } th scope="col" { "File" } th scope="col" { "SHA-256" } } }
            tbody {
                @for s in &chain.shared_sources { (source(s)) }
                @for component in &chain.components {
                    @for s in &component.sources { (source(s)) }
                    tr { th scope="row" { "weights" } td { (component.weights.file) } td { code { (component.weights.sha256) } } }
                    @for graph in &component.graphs {
                        tr { th scope="row" { "graph" } td { (graph.link.file) } td { code { (graph.link.sha256) } } }
                        @for engine in &graph.engines {
                            tr {
                                th scope="row" { "engine" }
                                td { (engine.link.file) " (" (engine.builder) " " (engine.version) ", " (engine.precision) ")" }
                                td { code { (engine.link.sha256) } }
                            }
                        }
                    }
                }
                tr { th scope="row" { "bundle" } td { "manifest.json" } td { code { (page.bundle) } } }
                @for file in &page.compared {
                    tr { th scope="row" { "compared with" } td { (file.name) } td { code { (file.sha256) } } }
                }
            }
        }
    };
    html! {
        p {
            "From checkpoint to report: every file by its SHA-256, checked before it was used. The bundle was written by "
            (chain.tool.name) " " (chain.tool.version) "."
        }
        (scroll("Provenance", &table))
    }
}
