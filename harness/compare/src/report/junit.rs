//! JUnit XML: a suite for each engine, a test case for each check.

use std::fmt::Write;

use dpar_export_spec::escape::visible;
use quick_junit::{NonSuccessKind, Property, Report, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::{Column, Page};
use crate::check::{Check, Status};
use crate::decision::Decision;

/// Flips that a failure message lists; more are counted.
const LISTED: usize = 20;

/// The page as JUnit XML. It holds no time, so the same results give the same bytes.
///
/// # Errors
/// When the document cannot be written.
pub fn junit(page: &Page) -> Result<String, SerializeError> {
    let mut report = Report::new(format!("dpar-export {}", page.job));
    for column in &page.columns {
        let mut suite = TestSuite::new(shown(&format!("{} on {}", page.job, column.label)));
        for (name, value) in properties(page, column) {
            suite.add_property(Property::new(name, shown(&value)));
        }
        if let Some(why) = &column.not_run {
            let mut status = match column.required {
                true => TestCaseStatus::non_success(NonSuccessKind::Error),
                false => TestCaseStatus::skipped(),
            };
            status.set_type("not run").set_message(shown(why));
            suite.add_test_case(case(page, column, "engine", status));
        }
        for check in &column.checks {
            suite.add_test_case(case(page, column, &check.name, status(check)));
        }
        report.add_test_suite(suite);
    }
    report.to_string()
}

/// What XML cannot hold is shown, not left out, and CI systems print the rest.
fn shown(text: &str) -> String {
    visible(text).into_owned()
}

fn properties(page: &Page, column: &Column) -> Vec<(&'static str, String)> {
    let mut properties = vec![
        ("model", page.provenance.name.clone()),
        ("precision", page.provenance.precision.to_string()),
        ("bundle", page.bundle.clone()),
    ];
    if let Some(e) = &column.engine {
        properties.push(("engine", e.engine.clone()));
        properties.push(("version", e.version.clone()));
        properties.push(("device", e.device.clone()));
        properties.push(("provider", e.provider.clone()));
    }
    if let Some(arithmetic) = &column.arithmetic {
        properties.push(("arithmetic", arithmetic.clone()));
    }
    properties
}

fn case(page: &Page, column: &Column, name: &str, status: TestCaseStatus) -> TestCase {
    let mut case = TestCase::new(shown(name), status);
    let engine = column.engine.as_ref().map_or(column.label.as_str(), |e| e.engine.as_str());
    case.set_classname(shown(&format!("{}.{engine}", page.job)));
    case
}

fn status(check: &Check) -> TestCaseStatus {
    match check.status {
        Status::Pass => TestCaseStatus::success(),
        Status::NotRun => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(shown(&check.detail));
            status
        }
        Status::Fail | Status::Inconclusive => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            let (kind, message) = match (check.max_abs, check.limit) {
                _ if check.status == Status::Inconclusive => ("inconclusive", check.detail.clone()),
                (Some(found), Some(limit)) => (
                    "tolerance",
                    format!("largest difference {found:.2e}, allowed is {limit:.2e}: {}", check.detail),
                ),
                _ => ("decision", check.detail.clone()),
            };
            status.set_type(kind).set_message(shown(&message)).set_description(description(check));
            status
        }
    }
}

fn description(check: &Check) -> String {
    let mut text = shown(&check.detail);
    for flip in check.flips.iter().take(LISTED) {
        let _ = write!(text, "\n{}", flip_text(flip));
    }
    if check.flips.len() > LISTED {
        let _ = write!(text, "\n… and {} more", check.flips.len() - LISTED);
    }
    text
}

fn flip_text(flip: &Decision) -> String {
    let [reference, found] = flip.choices();
    format!(
        "image {}, slot {}: {} is {found}, reference {reference} (margin {}): {}",
        flip.image,
        flip.slot,
        flip.kind,
        flip.measured(),
        flip.word(),
    )
}
