//! The teacher-forced part of a golden folder as a source of a comparison.

use camino::Utf8Path;
use dpar_export_decode::generate::shift_entropy;
use dpar_export_decode::replay::{ForcedTokens, Replay};
use dpar_export_files::patches::unpad;
use dpar_export_spec::SystemSpec;

use crate::CompareError;
use crate::tolerance::Recorded;
use crate::verify::{Drawing, logits_shape, not_compared, open, own_columns};

/// Tokens that a reference gives, and what it computed for them.
pub(crate) struct Reference {
    pub(crate) forced: ForcedTokens,
    /// Its patch lengths are those of the source that it was last compared with, where it recorded none.
    pub(crate) replay: Replay,
    /// Whether the reference holds patch lengths.
    pub(crate) has_patches: bool,
    /// What it was computed with.
    pub(crate) recorded: Recorded,
    /// How its tokens were drawn, where it says so.
    pub(crate) drawing: Option<Drawing>,
}

impl Reference {
    /// Takes the patches of the source that it is compared with, where it recorded none: then no boundary can differ.
    pub(crate) fn follow(&mut self, own: &Replay) {
        if !self.has_patches {
            self.replay.patch_lengths.clone_from(&own.patch_lengths);
        }
    }
}

/// Reads the arrays of a golden folder.
///
/// # Errors
/// When they are not what `golden.json` recorded, have no teacher-forced logits, or do not fit the system.
pub(crate) fn read(system: &SystemSpec, folder: &Utf8Path) -> Result<Reference, CompareError> {
    let (file, settings) = open(folder)?;
    if !settings.others.is_empty() {
        tracing::warn!("{}: {}", file.path(), not_compared(&settings.others));
    }
    let (t, vocab) = (system.tokens(), system.vocab);
    let ids = file.i64_in("tokens", &[None, Some(t)], "token", 0..vocab as i64)?;
    let n = ids.shape()[0];
    let labels = file.i64_in("class_labels", &[Some(n)], "class label", system.class_labels())?;
    let logits = file.f32("logits", &logits_shape(&file, system, n)?)?;
    let columns = logits.shape()[2];
    let tokens: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
    let has_patches = file.contains("patch_lengths");
    let patch_lengths = match has_patches {
        true => unpad(&file.i64("patch_lengths", &[Some(n), None])?, t, file.path(), "patch_lengths")?,
        false => Vec::new(),
    };
    let entropy = match system.entropy().is_some() && file.contains("entropy") {
        true => {
            let next: Vec<f32> = file.f32("entropy", &[Some(n), Some(t)])?.iter().copied().collect();
            next.chunks(t).flat_map(shift_entropy).collect()
        }
        false => vec![f32::NAN; n * t],
    };
    Ok(Reference {
        forced: ForcedTokens { tokens, labels: labels.iter().copied().collect() },
        replay: Replay {
            patch_lengths,
            entropy,
            conditional: own_columns(logits.into_raw_vec_and_offset().0, columns, vocab),
            guided: None,
        },
        has_patches,
        recorded: settings.recorded(),
        drawing: settings.drawing,
    })
}
