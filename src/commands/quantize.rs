//! `--quantize` of an export: what it asks for, and what came of it.

use dpar_export_checkpoint::Loaded;
use dpar_export_spec::{ComponentKind, Form, Precision, Quantize};

use super::failure::Failure;
use crate::bundle::Manifest;

/// The form of an export's graphs.
///
/// # Errors
/// When weights are to be quantized beside another precision than fp32, or those of a component that is not there.
pub(super) fn form(precision: Precision, quantize: &Quantize, loaded: &Loaded) -> Result<Form, Failure> {
    if quantize.any() && precision != Precision::Fp32 {
        let message = format!("weights are quantized in fp32 graphs, not in {precision}");
        return Err(Failure::usage(message, Some("leave --precision out")));
    }
    let kinds: Vec<ComponentKind> = loaded.components.iter().map(|c| c.spec.kind()).collect();
    if let Some(missing) = quantize.missing(&kinds) {
        let known: Vec<&str> = kinds.iter().map(|k| k.name()).collect();
        let message = format!("--quantize names {}, which this system does not have", missing.name());
        return Err(Failure::usage(message, Some(&format!("it has {}", known.join(", ")))));
    }
    Ok(Form { precision, quantize: quantize.clone() })
}

/// One line for each component of a quantized bundle.
pub(super) fn notes(manifest: &Manifest) -> Vec<String> {
    if manifest.numbers().weights.is_none() {
        return Vec::new();
    }
    let line = |c: &crate::bundle::ComponentEntry| match &c.quantized {
        Some(quantized) => format!("{} is quantized: {quantized}", c.kind.name()),
        None => format!("{} stays in {}", c.kind.name(), manifest.precision),
    };
    manifest.components.iter().map(line).collect()
}
