//! The published table, and runs held against one of its rows.

use camino::Utf8Path;
use dpar_export_metrics::{MetricError, PRINTED_SEEDS, Resize, Variant, Verdict, compare_with_printed};
use dpar_export_spec::{SystemKind, SystemSpec, text};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Gate;
use crate::error::{EvaluateError, InputKind};
use crate::evaluate::protocol::SCHEMA;
use crate::features::FeatureExtractor;

/// The data file.
const PAPER: &str = include_str!("paper.json");
/// Larger files are no reports of a run.
const MOST_REPORT: u64 = 16 << 20;
/// Side in pixels of the samples behind every row; larger images were resized to it before they became bytes.
pub const EVALUATED_SIDE: usize = 256;
/// Why samples of another size are refused.
const AT_256: &str = "every row of the table is evaluated at 256 px, images of 384 px resized to 256 on float images \
                      before they become bytes";

/// The published table.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paper {
    /// Where the numbers were printed and how they were measured.
    pub source: String,
    /// Images behind every FID.
    pub images: u64,
    /// The systems.
    pub rows: Vec<PaperRow>,
}

/// One system of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperRow {
    /// Name, e.g. `DPAR-B`.
    pub name: String,
    /// What kind of system.
    pub system: SystemKind,
    /// Parameters as printed.
    pub parameters: String,
    /// Side of the images in pixels.
    pub image_size: usize,
    /// Tokens per image.
    pub tokens: usize,
    /// Guidance, where it was printed.
    pub cfg_scale: Option<f32>,
    /// FID-50K.
    pub fid: f64,
    /// Inception Score.
    pub inception_score: f64,
    /// Precision.
    pub precision: f64,
    /// Recall.
    pub recall: f64,
    /// Mean steps of the large transformer.
    pub steps: f64,
}

impl Paper {
    /// The table.
    ///
    /// # Errors
    /// Never, as a test shows: the file is part of the program.
    pub fn table() -> Result<Self, EvaluateError> {
        serde_json::from_str(PAPER).map_err(EvaluateError::json("paper.json"))
    }

    /// The row of that name, letters of either case.
    ///
    /// # Errors
    /// With the names there are.
    pub fn row(&self, name: &str) -> Result<&PaperRow, EvaluateError> {
        self.rows.iter().find(|r| r.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let names: Vec<&str> = self.rows.iter().map(|r| r.name.as_str()).collect();
            table(format!("the table has no `{name}`; it has {}", text::list(names)))
        })
    }
}

impl PaperRow {
    /// That a system can be held against this row.
    ///
    /// # Errors
    /// When it is of another kind or makes another number of tokens.
    pub fn check_system(&self, system: &SystemSpec) -> Result<(), EvaluateError> {
        let (found, wanted) = (system.tokens(), self.tokens);
        if found != wanted {
            return Err(table(format!(
                "{} makes images of {found} tokens, the row {} has {wanted}: it is not the system of the row",
                system.name, self.name
            )));
        }
        if system.kind != self.system {
            return Err(table(format!(
                "{} is a {} system, the row {} is {}",
                system.name, system.kind, self.name, self.system
            )));
        }
        Ok(())
    }

    /// That what an extractor sees in the images of a system is what the table is about.
    ///
    /// # Errors
    /// With what is not as for the table.
    pub fn check_extractor(
        &self,
        system: &SystemSpec,
        extractor: &FeatureExtractor,
    ) -> Result<(), EvaluateError> {
        let (identity, side) = (extractor.identity(), system.image_size);
        let input = |message| Err(table(message));
        if !extractor.spec().is_fid() {
            return input(format!(
                "the table's numbers are on FID-Inception, the extractor is {}: leave it out, or give FID-Inception",
                extractor.spec().network_name()
            ));
        }
        if identity.resize != Resize::Tf1Bilinear {
            let (found, wanted) = (identity.resize.name(), Resize::Tf1Bilinear.name());
            return input(format!("the extractor resizes by {found}, the table is measured with {wanted}"));
        }
        if side != self.image_size {
            return input(format!(
                "{} makes images of {side} px, the row {} has {}: it is not the system of the row",
                system.name, self.name, self.image_size
            ));
        }
        Ok(())
    }
}

/// The numbers of one run; what was not measured is `None`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Run {
    /// Images.
    pub images: Option<u64>,
    /// FID, on FID-Inception.
    pub fid: Option<f64>,
    /// Inception Score, on FID-Inception.
    pub inception_score: Option<f64>,
    /// Precision, on FID-Inception.
    pub precision: Option<f64>,
    /// Recall, on FID-Inception.
    pub recall: Option<f64>,
    /// Mean steps.
    pub steps: Option<f64>,
    /// The protocol without its sampling, where the report has one: runs that are compared have the same.
    #[serde(skip)]
    pub protocol: Option<Value>,
    /// What tells the samples from those of another run, where the report says it.
    #[serde(skip)]
    pub samples: Option<String>,
    /// The report's path and the SHA-256 of its bytes, where it was read from one.
    #[serde(skip)]
    pub report: Option<(String, String)>,
}

