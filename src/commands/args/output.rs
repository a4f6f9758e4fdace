//! Where a result goes. Endings and help are the command's own.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;

use crate::commands::failure::Failure;
use crate::staging::{FolderKind, StagedFile, StagedFolder};

/// A file or folder that a command writes.
#[derive(Debug, Clone, Args)]
pub(crate) struct OutputArgs {
    /// Output folder
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Utf8PathBuf,
    #[command(flatten)]
    pub(crate) replace: ReplaceArgs,
}

/// A file or folder that a command writes if one is named, or else at a place that follows from its input.
#[derive(Debug, Clone, Args)]
pub(crate) struct OptionalOutputArgs {
    /// Output folder
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub(crate) replace: ReplaceArgs,
}

/// What happens to an earlier result.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ReplaceArgs {
    /// Replace an earlier output of this tool
    #[arg(long)]
    pub(crate) force: bool,
}

impl OutputArgs {
    /// Takes the name of a folder.
    pub(crate) fn folder(&self, kind: &FolderKind) -> Result<StagedFolder, Failure> {
        Ok(StagedFolder::create(&self.output, self.replace.force, kind)?)
    }

    /// Takes the name of an array file, which must end in `.npz`.
    pub(crate) fn array_file(&self) -> Result<ArrayOutput, Failure> {
        if self.output.extension() != Some("npz") {
            return Err(Failure::usage(format!("{} does not end in .npz", self.output), None));
        }
        Ok(ArrayOutput {
            name: self.output.clone(),
            file: StagedFile::create(&self.output, self.replace.force)?,
        })
    }
}

/// An array file whose name is taken.
pub(crate) struct ArrayOutput {
    /// As it was given.
    pub(crate) name: Utf8PathBuf,
    file: StagedFile,
}

impl ArrayOutput {
    /// Where to write it.
    pub(crate) fn path(&self) -> &Utf8Path {
        self.file.path()
    }

    /// It is whole.
    pub(crate) fn commit(self) -> Result<(), Failure> {
        Ok(self.file.commit()?)
    }
}
