//! Pictures of other kinds as RGB with 8 bits a channel.

use std::io::Cursor;

use camino::Utf8Path;
use dpar_export_inputs::{limits, memory};
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Picture, PictureError};

/// Reads a PNG, JPEG or WebP file as RGB with 8 bits a channel, whatever its name says: palettes are looked up, grey is
/// repeated, of 16 bits the upper 8 stay, alpha is dropped; neither colour profile nor orientation is applied, as Pillow's
/// `convert("RGB")` applies none.
///
/// # Errors
/// When it cannot be read, is of another kind, malformed, truncated or animated, or has more pixels than
/// [`limits::PIXELS`] or [`memory::most`] allow.
pub fn read_as_rgb(path: &Utf8Path) -> Result<Picture, PictureError> {
    let file = |message: String| PictureError::File { path: path.to_owned(), message };
    let bytes = dpar_export_inputs::read(path, memory::most()).map_err(|e| file(e.to_string()))?;
    decode(&bytes).map_err(|e| match e {
        DecodeFault::Memory(source) => PictureError::Memory { path: Some(path.to_owned()), source },
        DecodeFault::Other(message) => file(message),
    })
}

/// Why a picture was not read.
#[derive(Debug)]
enum DecodeFault {
    Memory(memory::MemoryError),
    Other(String),
}

impl From<memory::MemoryError> for DecodeFault {
    fn from(e: memory::MemoryError) -> Self {
        Self::Memory(e)
    }
}

fn other(e: impl ToString) -> DecodeFault {
    DecodeFault::Other(e.to_string())
}

fn decode(bytes: &[u8]) -> Result<Picture, DecodeFault> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => png(bytes),
        [0xFF, 0xD8, 0xFF, ..] => jpeg(bytes),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp(bytes),
        _ => Err(other("it is neither PNG, JPEG nor WebP")),
    }
}

/// Refuses a picture whose decoding takes `bytes` a pixel and is more than one input may ask for.
fn fits(width: usize, height: usize, bytes: u64) -> Result<(), DecodeFault> {
    let pixels = (width as u64).saturating_mul(height as u64);
    if pixels > limits::PIXELS {
        return Err(other(format!("{width} × {height} pixels are too many")));
    }
    Ok(memory::check("it", bytes * pixels)?)
}

fn animated() -> DecodeFault {
    other("it is animated: only still pictures are read")
}

fn truncated() -> DecodeFault {
    other("it is truncated")
}

fn png(bytes: &[u8]) -> Result<Picture, DecodeFault> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    let info = decoder.read_header_info().map_err(other)?;
    let (width, height) = (info.width as usize, info.height as usize);
    // Four channels, and the three of the result.
    fits(width, height, 7)?;
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(other)?;
    if reader.info().is_animated() {
        return Err(animated());
    }
    let size = reader.output_buffer_size().ok_or_else(|| other("it is too large"))?;
    let mut pixels = memory::reserved(size)?;
    pixels.resize(size, 0);
    let frame = reader.next_frame(&mut pixels).map_err(other)?;
    reader.finish().map_err(other)?;
    let channels = match frame.color_type {
        png::ColorType::Grayscale => 1,
        png::ColorType::GrayscaleAlpha => 2,
        png::ColorType::Rgb => 3,
        png::ColorType::Rgba => 4,
        png::ColorType::Indexed => return Err(other("its palette was not looked up")),
    };
    Ok(Picture { width, height, rgb: opaque(pixels, channels) })
}

fn jpeg(bytes: &[u8]) -> Result<Picture, DecodeFault> {
    // The decoder fills what is missing with grey.
    if !ends(bytes) {
        return Err(truncated());
    }
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(Cursor::new(bytes), options);
    decoder.decode_headers().map_err(other)?;
    let info = decoder.info().ok_or_else(truncated)?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    // The coefficients of a progressive file, 2 bytes each of up to four channels, and the result.
    fits(width, height, 11)?;
    let rgb = decoder.decode().map_err(other)?;
    match rgb.len() == width * height * 3 {
        true => Ok(Picture { width, height, rgb }),
        false => Err(other("its channels are no colours")),
    }
}