impl Run {
    /// Reads a `metrics.json` as `evaluate` writes it: `metrics` has a number, or an object with a `value`, for `fid`,
    /// `inception_score`, `precision` and `recall`; `mean_steps` is beside it or in `samples`; `images` is beside
    /// it or in `protocol`.
    ///
    /// # Errors
    /// When the file cannot be read, is no such report or holds none of the numbers.
    pub fn read(path: &Utf8Path) -> Result<Self, EvaluateError> {
        let bad = |message: &dyn std::fmt::Display| report(format!("{path}: {message}"));
        let text = dpar_export_inputs::read_to_string(path, MOST_REPORT).map_err(|e| bad(&e))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| bad(&e))?;
        // A report of another tool says no schema; of another schema a field may mean something else.
        if json.get("schema").is_some_and(|found| *found != SCHEMA) {
            return Err(bad(&format!("it has schema {}, this version reads {SCHEMA}", json["schema"])));
        }
        let number = |v: &Value| v.as_f64().or_else(|| v["value"].as_f64()).filter(|v| v.is_finite());
        let metric = |name: &str| number(&json["metrics"][name]);
        // The table's numbers are on FID-Inception: those of another network are not comparable.
        let other = json["protocol"]["network"]["inception"] == Value::Bool(false);
        let on_inception = |name: &str| if other { None } else { metric(name) };
        let mut protocol = json.get("protocol").cloned();
        if let Some(fields) = protocol.as_mut().and_then(Value::as_object_mut) {
            fields.remove("sampling");
        }
        let run = Self {
            images: json["images"].as_u64().or_else(|| json["protocol"]["images"].as_u64()),
            fid: on_inception("fid"),
            inception_score: on_inception("inception_score"),
            precision: on_inception("precision"),
            recall: on_inception("recall"),
            steps: number(&json["mean_steps"]).or_else(|| number(&json["samples"]["mean_steps"])),
            protocol,
            samples: json["samples"]["pixels_sha256"].as_str().map(str::to_owned),
            report: Some((path.to_string(), hex::encode(Sha256::digest(&text)))),
        };
        if [run.fid, run.inception_score, run.precision, run.recall, run.steps].iter().all(Option::is_none) {
            return Err(bad(
                &"it holds none of `metrics.fid`, `.inception_score`, `.precision`, `.recall`, `mean_steps`",
            ));
        }
        run.check_protocol()?;
        Ok(run)
    }

    /// That a run which says how it was measured was measured as the table.
    fn check_protocol(&self) -> Result<(), EvaluateError> {
        let Some(protocol) = &self.protocol else { return Ok(()) };
        let path = self.report.as_ref().map_or("a run", |(path, _)| path);
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let (variant, resize) = (&protocol["settings"]["variant"], &protocol["extractor"]["resize"]);
        for (what, found, wanted) in [
            ("metrics of the variant", variant, Variant::default().name()),
            ("images resized for the network by", resize, Resize::default().name()),
        ] {
            if found != wanted {
                return Err(report(format!(
                    "{path}: {what} {}, the table is measured with {wanted}",
                    text(found)
                )));
            }
        }
        let size = &protocol["image_size"];
        if *size != serde_json::json!([EVALUATED_SIDE, EVALUATED_SIDE]) {
            return Err(report(format!(
                "{path}: samples of {size} px; {AT_256}: `evaluate` a bundle with --resize 256, or its images of `generate --resize 256`"
            )));
        }
        Ok(())
    }

    /// That runs can be taken together: one protocol, and no report and no set of samples twice.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn check_alike(runs: &[Self]) -> Result<(), EvaluateError> {
        let mut protocols = runs.iter().filter_map(|r| r.protocol.as_ref());
        if let Some(first) = protocols.next()
            && protocols.any(|p| p != first)
        {
            return Err(report(
                "the runs have different protocols (extractor, settings, reference or number of images)"
                    .to_owned(),
            ));
        }
        let reports: Vec<&(String, String)> = runs.iter().filter_map(|r| r.report.as_ref()).collect();
        for (i, (path, digest)) in reports.iter().enumerate() {
            if let Some((first, _)) = reports[..i].iter().find(|(_, d)| d == digest) {
                return Err(report(format!(
                    "{first} and {path} are the same report: it would count as two seeds"
                )));
            }
        }
        let seen: Vec<&String> = runs.iter().filter_map(|r| r.samples.as_ref()).collect();
        match seen.iter().enumerate().any(|(i, s)| seen[..i].contains(s)) {
            true => Err(report("two runs have the same samples: they would count as two seeds".to_owned())),
            false => Ok(()),
        }
    }
}

/// A system or network that is not the table's.
fn table(message: String) -> EvaluateError {
    EvaluateError::input(InputKind::Table, message, None)
}

/// A report that cannot be held against the table.
fn report(message: String) -> EvaluateError {
    EvaluateError::input(InputKind::Report, message, None)
}

