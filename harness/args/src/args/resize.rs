//! Of which size images are written or measured.

use clap::Args;

/// Images of another size than the tokenizer makes.
#[derive(Debug, Clone, Copy, Args)]
pub struct ResizeArgs {
    /// Resize images to PIXELS x PIXELS before they become bytes, bicubic as the published protocol does with 384 px (to 256)
    /// [default: as the tokenizer makes them]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(1..=4096))]
    resize: Option<u16>,
}

impl ResizeArgs {
    /// Side of the images in pixels, where it was given.
    pub fn side(self) -> Option<usize> {
        self.resize.map(usize::from)
    }
}
