//! PNG files, RGB with 8 bits a channel.

use std::io::{BufRead, BufReader, Seek};

use camino::Utf8Path;
use dpar_export_inputs::{limits, memory};

use super::{Picture, PictureError};
use crate::arrays::write_atomic;

/// Encodes `rgb`, u8 `[height, width, 3]`, as a PNG. The same pixels give the same bytes.
///
/// # Errors
/// When a size is 0 or above 2³¹ − 1, or the bytes are not as many as the sizes say.
pub fn encode_png(rgb: &[u8], height: usize, width: usize) -> Result<Vec<u8>, PictureError> {
    let size = || PictureError::Size { what: "a PNG", bytes: rgb.len(), height, width };
    let side =
        |n: usize| u32::try_from(n).ok().filter(|&n| n > 0 && i32::try_from(n).is_ok()).ok_or_else(size);
    let (w, h) = (side(width)?, side(height)?);
    if u64::from(w) * u64::from(h) * 3 != rgb.len() as u64 {
        return Err(size());
    }
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, w, h);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let failed = |e: png::EncodingError| PictureError::Encode(e.to_string());
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(rgb).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(out)
}

/// Writes `rgb`, u8 `[height, width, 3]`, as the PNG file `path`, whole or not at all.
///
/// # Errors
/// As [`encode_png`], and when the folder or the disk refuses.
pub fn write_png(path: &Utf8Path, rgb: &[u8], height: usize, width: usize) -> Result<(), PictureError> {
    let bytes = encode_png(rgb, height, width)?;
    write_atomic(path, &bytes).map_err(|e| file(path, e))
}

/// Reads a PNG file of RGB pixels with 8 bits a channel.
///
/// # Errors
/// When it cannot be read, is malformed or truncated, has other pixels, or more than [`limits::PIXELS`] or
/// [`memory::most`] allow.
pub fn read_png(path: &Utf8Path) -> Result<Picture, PictureError> {
    let reader = BufReader::new(dpar_export_inputs::open(path).map_err(|e| file(path, e))?);
    decode(reader).map_err(|e| match e {
        PngFault::Memory(source) => PictureError::Memory { path: Some(path.to_owned()), source },
        PngFault::Pixels(color, bits) => PictureError::Pixels { path: path.to_owned(), color, bits },
        PngFault::Other(message) => file(path, message),
    })
}

fn file(path: &Utf8Path, error: impl ToString) -> PictureError {
    PictureError::File { path: path.to_owned(), message: error.to_string() }
}

/// Why a picture was not read.
#[derive(Debug)]
enum PngFault {
    Memory(memory::MemoryError),
    Pixels(&'static str, u8),
    Other(String),
}

fn decode(reader: impl BufRead + Seek) -> Result<Picture, PngFault> {
    let other = |e: png::DecodingError| PngFault::Other(e.to_string());
    let mut decoder = png::Decoder::new(reader);
    let info = decoder.read_header_info().map_err(other)?;
    let (width, height) = (info.width, info.height);
    if (info.color_type, info.bit_depth) != (png::ColorType::Rgb, png::BitDepth::Eight) {
        let color = match info.color_type {
            png::ColorType::Grayscale => "grey",
            png::ColorType::Rgb => "RGB",
            png::ColorType::Indexed => "a palette",
            png::ColorType::GrayscaleAlpha => "grey and alpha",
            png::ColorType::Rgba => "RGB and alpha",
        };
        return Err(PngFault::Pixels(color, info.bit_depth as u8));
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits::PIXELS {
        return Err(PngFault::Other(format!("{width} × {height} pixels are too many")));
    }
    // The decoder holds a few rows beside the picture; other chunks are held below a limit of its own.
    memory::check("it", 3 * (pixels + 4 * u64::from(width))).map_err(PngFault::Memory)?;
    let mut reader = decoder.read_info().map_err(other)?;
    let (width, height) = (width as usize, height as usize);
    if reader.output_buffer_size() != Some(width * height * 3) {
        return Err(PngFault::Other("not RGB with 8 bits a channel".to_owned()));
    }
    let mut rgb = memory::reserved(width * height * 3).map_err(PngFault::Memory)?;
    rgb.resize(width * height * 3, 0);
    reader.next_frame(&mut rgb).map_err(other)?;
    Ok(Picture { width, height, rgb })
}

impl Picture {
    /// Writes the picture as a PNG file, whole or not at all.
    ///
    /// # Errors
    /// As [`write_png`].
    pub fn write_png(&self, path: &Utf8Path) -> Result<(), PictureError> {
        write_png(path, &self.rgb, self.height, self.width)
    }

    /// The picture as the bytes of a PNG file.
    ///
    /// # Errors
    /// As [`encode_png`].
    pub fn encode_png(&self) -> Result<Vec<u8>, PictureError> {
        encode_png(&self.rgb, self.height, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrays::test_folder;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn picture() -> Picture {
        let rgb = (0..7 * 5 * 3).map(|i| (i * 37 % 256) as u8).collect();
        Picture { width: 7, height: 5, rgb }
    }

    #[test]
    fn pictures_survive_the_round_trip_and_bytes_repeat() {
        let (_guard, folder) = test_folder();
        let path = folder.join("000000.png");
        picture().write_png(&path).unwrap();
        assert_eq!(read_png(&path).unwrap(), picture());
        assert_eq!(fs_err::read(&path).unwrap(), picture().encode_png().unwrap());
    }

    #[test]
    fn sizes_must_fit() {
        for (bytes, h, w) in [(10, 2, 2), (0, 0, 3), (0, 1, 0), (3, usize::MAX, usize::MAX)] {
            let error = encode_png(&vec![0; bytes], h, w).unwrap_err();
            assert!(matches!(error, PictureError::Size { .. }), "{error}");
        }
    }

    #[test]
    fn other_pixels_are_named() {
        let mut gray = Vec::new();
        let mut encoder = png::Encoder::new(&mut gray, 1, 1);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(&[7]).unwrap();
        assert!(matches!(decode(Cursor::new(gray)), Err(PngFault::Pixels("grey", 8))));
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let bytes = picture().encode_png().unwrap();
        for end in 0..bytes.len() - 16 {
            assert!(decode(Cursor::new(&bytes[..end])).is_err(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn damaged_files_do_not_panic(at in 0_usize..100, value: u8) {
            let mut bytes = picture().encode_png().unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = decode(Cursor::new(bytes));
        }
    }
}
