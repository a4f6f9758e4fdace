//! `--precision` and `--quantize` of an export: what they ask for, and what came of it.

use dpar_export_checkpoint::Loaded;
use dpar_export_spec::{AskedPrecisions, ComponentKind, Form, Precision, Precisions, Quantize};

use super::failure::Failure;
use crate::bundle::Manifest;

/// The form of an export's graphs.
///
/// # Errors
/// When weights are to be quantized of a component in another precision than fp32, or a component is named that is not there.
pub(super) fn form(
    precision: Option<&AskedPrecisions>,
    quantize: &Quantize,
    loaded: &Loaded,
) -> Result<Form, Failure> {
    let kinds: Vec<ComponentKind> = loaded.components.iter().map(|c| c.spec.kind()).collect();
    let precision = precision.map_or(Ok(Precisions::default()), |asked| precisions(asked, &kinds))?;
    there("--quantize", quantize.missing(&kinds), &kinds)?;
    let other = kinds.iter().find(|k| quantize.of(**k).is_some() && precision.of(**k) != Precision::Fp32);
    if let Some(kind) = other {
        let (name, own) = (kind.name(), precision.of(*kind));
        let message =
            format!("weights are quantized in fp32 graphs, and those of {name} are asked for in {own}");
        let hint = format!("leave --precision out, or name others: {name} stays in fp32");
        return Err(Failure::usage(message, Some(&hint)));
    }
    Ok(Form { precision, quantize: quantize.clone(), ..Form::default() })
}

/// What is asked for, of a system of these components.
///
/// # Errors
/// When one is named that is not there.
pub(super) fn precisions(asked: &AskedPrecisions, kinds: &[ComponentKind]) -> Result<Precisions, Failure> {
    there("--precision", asked.missing(kinds), kinds)?;
    Ok(asked.of(kinds))
}

/// Nothing is missing that an option names.
fn there(option: &str, missing: Option<ComponentKind>, kinds: &[ComponentKind]) -> Result<(), Failure> {
    let Some(missing) = missing else { return Ok(()) };
    let known: Vec<&str> = kinds.iter().map(|k| k.name()).collect();
    let message = format!("{option} names {}, which this system does not have", missing.name());
    Err(Failure::usage(message, Some(&format!("it has {}", known.join(", ")))))
}

/// One line for each component of a quantized bundle.
pub(super) fn notes(manifest: &Manifest) -> Vec<String> {
    if manifest.numbers().weights().is_none() {
        return Vec::new();
    }
    let line = |c: &crate::bundle::ComponentEntry| match &c.quantized {
        Some(quantized) => format!("{} is quantized: {quantized}", c.kind.name()),
        None => format!("{} stays in {}", c.kind.name(), manifest.precision_of(c.kind.name())),
    };
    manifest.components.iter().map(line).collect()
}
