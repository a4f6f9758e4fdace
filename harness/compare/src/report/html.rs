//! The page of a comparison: verdict, summary figures, sections, foot.

use dpar_export_files::page::frame;
use dpar_export_metrics::Verdict;
use maud::{Markup, html as markup};

use super::Page;
use super::sections;
use crate::check::{CheckId, Status};

/// The page as one HTML file.
pub fn html(page: &Page) -> String {
    let parts = sections::all(page);
    let title = format!("{} {}: {}", page.job, page.provenance.name, word(page.verdict));
    let foot = markup! { "Bundle " code { (page.bundle) } "." };
    frame(&title, &verdict(page), &tiles(page), &parts, &foot)
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "FAIL",
        Verdict::Inconclusive => "inconclusive",
        Verdict::Incomplete => "incomplete",
    }
}

fn verdict(page: &Page) -> Markup {
    let (class, sign, title) = match page.verdict {
        Verdict::Pass => ("verdict pass", "✓", "Pass"),
        Verdict::Fail => ("verdict fail", "✗", "Fail"),
        Verdict::Inconclusive => ("verdict", "?", "Inconclusive"),
        Verdict::Incomplete => ("verdict fail", "✗", "Incomplete"),
    };
    let failed: Vec<String> = page
        .columns
        .iter()
        .flat_map(|column| {
            let bad = column.checks.iter().filter(|c| c.status == Status::Fail);
            let absent = column.missing().then(|| format!("{} did not run", column.label));
            absent
                .into_iter()
                .chain(bad.map(|c| format!("{} on {}", c.name, column.label)))
                .collect::<Vec<_>>()
        })
        .collect();
    let ran_on = page.columns.iter().filter(|c| c.not_run.is_none());
    let engines: Vec<&str> = ran_on.map(|c| c.label.as_str()).collect();
    let ran = page.count(Status::Pass) + page.count(Status::Fail);
    markup! {
        div class=(class) {
            h1 { span aria-hidden="true" { (sign) } (title) ": " (page.job) " of " (page.provenance.name) }
            @if page.verdict == Verdict::Inconclusive {
                p { "The numbers do not decide it." }
            } @else if failed.is_empty() && ran == 0 {
                p { "Nothing was compared, so nothing is proven." }
            } @else if failed.is_empty() {
                p { "All " (ran) " checks passed on " (engines.join(", ")) " (" (page.provenance.precision) ")." }
            } @else {
                p { (if page.verdict == Verdict::Fail { "Failed: " } else { "" }) (failed.join("; ")) "." }
            }
        }
    }
}

/// The figures that people ask for first.
fn tiles(page: &Page) -> Markup {
    let [pass, fail, skipped] = [Status::Pass, Status::Fail, Status::NotRun].map(|s| page.count(s));
    let logits = page
        .columns
        .iter()
        .flat_map(|c| &c.checks)
        .filter(|c| c.id == CheckId::Logits)
        .filter_map(|c| c.max_abs.zip(c.limit))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let flips = page.flips();
    let defects = flips.iter().filter(|(_, _, f)| !f.near_tie).count();
    markup! {
        dl.tiles {
            div {
                dt { "Checks passed" }
                dd { (pass) " of " (pass + fail) @if skipped > 0 { small { (skipped) " not in the reference" } } }
            }
            @if let Some((found, limit)) = logits {
                div {
                    dt { "Largest logit difference" }
                    dd { (format!("{found:.1e}")) small { "allowed " (format!("{limit:.0e}")) } }
                }
            }
            div {
                dt { "Decisions that differ" }
                dd { (flips.len()) small { (defects) " defects, " (flips.len() - defects) " near-ties" } }
            }
            @if let Some(samples) = page.samples.as_ref().filter(|s| !s.items.is_empty()) {
                div {
                    dt { "Mean steps an image" }
                    dd {
                        (format!("{:.1}", samples.mean_steps()))
                        small {
                            "of " (samples.tokens) " tokens, "
                            (format!("{:.2}", samples.tokens as f64 / samples.mean_steps())) " a step"
                        }
                    }
                }
            }
        }
    }
}
