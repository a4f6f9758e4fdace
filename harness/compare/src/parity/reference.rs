//! The teacher-forced part of a golden folder as a source of a comparison.

use camino::Utf8Path;
use dpar_export_decode::generate::shift_entropy;
use dpar_export_decode::runtime::RunError;
use dpar_export_files::patches::unpad;
use dpar_export_spec::SystemSpec;

use crate::replay::{Forced, Replay};
use crate::tolerance::Recorded;
use crate::verify::open;

/// Tokens that a reference gives, and what it computed for them.
pub(crate) struct Reference {
    pub(crate) forced: Forced,
    /// Its patch lengths are those of the source that it was last compared with, where it recorded none.
    pub(crate) replay: Replay,
    /// Whether the reference holds patch lengths.
    pub(crate) has_patches: bool,
    /// What it was computed with.
    pub(crate) recorded: Recorded,
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
pub(crate) fn read(system: &SystemSpec, folder: &Utf8Path) -> Result<Reference, RunError> {
    let (file, settings) = open(folder)?;
    let (t, vocab) = (system.tokens(), system.vocab);
    let ids = file.i64("tokens", &[None, Some(t)])?;
    let n = ids.shape()[0];
    let labels = file.i64("class_labels", &[Some(n)])?;
    let classes = system.num_classes as i64;
    if let Some(bad) = labels.iter().find(|c| !(0..=classes).contains(*c)) {
        return Err(RunError::Input(format!("{}: class label {bad} is not in 0..={classes}", file.path())));
    }
    let logits = file.f32("logits", &[Some(n), Some(t), Some(vocab)])?;
    let token = |id: &i64| {
        let fits = u32::try_from(*id).ok().filter(|id| (*id as usize) < vocab);
        fits.ok_or_else(|| RunError::Input(format!("{}: token {id} is not in 0..{vocab}", file.path())))
    };
    let tokens: Vec<u32> = ids.iter().map(token).collect::<Result<_, _>>()?;
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
        forced: Forced { tokens, labels: labels.iter().copied().collect() },
        replay: Replay {
            patch_lengths,
            entropy,
            conditional: logits.into_raw_vec_and_offset().0,
            guided: None,
        },
        has_patches,
        recorded: settings.recorded(),
    })
}