fn webp(bytes: &[u8]) -> Result<Picture, DecodeFault> {
    if riff(bytes).is_none_or(|end| end > bytes.len()) {
        return Err(truncated());
    }
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(other)?;
    if decoder.is_animated() {
        return Err(animated());
    }
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    // Planes of a lossy one or the words of a lossless one, four channels, and the result.
    fits(width, height, 11)?;
    decoder.set_memory_limit(usize::try_from(memory::most()).unwrap_or(usize::MAX));
    let size = decoder.output_buffer_size().ok_or_else(|| other("it is too large"))?;
    let mut pixels = memory::reserved(size)?;
    pixels.resize(size, 0);
    decoder.read_image(&mut pixels).map_err(other)?;
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    Ok(Picture { width, height, rgb: opaque(pixels, channels) })
}

/// Three channels out of grey, grey and alpha, RGB, or RGB and alpha.
fn opaque(pixels: Vec<u8>, channels: usize) -> Vec<u8> {
    match channels {
        3 => pixels,
        4 => pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        n => pixels.chunks_exact(n).flat_map(|p| [p[0]; 3]).collect(),
    }
}

/// Where a WebP says that it ends.
fn riff(bytes: &[u8]) -> Option<usize> {
    let size = bytes.get(4..8)?.first_chunk().map(|size| u32::from_le_bytes(*size))?;
    usize::try_from(size).ok()?.checked_add(8)
}

