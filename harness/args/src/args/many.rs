//! How many images a file may bring.

use clap::Args;
use dpar_export_inputs::limits;

use crate::arrays::ArrayFile;
use crate::failure::Failure;

/// A limit that can be raised.
#[derive(Debug, Clone, Args)]
pub struct ManyArgs {
    /// Most images that are taken from a file
    #[arg(long, value_name = "N", default_value_t = limits::IMAGES, help_heading = "Limits")]
    max_images: u64,
}

impl ManyArgs {
    /// Refuses an array with more rows, before it is read.
    pub fn check(&self, file: &ArrayFile, array: &str) -> Result<(), Failure> {
        let images = file.info(array)?.shape.first().copied().unwrap_or(0) as u64;
        if images <= self.max_images {
            return Ok(());
        }
        let message =
            format!("{}: `{array}` holds {images} images, {} are allowed", file.path(), self.max_images);
        Err(Failure::usage(message, Some("if the file is what you mean, raise the limit with --max-images")))
    }
}
