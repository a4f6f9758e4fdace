//! `metrics`: from activations to numbers.

use camino::Utf8PathBuf;
use clap::Args;
use dpar_export_metrics::{Compute, Variant};
use serde_json::json;

use super::args::{ProtocolArgs, ThreadsArgs};
use super::failure::{Exit, Failure};
use super::printer::{Phases, Printer, Text, fixed, table};
use crate::bundle;
use crate::evaluate::EvaluateError;
use crate::evaluate::activations::{ActivationTable, StoredActivations, moments_of};
use crate::evaluate::apart::apart;
use crate::evaluate::measure::{PARTS, Side, measure};
use crate::evaluate::report::{Metric, MetricReport, MetricSettings, Network};

/// Metrics of activations.
#[derive(Debug, Clone, Args)]
#[command(mut_arg("threads", |a| a.help_heading(None::<&str>)
    .help("Threads [default: the machine's]; no number depends on it")))]
pub(crate) struct MetricsArgs {
    /// Samples: `pool_3` [N, 2048], optional `spatial`, `logits`, `extractor` (its name, u8)
    #[arg(long, value_name = "S.npz")]
    activations: Utf8PathBuf,
    /// Reference: the same, or `mu`, `sigma`, `mu_s`, `sigma_s`
    #[arg(long, value_name = "R.npz")]
    reference: Utf8PathBuf,
    #[command(flatten)]
    protocol: ProtocolArgs,
    #[command(flatten)]
    threads: ThreadsArgs,
    /// Seed of the KID subsets (numpy's RandomState)
    #[arg(long, value_name = "K", default_value = "2020", value_parser = clap::value_parser!(u64).range(0..=u64::from(u32::MAX)))]
    seed: u64,
}

/// What to read, and how to measure it.
pub(super) struct Plan {
    args: MetricsArgs,
    compute: Compute,
}

impl MetricsArgs {
    /// Starts the threads; the variant follows from the files.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        Ok(Plan { compute: compute(self.threads)?, args: self })
    }
}

/// Threads to compute with: those asked for, or the machine's.
pub(crate) fn compute(threads: ThreadsArgs) -> Result<Compute, Failure> {
    let threads = threads.or_all();
    crate::engines::warn_threads(threads);
    Compute::new(threads).map_err(|e| EvaluateError::metric("threads")(e).into())
}

/// Everything is read and nothing written but the report: Ctrl-C abandons the work where it is, since a decomposition of
/// a covariance cannot be asked to stop.
pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let mut phases = Phases::new(printer);
    let work = move |next: &mut dyn FnMut(&'static str) -> bool| report(&plan, next);
    let done = apart(1 + PARTS, work, &mut |phase, done, total| phases.show(phase, done, total));
    drop(phases);
    let (text, value) = done?;
    printer.document(|| text, value)?;
    Ok(Exit::Pass)
}

