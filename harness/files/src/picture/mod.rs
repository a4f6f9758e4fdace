//! Pixels: from a decoder's output to bytes, to PNG files and to labelled contact sheets.
//!
//! NCHW and NHWC name the order of image, channel, row and column; there are always 3 channels, RGB.

mod bicubic;
mod convert;
mod grid;
mod overlay;
mod png_file;

pub use bicubic::resize_nchw;
pub use convert::read_as_rgb;
pub use grid::{GridOptions, grid};
pub use png_file::{encode_png, read_png, write_png};

use camino::Utf8PathBuf;
use dpar_export_spec::Hinted;

/// An RGB picture, 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`, row-major.
    pub rgb: Vec<u8>,
}

/// What can be wrong with a picture.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The pixels are not as many as the sizes say, or a size is 0 or too large.
    #[error("{bytes} bytes do not make {what} of {height} × {width} RGB pixels")]
    Size {
        /// What was to be made.
        what: &'static str,
        /// Bytes given.
        bytes: usize,
        /// Rows.
        height: usize,
        /// Pixels per row.
        width: usize,
    },
    /// Grid options that do not fit the images.
    #[error("the picture grid cannot be drawn: {0}")]
    Grid(String),
    /// A file could not be read or written.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: Utf8PathBuf,
        /// What went wrong.
        message: String,
    },
    /// A PNG of other pixels than RGB with 8 bits a channel.
    #[error("{path}: not RGB with 8 bits a channel, but {color} with {bits}")]
    Pixels {
        /// The file.
        path: Utf8PathBuf,
        /// What its pixels are made of.
        color: &'static str,
        /// Bits a channel.
        bits: u8,
    },
    /// It would take more memory than one input may.
    #[error("{}{source}", path.as_ref().map(|p| format!("{p}: ")).unwrap_or_default())]
    Memory {
        /// The file, where one is read.
        path: Option<Utf8PathBuf>,
        /// How much.
        source: dpar_export_inputs::memory::MemoryError,
    },
    /// The PNG encoder refused.
    #[error("the picture cannot be encoded: {0}")]
    Encode(String),
}

impl Hinted for PictureError {
    fn hint(&self) -> Option<String> {
        matches!(self, Self::Memory { .. }).then(|| dpar_export_inputs::memory::HINT.to_owned())
    }
}

/// A decoder's output to bytes: clamp(127.5·y + 128, 0, 255) in f32, truncated to u8, the conversion of the VQ
/// tokenizer in the decoding spec. NaN becomes 0.
///
/// `image` is f32 `[n, 3, h, w]`, about −1 to 1; the result is u8 `[n, h, w, 3]`.
///
/// # Panics
/// When `image` has not n·3·h·w elements: a bug in the caller.
pub fn to_u8_nhwc(image: &[f32], n: usize, h: usize, w: usize) -> Vec<u8> {
    let plane = h * w;
    assert_eq!(image.len(), n * 3 * plane, "elements of {n} images of 3 × {h} × {w}");
    let mut out = Vec::with_capacity(image.len());
    for image in image.chunks_exact((3 * plane).max(1)) {
        let (red, rest) = image.split_at(plane);
        let (green, blue) = rest.split_at(plane);
        for ((&r, &g), &b) in red.iter().zip(green).zip(blue) {
            out.extend([r, g, b].map(|y| (127.5 * y + 128.0).clamp(0.0, 255.0) as u8));
        }
    }
    out
}

/// A decoder's output to bytes of another size: resized as floats ([`resize_nchw`]), then as [`to_u8_nhwc`].
///
/// `images` is f32 `[n, 3, side, side]`, about −1 to 1; the result is u8 `[n, to, to, 3]`.
///
/// # Panics
/// As those two.
pub fn to_u8_resized(images: &[f32], n: usize, side: usize, to: usize) -> Vec<u8> {
    to_u8_nhwc(&resize_nchw(images, side, to), n, to, to)
}

/// Bytes to an encoder's input: u8/127.5 − 1 in f32, the conversion of the VQ tokenizer in the decoding spec.
///
/// `image` is u8 `[n, h, w, 3]`; the result is f32 `[n, 3, h, w]`, −1 to 1.
///
/// # Panics
/// When `image` has not n·h·w·3 elements: a bug in the caller.
pub fn from_u8_nhwc(image: &[u8], n: usize, h: usize, w: usize) -> Vec<f32> {
    let plane = h * w;
    assert_eq!(image.len(), n * 3 * plane, "elements of {n} images of {h} × {w} × 3");
    let mut out = Vec::with_capacity(image.len());
    for image in image.chunks_exact((3 * plane).max(1)) {
        for channel in 0..3 {
            out.extend(image.iter().skip(channel).step_by(3).map(|&v| f32::from(v) / 127.5 - 1.0));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn floats_are_clamped_and_truncated() {
        let y = [-2.0, -1.0, -0.996, 0.0, 0.5, 0.999, 1.0, 1.0e9, f32::NEG_INFINITY, f32::INFINITY, f32::NAN];
        // 127.5·(−1) + 128 = 0.5 → 0; 0 → 128; 0.5 → 191.75 → 191; 0.999 → 255.37 → 255.
        let want = [0, 0, 1, 128, 191, 255, 255, 255, 0, 255, 0];
        for (y, want) in y.into_iter().zip(want) {
            assert_eq!(to_u8_nhwc(&[y; 3], 1, 1, 1), [want; 3], "y = {y}");
        }
    }

    #[test]
    fn channels_move_last_and_back() {
        let nchw = [-1.0, 0.0, 1.0, -1.0, 0.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0];
        let bytes = to_u8_nhwc(&nchw, 2, 1, 2);
        assert_eq!(bytes, [0, 255, 128, 128, 0, 255, 0, 0, 255, 0, 255, 255]);
        let floats = from_u8_nhwc(&[0, 255, 51, 102, 153, 204], 1, 1, 2);
        let want = [0.0, 102.0, 255.0, 153.0, 51.0, 204.0].map(|v| v / 127.5_f32 - 1.0);
        assert_eq!(floats, want);
        assert_eq!((floats[0], floats[2]), (-1.0, 1.0));
        assert_eq!(to_u8_nhwc(&[], 0, 4, 4), [0_u8; 0]);
        assert_eq!(from_u8_nhwc(&[], 3, 0, 4), [0.0_f32; 0]);
    }

    proptest! {
        /// u → u/127.5 − 1 → about u + 0.5, truncated: u again.
        #[test]
        fn bytes_survive_the_round_trip(bytes in prop::collection::vec(any::<u8>(), 12)) {
            prop_assert_eq!(to_u8_nhwc(&from_u8_nhwc(&bytes, 1, 2, 2), 1, 2, 2), bytes);
        }
    }
}
