//! Where a result goes. Endings and help are the command's own.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;

use crate::failure::Failure;
use crate::staging::{FolderKind, StagedFile, StagedFolder};

/// A file or folder that a command writes.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// Output folder
    #[arg(short, long, value_name = "DIR")]
    pub output: Utf8PathBuf,
    #[command(flatten)]
    pub replace: ReplaceArgs,
}

/// A file or folder that a command writes if one is named, or else at a place that follows from its input.
#[derive(Debug, Clone, Args)]
pub struct OptionalOutputArgs {
    /// Output folder
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub replace: ReplaceArgs,
}

/// What happens to an earlier result.
#[derive(Debug, Clone, Copy, Args)]
pub struct ReplaceArgs {
    /// Replace an earlier output of this tool
    #[arg(long)]
    pub force: bool,
}

impl OutputArgs {
    /// Takes the name of a folder.
    pub fn folder(&self, kind: &FolderKind) -> Result<StagedFolder, Failure> {
        Ok(StagedFolder::create(&self.output, self.replace.force, kind)?)
    }

    /// Takes the name of an array file, which must end in `.npz`.
    pub fn array_file(&self) -> Result<ArrayOutput, Failure> {
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
pub struct ArrayOutput {
    /// As it was given.
    pub name: Utf8PathBuf,
    file: StagedFile,
}

impl ArrayOutput {
    /// Where to write it.
    pub fn path(&self) -> &Utf8Path {
        self.file.path()
    }

    /// It is whole.
    pub fn commit(self) -> Result<(), Failure> {
        Ok(self.file.commit()?)
    }
}
