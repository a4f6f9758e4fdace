//! The output folder of an evaluation: it stays, and is gone on with.

use std::fs::TryLockError;

use camino::Utf8Path;
use dpar_export_files::staging::{StagingError, recover, remove_unfinished};

use crate::evaluate::{EvaluateError, InputKind};

const LOCK: &str = "lock";

/// Holds the output folder for this process. A folder with anything in it is only gone on with when asked.
///
/// # Errors
/// When it has something else in it, or another process holds it.
pub(super) fn hold(output: &Utf8Path, resume: bool) -> Result<fs_err::File, EvaluateError> {
    recover(output);
    let path = output.join(LOCK);
    let io = || EvaluateError::io(output);
    let goes_on = resume && path.exists();
    let free = || -> Result<(), EvaluateError> {
        let mut other = false;
        if output.exists() {
            for entry in output.as_std_path().read_dir().map_err(io())? {
                other |= entry.map_err(io())?.file_name() != LOCK;
            }
        }
        if !other || goes_on {
            return Ok(());
        }
        let hint = match path.exists() {
            true => "go on with --resume, or choose another --output",
            false => "choose another --output",
        };
        Err(EvaluateError::input(InputKind::Store, format!("{output} already exists"), Some(hint)))
    };
    free()?;
    fs_err::create_dir_all(output).map_err(io())?;
    let file =
        fs_err::OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(io())?;
    match file.file().try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StagingError::Busy(output.to_owned()).into()),
        Err(TryLockError::Error(e)) => return Err(io()(e)),
    }
    // Again: another run may have ended in between.
    free()?;
    remove_unfinished(output);
    Ok(file)
}
