//! `cargo xtask aiperf`: AIPerf asks the service in the shape of the OpenAI API, at arrivals that wait for no answer.

use std::fmt::Write;
use std::process::Command;

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use crate::chart::{Chart, Curve, svg};
use crate::served::{Served, emoji32};

/// Where everything is written, ignored by git.
const OUT: &str = "out/aiperf";
/// Its summary of a run.
const SUMMARY: &str = "profile_export_aiperf.json";
/// Classes of the bundle.
const CLASSES: usize = 9;
/// After so many milliseconds without an event a stream has a comment, which AIPerf takes for the first one.
const COMMENT: f64 = 10_000.0;
/// How long what was asked for before the end may take, in seconds.
const GRACE: &str = "60";

/// What is measured.
#[derive(Debug, clap::Args)]
pub struct ArrivalArgs {
    /// The program [default: a release build]
    #[arg(long)]
    pub program: Option<Utf8PathBuf>,
    /// Engine [default: the program's]
    #[arg(long)]
    engine: Option<String>,
    /// Images that are decoded together
    #[arg(long, value_name = "ROWS", default_value = "16")]
    batch: usize,
    /// Arrivals a second, of a Poisson process
    #[arg(long, value_name = "N,..", value_delimiter = ',', num_args = 1, default_values = ["5", "10", "20", "30", "40", "50", "60"])]
    rates: Vec<f64>,
    /// How long requests arrive, at each rate
    #[arg(long, value_name = "N", default_value = "20")]
    seconds: u32,
    /// An answer that comes within so many milliseconds is a good one
    #[arg(long, value_name = "MS", default_value = "500")]
    limit: u32,
    /// The plot [default: out/aiperf/arrivals.svg]
    #[arg(long, value_name = "FILE")]
    plot: Option<Utf8PathBuf>,
}

/// What AIPerf found at one rate; times in milliseconds.
#[derive(Debug, PartialEq)]
struct Arrivals {
    rate: f64,
    failed: f64,
    /// Answers a second.
    throughput: f64,
    /// Good answers a second.
    goodput: f64,
    /// From the request to the first picture: half, nine of ten, 99 of 100.
    first: [f64; 3],
    /// From the request to the complete image.
    latency: [f64; 3],
}

/// Serves the trained system and lets AIPerf of these tools ask it at every rate; prints a table and draws a plot.
///
/// # Errors
/// When AIPerf is not there or fails, or an answer was an error.
pub fn run(root: &Utf8Path, program: &Utf8Path, tools: &Utf8Path, plan: &ArrivalArgs) -> Result<()> {
    let aiperf = tools.join("aiperf");
    if !aiperf.is_file() {
        bail!("there is no {aiperf}: run `cargo xtask setup --aiperf`");
    }
    let out = root.join(OUT);
    fs_err::create_dir_all(&out)?;
    let bundle = emoji32(root, program, &out)?;
    let (prompts, tokenizer) = (out.join("prompts.jsonl"), out.join("tokenizer"));
    let lines: String =
        (0..CLASSES).map(|class| format!("{}\n", json!({ "text": class.to_string() }))).collect();
    fs_err::write(&prompts, lines)?;
    write_tokenizer(&tokenizer)?;
    let rows = plan.batch.to_string();
    let engine = plan.engine.iter().flat_map(|e| ["--engine", e.as_str()]);
    let more: Vec<&str> = ["--batch", &rows, "--max-queue", "4096", "--max-connections", "4096"]
        .into_iter()
        .chain(engine)
        .collect();
    let mut found = Vec::new();
    println!("{program} {}, {rows} rows, emoji32, {} s at each rate", more.join(" "), plan.seconds);
    println!("{HEAD}");
    for rate in &plan.rates {
        // Each on a server that nobody has asked.
        let server = Served::start(program, &bundle, &more)?;
        let folder = out.join(format!("at-{rate}"));
        if folder.exists() {
            fs_err::remove_dir_all(&folder)?;
        }
        let log = fs_err::File::create(out.join(format!("at-{rate}.log")))?;
        let (seconds, limit) = (plan.seconds.to_string(), format!("request_latency:{}", plan.limit));
        let status = Command::new(aiperf.as_str())
            .args(["profile", "--model", "emoji32", "--endpoint-type", "image-generation", "--streaming"])
            .args(["--extra-inputs", "partial_images:1", "--url", &format!("http://{}", server.address)])
            .args(["--input-file", prompts.as_str(), "--custom-dataset-type", "single_turn"])
            .args(["--tokenizer", tokenizer.as_str(), "--random-seed", "1"])
            .args(["--request-rate", &rate.to_string(), "--arrival-pattern", "poisson"])
            .args(["--benchmark-duration", &seconds, "--benchmark-grace-period", GRACE, "--goodput", &limit])
            .args([
                "--artifact-dir",
                folder.as_str(),
                "--ui",
                "none",
                "--no-server-metrics",
                "--no-gpu-telemetry",
            ])
            // It leaves nothing in the user's folders.
            .env("HOME", out.as_str())
            .current_dir(&out)
            .stdout(log.file().try_clone()?)
            .stderr(log.into_parts().0)
            .status()?;
        if !status.success() {
            bail!("AIPerf failed ({status}) at {rate} arrivals a second: {OUT}/at-{rate}.log");
        }
        let summary = fs_err::read_to_string(folder.join(SUMMARY))?;
        let arrivals = Arrivals::read(*rate, &serde_json::from_str(&summary)?)?;
        println!("{}", arrivals.row());
        found.push(arrivals);
    }
    let plot = plan.plot.clone().unwrap_or_else(|| out.join("arrivals.svg"));
    fs_err::write(&plot, picture(&found, plan.limit))?;
    println!("the plot is {plot}");
    match found.iter().find(|a| a.failed > 0.0) {
        Some(arrivals) => bail!("{} requests failed at {} arrivals a second", arrivals.failed, arrivals.rate),
        None => Ok(()),
    }
}

