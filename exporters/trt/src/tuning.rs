//! Sizes to tune for, measured on a `generate` run or on images that are generated for it.

use camino::Utf8Path;
use dpar_export_bundle::{Bundle, BundleError, TargetError, digest};
use dpar_export_files::arrays::ArrayFile;
use dpar_export_files::patches::unpad;
use dpar_export_spec::{SystemSpec, Tuning, TuningSource};

/// Generates that many images with a bundle and gives their patch lengths.
pub type Calibrate<'a> = &'a mut dyn FnMut(&Bundle, u32) -> Result<Vec<Vec<usize>>, BundleError>;

/// Measures the `trace.npz` of a `generate` run.
///
/// # Errors
/// When the file has no patch lengths of images of this system.
pub fn of_trace(path: &Utf8Path, system: &SystemSpec) -> Result<Tuning, TargetError> {
    let hint = Some("give the trace.npz that `dpar-export generate` wrote with this model");
    let refuse = |e: &dyn std::fmt::Display| TargetError::refused(e.to_string(), hint);
    let array = ArrayFile::open(path)
        .and_then(|file| file.i64("patch_lengths", &[None, None]))
        .map_err(|e| refuse(&e))?;
    let tokens = system.tokens();
    let lengths = unpad(&array, tokens, path, "patch_lengths").map_err(|e| refuse(&e))?;
    let allowed = system.patch_rule.longest_patch(tokens);
    if let Some(l) = lengths.iter().flatten().find(|l| **l > allowed) {
        let message = format!("{path}: a patch of {l} tokens; this model's longest is {allowed}");
        return Err(refuse(&message));
    }
    let (_, sha256) = digest(path).map_err(|e| refuse(&e))?;
    let measured = measured(TuningSource::Trace, &lengths, tokens)?;
    Ok(Tuning { trace_sha256: Some(sha256), ..measured })
}

/// Measures patch lengths of generated images.
///
/// # Errors
/// When there is no image.
pub(super) fn measured(
    source: TuningSource,
    lengths: &[Vec<usize>],
    tokens: usize,
) -> Result<Tuning, TargetError> {
    Tuning::measured(source, lengths, tokens)
        .ok_or_else(|| TargetError::refused("no image to measure patches of", None))
}
