//! What is said beside the result: records with `--log-format json`, and to GitHub Actions.

use dpar_export_checkpoint::LoadOptions;
use serde_json::Value;

use crate::cli::run_with;
use crate::common::{Temp, export, fixture};

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|a| (*a).to_owned()).collect()
}

#[test]
fn progress_log_and_errors_are_records() {
    let temp = Temp::new();
    let (bundle, out) = (temp.path("b"), temp.path("images"));
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let args =
        words(&["generate", bundle.as_str(), "--num", "2", "-o", out.as_str(), "--log-format", "json"]);
    let records = |code: i32| -> Vec<Value> {
        let out = run_with(&args, &[("RUST_LOG", "=\u{202e}\n=".to_owned())]);
        assert_eq!(out.code, code, "{}", out.stderr);
        out.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = records(0);
    let of = |kind: &str| -> Vec<&Value> { all.iter().filter(|r| r["kind"] == kind).collect() };
    let (log, progress) = (of("log"), of("progress"));
    assert_eq!(log.len() + progress.len(), all.len(), "{all:?}");
    assert!(log[0]["level"] == "warn" && log[0]["message"].as_str().unwrap().contains("RUST_LOG"), "{log:?}");
    let last = progress.last().unwrap();
    assert!(last["done"] == last["total"] && last["unit"] == "tokens", "{progress:?}");
    assert!(all.iter().all(|r| r["seconds"].is_f64()), "{all:?}");

    let again = records(2);
    let error = again.last().unwrap();
    assert!(error["kind"] == "error" && error["cause"] == "input", "{error}");
    assert!(error["hint"].as_str().unwrap().contains("--force"), "{error}");
}

#[test]
fn work_without_a_total_tells_how_far_it_came() {
    let temp = Temp::new();
    let (checkpoint, bundle) = (fixture("variants/combined/dpar"), temp.path("b"));
    let args = words(&[checkpoint.as_str(), "-o", bundle.as_str(), "--log-format", "json", "--json"]);
    let out = run_with(&args, &[]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let records = out.stderr.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let progress: Vec<Value> = records.filter(|r| r["kind"] == "progress").collect();
    let exported: Value = serde_json::from_str(&out.stdout).unwrap();
    let graphs = exported["manifest"]["graphs"].as_array().unwrap().len() as u64;
    let last = progress.last().unwrap();
    assert!(
        last["total"].is_null() && last["done"].as_u64() >= Some(graphs),
        "{graphs} graphs: {progress:?}"
    );
}

#[test]
fn github_gets_annotations_and_a_summary() {
    let temp = Temp::new();
    let (bundle, summary) = (temp.path("b"), temp.path("summary.md"));
    let options = LoadOptions { epoch: Some(3), ..LoadOptions::default() };
    export("wrappings/experiment", &options, &bundle);
    fs_err::write(&summary, "# Of an earlier step\n").unwrap();
    let golden = fixture("wrappings");
    let env = [("GITHUB_ACTIONS", "true".to_owned()), ("GITHUB_STEP_SUMMARY", summary.to_string())];
    let verify =
        |reference: &str| run_with(&words(&["verify", bundle.as_str(), "--reference", reference]), &env);
    let out = verify(golden.as_str());
    assert_eq!(out.code, 1, "{}", out.stderr);
    let orders: Vec<&str> =
        out.stderr.lines().filter(|l| l.starts_with("::error title=verify%3A ")).collect();
    assert!(!orders.is_empty() && orders.len() == out.stderr.lines().count(), "{}", out.stderr);
    let written = fs_err::read_to_string(&summary).unwrap();
    let result = written.strip_prefix("# Of an earlier step\n### dpar-export verify: fail\n\n```text\n");
    assert!(result.is_some_and(|r| r.starts_with(&out.stdout)), "{written}");

    let out = verify(temp.path("none").as_str());
    assert_eq!(out.code, 2, "{}", out.stderr);
    assert!(out.stderr.lines().any(|l| l.starts_with("::error title=dpar-export::")), "{}", out.stderr);
}