/// Of the table.
const HEAD: &str = "\
| arrivals/s | images/s | within the limit/s | first picture p50 | p90 | p99 ms | image p50 | p90 | p99 ms |
|---|---|---|---|---|---|---|---|---|";

impl Arrivals {
    fn read(rate: f64, summary: &Value) -> Result<Self> {
        let number = |metric: &str, statistic: &str| {
            let found = summary[metric][statistic].as_f64();
            found.with_context(|| format!("AIPerf says no `{statistic}` of `{metric}`"))
        };
        let three = |metric: &str| -> Result<[f64; 3]> {
            Ok([number(metric, "p50")?, number(metric, "p90")?, number(metric, "p99")?])
        };
        Ok(Self {
            rate,
            // It is left out where there is none.
            failed: summary["error_request_count"]["avg"].as_f64().unwrap_or(0.0),
            throughput: number("request_throughput", "avg")?,
            goodput: number("goodput", "avg")?,
            // Its "time to first token" is of endpoints that make tokens; the first event of a stream is the first picture.
            first: three("http_req_waiting")?,
            latency: three("request_latency")?,
        })
    }

    fn row(&self) -> String {
        let Self { rate, throughput, goodput, first, latency, .. } = self;
        let mut row = format!("| {rate} | {throughput:.1} | {goodput:.1} |");
        // Writing to a text cannot fail.
        for ms in first {
            let _ = match *ms < COMMENT {
                true => write!(row, " {ms:.0} |"),
                false => write!(row, " over {COMMENT:.0} |"),
            };
        }
        for ms in latency {
            let _ = write!(row, " {ms:.0} |");
        }
        row
    }
}

/// Latencies, and good answers, over the arrivals.
fn picture(found: &[Arrivals], limit: u32) -> String {
    let curve = |name, value: &dyn Fn(&Arrivals) -> f64| Curve {
        name,
        points: found.iter().map(|a| (a.rate, value(a))).collect(),
    };
    let across = "arrivals a second (Poisson)";
    let latencies = vec![
        curve("image, p50", &|a| a.latency[0]),
        curve("image, p90", &|a| a.latency[1]),
        curve("image, p99", &|a| a.latency[2]),
        curve("first picture, p50", &|a| a.first[0]),
    ];
    let rates = vec![curve("answered", &|a| a.throughput), curve("within the limit", &|a| a.goodput)];
    svg(&[
        Chart { title: "Milliseconds".to_owned(), across, curves: latencies, logarithmic: true },
        Chart {
            title: format!("Images a second; limit {limit} ms"),
            across,
            curves: rates,
            logarithmic: false,
        },
    ])
}

/// AIPerf counts the tokens of prompts, for which it would fetch a tokenizer: this one knows words.
fn write_tokenizer(folder: &Utf8Path) -> Result<()> {
    fs_err::create_dir_all(folder)?;
    let words: serde_json::Map<String, Value> = (0..CLASSES)
        .map(|class| (class.to_string(), class.into()))
        .chain([("?".to_owned(), CLASSES.into())])
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "?" },
        "added_tokens": [], "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
    });
    let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?" });
    fs_err::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    Ok(fs_err::write(folder.join("tokenizer_config.json"), config.to_string())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Value {
        let times = |n: f64| json!({ "unit": "ms", "avg": n, "p50": n, "p90": 2.0 * n, "p99": 3.0 * n });
        json!({
            "request_throughput": { "unit": "requests/sec", "avg": 9.9 },
            "goodput": { "unit": "requests/sec", "avg": 9.1 },
            "http_req_waiting": times(40.0),
            "request_latency": times(70.0),
        })
    }

    #[test]
    fn a_summary_becomes_a_row_and_points() {
        let read = Arrivals::read(10.0, &summary()).unwrap();
        assert_eq!(read.row(), "| 10 | 9.9 | 9.1 | 40 | 80 | 120 | 70 | 140 | 210 |");
        assert_eq!(read.failed, 0.0);
        let late = Arrivals { first: [40.0, 9_999.0, 10_004.0], ..Arrivals::read(10.0, &summary()).unwrap() };
        assert_eq!(late.row(), "| 10 | 9.9 | 9.1 | 40 | 9999 | over 10000 | 70 | 140 | 210 |");
        assert_eq!(HEAD.lines().map(|l| l.matches('|').count()).collect::<Vec<_>>(), [10, 10]);
        assert_eq!(read.row().matches('|').count(), 10);
        let drawn = picture(&[read], 500);
        assert_eq!(drawn.matches("<circle").count(), 6);
        assert!(drawn.contains("limit 500 ms"));
    }

    /// What it does not say is no zero.
    #[test]
    fn a_summary_without_a_metric_is_refused() {
        for metric in ["request_throughput", "goodput", "http_req_waiting", "request_latency"] {
            let mut summary = summary();
            summary[metric] = Value::Null;
            let error = Arrivals::read(10.0, &summary).unwrap_err();
            assert!(error.to_string().contains(metric), "{error}");
        }
        let mut failed = summary();
        failed["error_request_count"] = json!({ "unit": "requests", "avg": 3 });
        assert_eq!(Arrivals::read(10.0, &failed).unwrap().failed, 3.0);
    }
}