/// Holds runs of different seeds against a row, metric by metric: |mean − printed| ≤ max(2 %, 3·SE) from three runs on.
/// A metric that needs the images of the table is inconclusive at any other number: FID's bias depends on it. So is FID
/// where no run has one: without it nothing else makes a row pass.
///
/// # Errors
/// When a number is not finite, or there is no run.
pub fn gate(paper: &Paper, row: &PaperRow, runs: &[Run]) -> Result<Vec<Gate>, MetricError> {
    type Get = fn(&Run) -> Option<f64>;
    let columns: [(&str, f64, Get, bool); 5] = [
        ("FID", row.fid, |r| r.fid, true),
        ("Inception Score", row.inception_score, |r| r.inception_score, true),
        ("Precision", row.precision, |r| r.precision, true),
        ("Recall", row.recall, |r| r.recall, true),
        ("mean steps", row.steps, |r| r.steps, false),
    ];
    let mut gates = Vec::new();
    for (name, printed, get, needs_images) in columns {
        let values: Vec<f64> = runs.iter().filter_map(get).collect();
        if values.is_empty() {
            if name == "FID" {
                let mut gate = Gate::new(name, Verdict::Inconclusive);
                gate.reference = Some(printed);
                gate.detail = format!("not measured, printed {printed}; nothing else makes a row pass");
                gates.push(gate);
            }
            continue;
        }
        let found = compare_with_printed(&values, printed)?;
        let mut gate = Gate::new(name, found.verdict);
        gate.reference = Some(printed);
        gate.found = Some(found.mean);
        gate.difference = Some(found.mean - printed);
        gate.standard_error = found.standard_error;
        gate.margin = Some(found.tolerance);
        let seeds = values.len();
        gate.detail = format!("{seeds} run{}, printed {printed}", if seeds == 1 { "" } else { "s" });
        if seeds < PRINTED_SEEDS {
            gate.detail += &format!("; {PRINTED_SEEDS} are needed to pass");
        }
        let unlike = runs.iter().any(|r| get(r).is_some() && r.images != Some(paper.images));
        if needs_images && unlike {
            gate.verdict = Verdict::Inconclusive;
            gate.detail += &format!("; not measured on {} images, so not comparable", paper.images);
        }
        gates.push(gate);
    }
    Ok(gates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_fourteen_systems() {
        let paper = Paper::table().unwrap();
        assert_eq!((paper.rows.len(), paper.images), (14, 50_000));
        assert_eq!(paper.row("dpar-384-xxl").unwrap().fid, 2.30);
        let e = paper.row("DPAR-XXXL").unwrap_err();
        assert!(e.to_string().contains("LlamaGen-384-B"), "{e}");
        for row in &paper.rows {
            let tokens = (row.image_size / 16).pow(2);
            assert_eq!(row.tokens, tokens, "{}", row.name);
            assert!(row.name.starts_with("DPAR") == row.cfg_scale.is_some(), "{}", row.name);
            assert!((row.steps < row.tokens as f64) == row.name.starts_with("DPAR"), "{}", row.name);
        }
    }

    fn verdict(gates: &[Gate], name: &str) -> Verdict {
        gates.iter().find(|g| g.name == name).unwrap().verdict
    }

    #[test]
    fn three_seeds_decide_one_does_not() {
        let paper = Paper::table().unwrap();
        let row = paper.row("DPAR-B").unwrap();
        let run = |fid: f64, steps: f64| Run {
            images: Some(50_000),
            fid: Some(fid),
            steps: Some(steps),
            ..Run::default()
        };
        let three = [run(3.97, 142.1), run(4.02, 141.8), run(3.95, 142.0)];
        let gates = gate(&paper, row, &three).unwrap();
        assert_eq!(gates.len(), 2, "what no run has is no gate");
        assert_eq!((verdict(&gates, "FID"), verdict(&gates, "mean steps")), (Verdict::Pass, Verdict::Pass));
        let off = [run(4.27, 142.0), run(4.28, 142.0), run(4.26, 142.0)];
        assert_eq!(verdict(&gate(&paper, row, &off).unwrap(), "FID"), Verdict::Fail);
        // A single run: 1 % off decides nothing, 2 % off fails.
        let one = |fid: f64| verdict(&gate(&paper, row, &[run(fid, 142.0)]).unwrap(), "FID");
        assert_eq!((one(4.02), one(4.07)), (Verdict::Inconclusive, Verdict::Fail));
        let few = three.clone().map(|r| Run { images: Some(5000), ..r });
        let gates = gate(&paper, row, &few).unwrap();
        assert_eq!(verdict(&gates, "FID"), Verdict::Inconclusive, "another N is never compared");
        assert_eq!(verdict(&gates, "mean steps"), Verdict::Pass);
        let steps = three.map(|r| Run { fid: None, ..r });
        let gates = gate(&paper, row, &steps).unwrap();
        assert_eq!(
            (verdict(&gates, "FID"), verdict(&gates, "mean steps")),
            (Verdict::Inconclusive, Verdict::Pass)
        );
    }
}
