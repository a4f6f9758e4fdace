//! What a gate says to GitHub Actions, where that runs it: an annotation for each thing that failed, and the whole result in
//! the summary of the job.

use std::io::Write;

use dpar_export_metrics::Verdict;
use dpar_export_spec::escape::visible;

use super::failure::Failure;
use super::printer::{Printer, Text};
use crate::verify::Check;

/// Annotations of one kind that GitHub shows of a step.
const MOST: usize = 10;

/// Something that failed: what, and how.
pub(super) struct Finding {
    pub(super) what: String,
    pub(super) detail: String,
}

impl Finding {
    /// The same, of one of several.
    pub(super) fn of(self, who: &str) -> Self {
        Self { what: format!("{who}: {}", self.what), ..self }
    }
}

impl From<&Check> for Finding {
    fn from(check: &Check) -> Self {
        Self { what: check.name.clone(), detail: check.detail.clone() }
    }
}

fn on_github(printer: Printer) -> bool {
    printer.host.is_none() && std::env::var_os("GITHUB_ACTIONS").is_some_and(|v| v == "true")
}

/// Says how the gate `command` ended. `text` is its result for people.
pub(super) fn say(
    command: &str,
    verdict: Verdict,
    findings: &[Finding],
    text: impl FnOnce() -> Text,
    printer: Printer,
) {
    if !on_github(printer) {
        return;
    }
    let shown = if findings.len() > MOST { MOST - 1 } else { findings.len() };
    for finding in &findings[..shown] {
        printer.order(&annotation(&format!("{command}: {}", finding.what), &finding.detail));
    }
    if shown < findings.len() {
        let more = format!("{} more, in the summary of the job", findings.len() - shown);
        printer.order(&annotation(command, &more));
    }
    if let Err(e) = summarise(&summary(command, verdict, &text())) {
        tracing::warn!("the summary of the job cannot be written: {e}");
    }
}

/// Says why a gate ended without a result.
pub(super) fn failed(failure: &Failure, printer: Printer) {
    if on_github(printer) {
        printer.order(&annotation("dpar-export", &failure.text()));
    }
}

/// A workflow command. Its text is one line whatever it holds.
fn annotation(title: &str, message: &str) -> String {
    let data = |text: &str| visible(text).replace('%', "%25");
    let property = data(title).replace(':', "%3A").replace(',', "%2C");
    format!("::error title={property}::{}", data(message))
}

/// Markdown: the text in a block that nothing in it can end.
fn summary(command: &str, verdict: Verdict, text: &Text) -> String {
    let text = text.as_str();
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("### dpar-export {command}: {verdict}\n\n{fence}text\n{text}{fence}\n\n")
}

/// Adds to the summary, which other steps and commands write too.
fn summarise(markdown: &str) -> std::io::Result<()> {
    let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    let mut file = fs_err::OpenOptions::new().append(true).create(true).open(path)?;
    file.write_all(markdown.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_is_one_command_whatever_it_holds() {
        let found = annotation("verify: a,b", "50 % of it\n::error::no");
        assert_eq!(found, "::error title=verify%3A a%2Cb::50 %25 of it\\n::error::no");
    }

    #[test]
    fn nothing_in_a_summary_ends_its_block() {
        let found = summary("verify", Verdict::Fail, &Text::of_lines("a ```` b"));
        assert!(found.contains("\n`````text\na ```` b\n`````\n"), "{found}");
    }
}
