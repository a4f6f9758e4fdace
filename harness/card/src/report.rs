//! Reports of this tool, as a card cites them: what each is, and the numbers in it.

use camino::Utf8Path;
use dpar_export_bundle::unique_keys;
use dpar_export_inputs::{limits, without_mark};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::CardError;

/// A report that a card cites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CitedReport {
    /// Its file's name.
    pub name: String,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
    /// SHA-256 of the key that signed it, where its attestation was checked.
    pub signed: Option<String>,
    /// What made it.
    pub kind: &'static str,
    /// What it says.
    pub numbers: Vec<CitedNumber>,
}

/// A number of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CitedNumber {
    /// What was measured or compared.
    pub what: String,
    /// The value, as it is shown.
    pub value: String,
    /// Two-sided 90 % interval, where there is one.
    pub interval_90: Option<[String; 2]>,
}

impl CitedNumber {
    fn new(what: impl Into<String>, value: impl Into<String>) -> Self {
        Self { what: what.into(), value: value.into(), interval_90: None }
    }
}

/// Forms of reports: how each is known, which bundles it speaks of, and what is taken from it.
struct ReportForm {
    kind: &'static str,
    is: fn(&Value) -> bool,
    bundles: fn(&Value) -> Vec<Option<&str>>,
    numbers: fn(&Value) -> Vec<CitedNumber>,
}

const FORMS: [ReportForm; 6] = [
    ReportForm {
        kind: "parity",
        is: |v| v["pairs"].is_array() && v["bundle"].is_object(),
        bundles: |v| vec![v["bundle"]["manifest_sha256"].as_str()],
        numbers: parity,
    },
    ReportForm {
        kind: "verify",
        is: |v| v["checks"].is_array(),
        bundles: |v| vec![v["bundle"].as_str()],
        numbers: verify,
    },
    ReportForm {
        kind: "reproduce",
        is: |v| v["systems"].is_array(),
        bundles: |v| items(&v["systems"]).map(|s| s["bundle"].as_str()).collect(),
        numbers: reproduce,
    },
    ReportForm {
        kind: "evaluate",
        is: |v| v["metrics"].is_object() && v["protocol"].is_object(),
        bundles: |v| vec![v["samples"]["generated"]["bundle"].as_str()],
        numbers: evaluate,
    },
    ReportForm {
        kind: "bench",
        is: |v| cases(v).is_array(),
        bundles: |v| items(cases(v)).map(|c| c["bundle"].as_str()).collect(),
        numbers: bench,
    },
    ReportForm {
        kind: "generate",
        is: |v| v["mean_steps"].is_f64(),
        bundles: |v| vec![v["bundle"].as_str()],
        numbers: |v| steps(v).into_iter().collect(),
    },
];

