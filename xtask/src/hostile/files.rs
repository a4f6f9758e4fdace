//! Files that no tool would write, made here byte by byte.

use std::io::Write;

use anyhow::Result;
use camino::Utf8Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The head of a `.npy` array.
pub(super) fn npy_head(dtype: &str, shape: &[u64]) -> Vec<u8> {
    let dims: Vec<String> = shape.iter().map(|d| format!("{d},")).collect();
    let mut text = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({}), }}", dims.join(" "));
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let mut head = b"\x93NUMPY\x01\x00".to_vec();
    head.extend((text.len() as u16).to_le_bytes());
    head.extend(text.as_bytes());
    head
}

/// An `.npz` whose members are these heads, each followed by so many zeros, deflated or stored.
pub(super) fn npz(path: &Utf8Path, members: &[(&str, Vec<u8>, u64)], deflated: bool) -> Result<()> {
    let method = if deflated { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    let options = SimpleFileOptions::default().compression_method(method).large_file(true);
    let mut zip = ZipWriter::new(std::io::BufWriter::new(fs_err::File::create(path)?));
    let block = vec![0_u8; 1 << 20];
    for (name, head, zeros) in members {
        zip.start_file(format!("{name}.npy"), options)?;
        zip.write_all(head)?;
        let mut left = *zeros;
        while left > 0 {
            let n = left.min(block.len() as u64);
            zip.write_all(&block[..n as usize])?;
            left -= n;
        }
    }
    zip.finish()?.flush()?;
    Ok(())
}

/// `arr_0` u8 [count, side, side, 3] of random pixels.
pub(super) fn images(path: &Utf8Path, count: u64, side: u64, seed: u64) -> Result<()> {
    let mut head = npy_head("|u1", &[count, side, side, 3]);
    let mut random = fastrand::Rng::with_seed(seed);
    head.extend((0..count * side * side * 3).map(|_| random.u8(..)));
    npz(path, &[("arr_0", head, 0)], false)
}

/// A PNG that says it has this size and holds nothing.
pub(super) fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut head = Vec::new();
    head.extend(width.to_be_bytes());
    head.extend(height.to_be_bytes());
    head.extend([8, 2, 0, 0, 0]);
    // Eight bytes of an empty deflate stream.
    for (kind, data) in
        [(b"IHDR", head), (b"IDAT", b"\x78\x9c\x03\x00\x00\x00\x00\x01".to_vec()), (b"IEND", vec![])]
    {
        bytes.extend((data.len() as u32).to_be_bytes());
        let at = bytes.len();
        bytes.extend(kind);
        bytes.extend(data);
        let sum = crc32(&bytes[at..]);
        bytes.extend(sum.to_be_bytes());
    }
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes);
    hasher.finalize()
}

/// A protobuf field of bytes.
fn field(key: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(key << 3 | 2, &mut out);
    varint(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

/// A protobuf field with a number.
fn number(key: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(key << 3, &mut out);
    varint(value, &mut out);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// An ONNX model, image [1, 3, 8, 8] to [1, 192], with one node in front whose list attribute has these values.
pub(super) fn onnx(op: &str, attribute: &str, values: &[u64]) -> Vec<u8> {
    let ints: Vec<u8> = values.iter().flat_map(|v| number(8, *v)).collect();
    let attribute = [field(1, attribute.as_bytes()), ints, number(20, 7)].concat();
    let strange =
        [field(1, b"image"), field(2, b"x"), field(4, op.as_bytes()), field(5, &attribute)].concat();
    let flat = [field(1, b"x"), field(2, b"features"), field(4, b"Flatten")].concat();
    let port = |name: &str, dims: &[u64]| {
        let dims: Vec<u8> = dims.iter().flat_map(|d| field(1, &number(1, *d))).collect();
        let tensor = [number(1, 1), field(2, &dims)].concat();
        [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
    };
    let graph = [
        field(1, &strange),
        field(1, &flat),
        field(2, b"g"),
        field(11, &port("image", &[1, 3, 8, 8])),
        field(12, &port("features", &[1, 192])),
    ]
    .concat();
    let opset = [field(1, b""), number(2, 17)].concat();
    [number(1, 8), field(7, &graph), field(8, &opset)].concat()
}