/// The report for people, and with `--json`. `next` is told what comes next.
fn report(
    plan: &Plan,
    next: &mut dyn FnMut(&'static str) -> bool,
) -> Result<(Text, serde_json::Value), Failure> {
    let Plan { args, compute } = plan;
    next("reading");
    let samples = StoredActivations::read(&args.activations)?;
    let Some(pool) = &samples.pool else {
        let message = format!("{} holds no `pool_3`", args.activations);
        return Err(Failure::usage(message, Some("samples are given as activations, not as statistics")));
    };
    let reference = StoredActivations::read(&args.reference)?;
    check(&samples, &reference, args)?;
    let network = &samples.network;
    let settings = MetricSettings {
        variant: variant(&samples, &reference, args)?,
        pr_mode: args.protocol.pr_mode(),
        kid: Some(args.protocol.kid(args.seed)),
    };
    let of = |table: &Option<ActivationTable>, what| {
        table.as_ref().map(|t| moments_of(t, what, compute)).transpose()
    };
    // Samples are measured; a reference file's statistics are used as they are.
    let (s_pool, s_spatial) = (of(&samples.pool, "pool_3")?, of(&samples.spatial, "spatial")?);
    let r_pool = match &reference.pool_moments {
        Some(stored) => Some(stored.clone()),
        None => of(&reference.pool, "pool_3 of the reference")?,
    };
    let r_spatial = match &reference.spatial_moments {
        Some(stored) => Some(stored.clone()),
        None => of(&reference.spatial, "spatial of the reference")?,
    };
    let samples_side = Side {
        pool_moments: s_pool.as_ref(),
        spatial_moments: s_spatial.as_ref(),
        pool: Some(pool.rows("pool_3")?),
        logits: samples.logits.as_ref().map(|t| t.rows("logits")).transpose()?,
    };
    let reference_side = Side {
        pool_moments: r_pool.as_ref(),
        spatial_moments: r_spatial.as_ref(),
        pool: reference.pool.as_ref().map(|t| t.rows("pool_3 of the reference")).transpose()?,
        logits: None,
    };
    let mut report = measure(samples_side, reference_side, network, &settings, compute, next)?;
    if reference.images && reference.pool.is_none() {
        report.reason(
            "the reference's images (`arr_0`) need a feature network: `dpar-export evaluate --extractor`",
        );
    }
    let digest = |path: &Utf8PathBuf| bundle::digest(path).map(|(_, sha)| sha);
    let value = json!({
        "samples": { "file": args.activations, "sha256": digest(&args.activations)?, "images": samples.count() },
        "reference": {
            "file": args.reference, "sha256": digest(&args.reference)?, "images": reference.count(),
            "stored_statistics": reference.pool_moments.is_some(),
        },
        "protocol": { "extractor": network, "settings": settings, "tool_version": env!("CARGO_PKG_VERSION") },
        "metrics": report.metrics, "not_computed": report.not_computed,
    });
    Ok((text(&report, network, &settings), value))
}

/// The variant whose resize made the features, where a file records it; `--variant` must not contradict it.
fn variant(
    samples: &StoredActivations,
    reference: &StoredActivations,
    args: &MetricsArgs,
) -> Result<Variant, Failure> {
    let [own, other] = [samples, reference].map(|a| a.preparation[1].as_deref());
    let asked = args.protocol.variant();
    let Some(resize) = own.or(other) else { return Ok(asked.unwrap_or_default()) };
    let file = if own.is_some() { &args.activations } else { &args.reference };
    match asked {
        Some(asked) if asked.resize().name() != resize => {
            let message = format!(
                "{file} holds features of images resized by {resize}, --variant {asked} is {}",
                asked.resize().name()
            );
            Err(Failure::usage(message, Some("leave out --variant, or make the features with its resize")))
        }
        Some(asked) => Ok(asked),
        None => Ok(Variant::ALL
            .into_iter()
            .find(|v| v.resize().name() == resize && samples.network.inception)
            .unwrap_or_default()),
    }
}

fn check(
    samples: &StoredActivations,
    reference: &StoredActivations,
    args: &MetricsArgs,
) -> Result<(), Failure> {
    if samples.network != reference.network {
        let (a, b) = (&samples.network.name, &reference.network.name);
        let message = format!("{} holds features of {a}, {} of {b}", args.activations, args.reference);
        return Err(Failure::usage(message, Some("compare features of one network; `extractor` names it")));
    }
    if let Some(unlike) = samples.other_preparation(reference) {
        return Err(Failure::usage(format!("{}: {unlike}", args.reference), None));
    }
    let width = |a: &StoredActivations| {
        let stored = a.pool_moments.as_ref().map(dpar_export_metrics::Moments::width);
        stored.or(a.pool.as_ref().map(ActivationTable::width))
    };
    if let (Some(a), Some(b)) = (width(samples), width(reference))
        && a != b
    {
        let message = format!("{} has {a} features, {} has {b}", args.activations, args.reference);
        return Err(Failure::usage(message, None));
    }
    Ok(())
}

/// The report for people.
pub(super) fn text(report: &MetricReport, network: &Network, settings: &MetricSettings) -> Text {
    let number = |v: f64| fixed(v, 6);
    let row = |(_, m): (&Metric, &crate::evaluate::report::Measured)| {
        let error = match (m.interval_90, m.standard_error) {
            (Some([low, high]), _) => format!("{} to {}", fixed(low, 4), fixed(high, 4)),
            (None, Some(error)) => format!("± {error:.4} (standard error)"),
            (None, None) => String::new(),
        };
        vec![m.name.clone(), number(m.value), error, m.definition.clone()]
    };
    let rows: Vec<Vec<String>> = report.metrics.iter().map(row).collect();
    let mut out = table(&["metric", "value", "90 % interval", "definition"], &rows);
    for (metric, reason) in &report.not_computed {
        let name = serde_json::to_value(metric).ok();
        let name = name.as_ref().and_then(|v| v.as_str()).unwrap_or_default();
        out.line(format_args!("{name}: not computed: {reason}"));
    }
    out.line(format_args!("features of {}, protocol of {}", network.name, settings.variant));
    out
}