impl CitedReport {
    /// Reads a report, which must speak of the bundle with this manifest and of no other.
    ///
    /// # Errors
    /// When it cannot be read, is none of this tool, does not say which bundle it is of, or is of another.
    pub fn read(path: &Utf8Path, manifest_sha256: &str) -> Result<Self, CardError> {
        let refuse = |message: String| CardError::Report { path: path.to_owned(), message };
        let bytes = dpar_export_inputs::read(path, limits::TEXT).map_err(|e| refuse(e.to_string()))?;
        unique_keys(&bytes).map_err(|e| refuse(format!("not a report: {e}")))?;
        let value: Value =
            serde_json::from_slice(without_mark(&bytes)).map_err(|e| refuse(format!("not a report: {e}")))?;
        let form = FORMS.iter().find(|form| (form.is)(&value));
        let form = form.ok_or_else(|| refuse("not a report that a card can cite".to_owned()))?;
        let bundles = (form.bundles)(&value);
        if bundles.is_empty() {
            return Err(refuse("it is of no bundle".to_owned()));
        }
        for bundle in bundles {
            let bundle = bundle.ok_or_else(|| refuse("it does not say which bundle it is of".to_owned()))?;
            if bundle != manifest_sha256 {
                return Err(CardError::OtherBundle {
                    path: path.to_owned(),
                    found: bundle.to_owned(),
                    wanted: manifest_sha256.to_owned(),
                });
            }
        }
        Ok(Self {
            name: path.file_name().unwrap_or_default().to_owned(),
            sha256: hex::encode(Sha256::digest(&bytes)),
            signed: None,
            kind: form.kind,
            numbers: (form.numbers)(&value),
        })
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A report of `bench` is a file, or the document that it prints.
fn cases(report: &Value) -> &Value {
    if report["cases"].is_array() { &report["cases"] } else { &report["report"]["cases"] }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("unknown")
}

fn fixed(value: &Value, digits: usize) -> Option<String> {
    value.as_f64().map(|v| format!("{v:.digits$}"))
}

/// An engine with its version.
fn engine(info: &Value) -> String {
    let (name, version) = (text(&info["engine"]), text(&info["version"]));
    format!("{name} {version} on {} ({})", text(&info["device"]), text(&info["provider"]))
}

fn verdict(value: &Value, on: String) -> CitedNumber {
    CitedNumber::new(format!("verdict on {on}"), text(&value["verdict"]))
}

fn steps(value: &Value) -> Option<CitedNumber> {
    let mean = fixed(&value["mean_steps"], 2)?;
    // What the steps follow from: another threshold or guidance makes others.
    let mut told = String::new();
    let rule = &value["patch_rule"];
    let settings = [
        ("threshold", &rule["threshold"]),
        ("patch size", &rule["patch_size"]),
        ("cfg", &value["cfg_scale"]),
    ];
    for (name, setting) in settings.into_iter().filter(|(_, setting)| setting.is_number()) {
        told += &format!(", {name} {setting}");
    }
    Some(CitedNumber::new(format!("mean steps an image, on {}{told}", engine(&value["engine"])), mean))
}

fn verify(value: &Value) -> Vec<CitedNumber> {
    let on = engine(&value["engine"]);
    let of = |word: &str| items(&value["checks"]).filter(|c| c["status"] == word).count();
    let (passed, failed) = (of("pass"), of("fail"));
    let mut numbers = vec![
        verdict(value, on),
        CitedNumber::new("checks that passed", passed.to_string()),
        CitedNumber::new("checks that failed", failed.to_string()),
    ];
    let logits = items(&value["checks"]).find(|c| c["name"] == "logits");
    let largest = logits.and_then(|c| c["max_abs"].as_f64());
    numbers.extend(largest.map(|v| CitedNumber::new("largest difference of a logit", format!("{v:.2e}"))));
    numbers
}

fn parity(value: &Value) -> Vec<CitedNumber> {
    let ran = items(&value["engines"]).filter(|e| e["status"] == "ran").map(|e| engine(&e["info"]));
    let ran: Vec<String> = ran.collect();
    let mut numbers = vec![verdict(value, ran.join(", "))];
    for pair in items(&value["pairs"]) {
        let what = format!("{} against {}", text(&pair["engine"]), text(&pair["baseline"]));
        numbers.push(CitedNumber::new(what, text(&pair["status"])));
    }
    numbers
}

fn reproduce(value: &Value) -> Vec<CitedNumber> {
    let mut numbers = Vec::new();
    for system in items(&value["systems"]) {
        let on = format!("{}, {} images", engine(&system["engine"]), system["images"]);
        numbers.push(verdict(system, on));
        for gate in items(&system["gates"]) {
            let found = fixed(&gate["found"], 4).unwrap_or_else(|| "none".to_owned());
            let value = format!("{found} ({})", text(&gate["verdict"]));
            numbers.push(CitedNumber::new(text(&gate["name"]), value));
        }
    }
    numbers
}

fn evaluate(value: &Value) -> Vec<CitedNumber> {
    let images = &value["protocol"]["images"];
    let metrics = value["metrics"].as_object().into_iter().flatten();
    let mut numbers: Vec<CitedNumber> = metrics
        .filter_map(|(_, measured)| {
            let bound = |i: usize| fixed(&measured["interval_90"][i], 4);
            Some(CitedNumber {
                what: format!("{}, {images} images", text(&measured["name"])),
                value: fixed(&measured["value"], 4)?,
                interval_90: bound(0).zip(bound(1)).map(|(low, high)| [low, high]),
            })
        })
        .collect();
    let mean = fixed(&value["samples"]["mean_steps"], 2);
    numbers.extend(mean.map(|mean| CitedNumber::new("mean steps an image", mean)));
    numbers
}

fn bench(value: &Value) -> Vec<CitedNumber> {
    let one = |case: &Value| {
        let mut on = format!(
            "{} {}, batch {}, {} threads",
            text(&case["engine"]),
            text(&case["engine_version"]),
            case["batch"],
            case["threads"].as_u64().map_or_else(|| "all".to_owned(), |n| n.to_string()),
        );
        if let Some(schedule) = case["schedule"].as_str() {
            on += &format!(", {schedule}");
        }
        if case["cfg_scale"].is_number() {
            on += &format!(", cfg {}", case["cfg_scale"]);
        }
        let speed = fixed(&case["images_per_second"], 3)?;
        Some(CitedNumber::new(format!("images a second on {on}"), speed))
    };
    items(cases(value)).filter_map(one).collect()
}