/// Whether a JPEG has its end-of-image marker behind the last scan. Segments say their length; in a scan, 0xFF is followed by
/// 0 or a restart marker, or begins the next segment.
fn ends(bytes: &[u8]) -> bool {
    let at = |i: usize| bytes.get(i).copied();
    let mut i = 2;
    loop {
        match (at(i), at(i + 1)) {
            (Some(0xFF), Some(0xD9)) => return true,
            // Fill bytes, stuffed bytes and restarts.
            (Some(0xFF), Some(0xFF)) => i += 1,
            (Some(0xFF), Some(0 | 0x01 | 0xD0..=0xD8)) => i += 2,
            (Some(0xFF), Some(_)) => {
                let (Some(high), Some(low)) = (at(i + 2), at(i + 3)) else { return false };
                i += 2 + usize::from(u16::from_be_bytes([high, low]));
            }
            // Of a scan, or between segments, where decoders skip them.
            (Some(_), Some(_)) => i += 1,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use image_webp::{ColorType, WebPEncoder};
    use jpeg_encoder::{ColorType as JpegColor, Encoder};

    use super::*;

    const SIDE: u32 = 16;

    /// Smooth colours, which JPEG keeps nearly.
    fn rgb() -> Vec<u8> {
        (0..SIDE * SIDE).flat_map(|i| [(i % SIDE * 15) as u8, (i / SIDE * 15) as u8, 90]).collect()
    }

    fn png(pixels: &[u8], color: png::ColorType, depth: png::BitDepth) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, SIDE, SIDE);
        encoder.set_color(color);
        encoder.set_depth(depth);
        encoder.write_header().unwrap().write_image_data(pixels).unwrap();
        out
    }

    fn jpeg(pixels: &[u8], color: JpegColor, progressive: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out, 98);
        encoder.set_progressive(progressive);
        encoder.encode(pixels, SIDE as u16, SIDE as u16, color).unwrap();
        out
    }

    fn webp(pixels: &[u8], color: ColorType) -> Vec<u8> {
        let mut out = Vec::new();
        WebPEncoder::new(&mut out).encode(pixels, SIDE, SIDE, color).unwrap();
        out
    }

    fn read(bytes: &[u8]) -> Vec<u8> {
        let picture = decode(bytes).unwrap();
        assert_eq!((picture.width, picture.height), (SIDE as usize, SIDE as usize));
        picture.rgb
    }

    #[test]
    fn every_kind_gives_the_pixels_that_are_in_it() {
        let rgb = rgb();
        assert_eq!(read(&png(&rgb, png::ColorType::Rgb, png::BitDepth::Eight)), rgb);
        assert_eq!(read(&webp(&rgb, ColorType::Rgb8)), rgb);
        let near = |found: &[u8], wanted: &[u8]| found.iter().zip(wanted).all(|(a, b)| a.abs_diff(*b) <= 6);
        for progressive in [false, true] {
            assert!(near(&read(&jpeg(&rgb, JpegColor::Rgb, progressive)), &rgb), "{progressive}");
        }

        let grey: Vec<u8> = rgb.iter().step_by(3).copied().collect();
        let repeated: Vec<u8> = grey.iter().flat_map(|v| [*v; 3]).collect();
        assert_eq!(read(&png(&grey, png::ColorType::Grayscale, png::BitDepth::Eight)), repeated);
        assert!(near(&read(&jpeg(&grey, JpegColor::Luma, false)), &repeated));
        // Alpha goes, whatever it is.
        let rgba: Vec<u8> =
            rgb.chunks(3).enumerate().flat_map(|(i, p)| [p[0], p[1], p[2], i as u8]).collect();
        assert_eq!(read(&png(&rgba, png::ColorType::Rgba, png::BitDepth::Eight)), rgb);
        assert_eq!(read(&webp(&rgba, ColorType::Rgba8)), rgb);
        // The upper bytes of 16 bits.
        let wide: Vec<u8> = rgb.iter().flat_map(|v| [*v, 200]).collect();
        assert_eq!(read(&png(&wide, png::ColorType::Rgb, png::BitDepth::Sixteen)), rgb);
        // A palette of four colours.
        let palette = [10, 20, 30, 40, 50, 60, 70, 80, 90, 255, 0, 1];
        let indices: Vec<u8> = (0..SIDE * SIDE).map(|i| (i % 4) as u8).collect();
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, SIDE, SIDE);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_palette(palette.to_vec());
        encoder.write_header().unwrap().write_image_data(&indices).unwrap();
        let wanted: Vec<u8> =
            indices.iter().flat_map(|i| palette[3 * usize::from(*i)..][..3].to_vec()).collect();
        assert_eq!(read(&bytes), wanted);
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let rgb = rgb();
        for bytes in [
            png(&rgb, png::ColorType::Rgb, png::BitDepth::Eight),
            jpeg(&rgb, JpegColor::Rgb, false),
            jpeg(&rgb, JpegColor::Rgb, true),
            webp(&rgb, ColorType::Rgb8),
        ] {
            for end in 0..bytes.len() - 1 {
                // A PNG's last chunk holds nothing.
                if bytes.starts_with(b"\x89PNG") && end >= bytes.len() - 16 {
                    continue;
                }
                assert!(decode(&bytes[..end]).is_err(), "{end} of {} bytes", bytes.len());
            }
        }
        assert!(matches!(decode(b"GIF89a and more"), Err(DecodeFault::Other(e)) if e.contains("neither")));
    }

    #[test]
    fn animations_are_refused() {
        let mut apng = Vec::new();
        let mut encoder = png::Encoder::new(&mut apng, SIDE, SIDE);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_animated(2, 0).unwrap();
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&rgb()).unwrap();
        writer.write_image_data(&rgb()).unwrap();
        writer.finish().unwrap();
        // The still picture's chunk as the frame of an animation.
        let still = webp(&rgb(), ColorType::Rgb8);
        let still = &still[12..];
        let chunk = |name: &[u8], data: &[u8]| {
            let mut out = [name, &(data.len() as u32).to_le_bytes(), data].concat();
            out.resize(out.len().next_multiple_of(2), 0);
            out
        };
        let side = &(SIDE - 1).to_le_bytes()[..3];
        let extended = chunk(b"VP8X", &[&[2, 0, 0, 0], side, side].concat());
        let frame = chunk(b"ANMF", &[&[0; 6], side, side, &[10, 0, 0, 0], still].concat());
        let body = [b"WEBP".to_vec(), extended, chunk(b"ANIM", &[0; 6]), frame.clone(), frame].concat();
        for bytes in [apng, chunk(b"RIFF", &body)] {
            assert!(
                matches!(decode(&bytes), Err(DecodeFault::Other(e)) if e.contains("animated")),
                "{bytes:?}"
            );
        }
    }
}
