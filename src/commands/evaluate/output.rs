//! The output folder of an evaluation: it stays, and is gone on with.

use std::fs::TryLockError;

use camino::Utf8Path;

use crate::commands::failure::Failure;
use crate::staging::{StagingError, recover, remove_unfinished};

const LOCK: &str = "lock";

/// Holds the output folder for this process. A folder with anything in it is only gone on with when asked.
pub(super) fn hold(output: &Utf8Path, resume: bool) -> Result<fs_err::File, Failure> {
    recover(output);
    let path = output.join(LOCK);
    let goes_on = resume && path.exists();
    let free = || -> Result<(), Failure> {
        let mut other = false;
        if output.exists() {
            for entry in output.as_std_path().read_dir()? {
                other |= entry?.file_name() != LOCK;
            }
        }
        if !other || goes_on {
            return Ok(());
        }
        let hint = match path.exists() {
            true => "go on with --resume, or choose another --output",
            false => "choose another --output",
        };
        Err(Failure::usage(format!("{output} already exists"), Some(hint)))
    };
    free()?;
    fs_err::create_dir_all(output)?;
    let file = fs_err::OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
    match file.file().try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StagingError::Busy(output.to_owned()).into()),
        Err(TryLockError::Error(e)) => return Err(e.into()),
    }
    // Again: another run may have ended in between.
    free()?;
    remove_unfinished(output);
    Ok(file)
}
