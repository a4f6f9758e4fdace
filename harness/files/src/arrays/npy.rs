//! The `.npy` format: numpy's header, and elements behind it.
//!
//! Headers are read here, not by a library: what a header promises is compared with what the file holds before
//! anything is allocated, nothing recurses, and an unsupported element type is named.

use std::io::{self, Read, Write};

use dpar_export_inputs::memory;
use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn, ShapeBuilder};

use super::{Array, ArrayErrorKind, ArrayRef, Elements};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header that is read; numpy itself stops at 10,000 characters.
const LONGEST_HEADER: usize = 1 << 16;
/// Most dimensions numpy allows.
const MOST_DIMS: usize = 64;
const CHUNK: usize = 1 << 16;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NpyHeader {
    /// Element type as written, such as `<f4`.
    pub(super) descr: String,
    /// First index fastest.
    pub(super) fortran: bool,
    /// Sizes, outermost first.
    pub(super) shape: Vec<usize>,
    /// Bytes before the elements.
    pub(super) bytes: usize,
}

/// An element type of arrays in memory, and of files that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NpyType {
    F32,
    F64,
    I64,
    I32,
    U8,
}

impl NpyType {
    pub(super) fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::U8 => "uint8",
        }
    }

    fn descr(self) -> &'static str {
        match self {
            Self::F32 => "<f4",
            Self::F64 => "<f8",
            Self::I64 => "<i8",
            Self::I32 => "<i4",
            Self::U8 => "|u1",
        }
    }
}

/// An element type of a file that is read. The narrow ones become the next [`NpyType`], which holds each of their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    Same(NpyType),
    F16,
    Bf16,
    I8,
    I16,
    U16,
    U32,
}

impl Stored {
    const ALL: [Self; 11] = [
        Self::Same(NpyType::F32),
        Self::Same(NpyType::F64),
        Self::Same(NpyType::I64),
        Self::Same(NpyType::I32),
        Self::Same(NpyType::U8),
        Self::F16,
        Self::Bf16,
        Self::I8,
        Self::I16,
        Self::U16,
        Self::U32,
    ];

    /// What its elements are in memory.
    pub(super) fn kind(self) -> NpyType {
        match self {
            Self::Same(kind) => kind,
            Self::F16 | Self::Bf16 => NpyType::F32,
            Self::I8 | Self::I16 | Self::U16 => NpyType::I32,
            Self::U32 => NpyType::I64,
        }
    }

    /// Bytes of an element in the file.
    fn size(self) -> usize {
        match self {
            Self::Same(kind) => kind.size(),
            Self::I8 => 1,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// Numpy's word, or torch's where numpy has none.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Same(kind) => kind.name(),
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
        }
    }

    /// The type of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }
}

impl From<NpyType> for Stored {
    fn from(kind: NpyType) -> Self {
        Self::Same(kind)
    }
}

impl NpyHeader {
    /// The element type.
    ///
    /// # Errors
    /// When it is none of those that are read.
    pub(super) fn stored(&self) -> Result<Stored, ArrayErrorKind> {
        let d = self.descr.as_str();
        let why = match d {
            "<f4" => return Ok(NpyType::F32.into()),
            "<f8" => return Ok(NpyType::F64.into()),
            "<i8" => return Ok(NpyType::I64.into()),
            "<i4" => return Ok(NpyType::I32.into()),
            "|u1" | "<u1" | ">u1" => return Ok(NpyType::U8.into()),
            "<f2" => return Ok(Stored::F16),
            "|i1" | "<i1" | ">i1" => return Ok(Stored::I8),
            "<i2" => return Ok(Stored::I16),
            "<u2" => return Ok(Stored::U16),
            "<u4" => return Ok(Stored::U32),
            _ if d.starts_with('[') => "records",
            _ if d.contains('O') => "pickled Python objects, never read",
            _ if d.starts_with('>') => "big-endian",
            _ => "not supported",
        };
        Err(ArrayErrorKind::UnsupportedDtype { found: d.to_owned(), why })
    }

    /// Element type in words, as written where it is not one that is read.
    pub(super) fn dtype(&self) -> String {
        self.stored().map_or_else(|_| self.descr.clone(), |s| s.name().to_owned())
    }

    /// Reads and checks a header; leaves the reader at the first element.
    pub(super) fn read(reader: &mut impl Read) -> Result<Self, ArrayErrorKind> {
        let mut start = [0; 8];
        fill(reader, &mut start)?;
        if &start[..6] != MAGIC {
            return Err(malformed("no .npy magic number"));
        }
        let (length, before) = match start[6] {
            1 => {
                let mut n = [0; 2];
                fill(reader, &mut n)?;
                (usize::from(u16::from_le_bytes(n)), 10)
            }
            2 | 3 => {
                let mut n = [0; 4];
                fill(reader, &mut n)?;
                (u32::from_le_bytes(n) as usize, 12)
            }
            v => return Err(malformed(format!(".npy version {v}"))),
        };
        if length > LONGEST_HEADER {
            return Err(ArrayErrorKind::TooLarge(format!("a .npy header of {length} bytes")));
        }
        let mut text = vec![0; length];
        fill(reader, &mut text)?;
        let text = String::from_utf8_lossy(&text);
        let mut header = Parser { rest: text.as_bytes() }.header()?;
        header.bytes = before + length;
        Ok(header)
    }

    /// Bytes of the elements.
    ///
    /// # Errors
    /// When the shape overflows, or `held` bytes are fewer than it needs.
    pub(super) fn check_size(&self, stored: impl Into<Stored>, held: u64) -> Result<usize, ArrayErrorKind> {
        let needed = bytes_of(&self.shape, stored)?;
        if needed as u64 > held {
            return Err(ArrayErrorKind::Truncated { promised: needed as u64, held });
        }
        Ok(needed)
    }

    /// Reads the elements; `held` is how many bytes there are at most.
    pub(super) fn array(&self, reader: &mut impl Read, held: u64) -> Result<Array, ArrayErrorKind> {
        let stored = self.stored()?;
        self.check_size(stored, held)?;
        read_elements(reader, stored, &self.shape, self.fortran)
    }
}

/// Bytes of `shape` in a file, at most `isize::MAX` also where a size is 0 (ndarray's rule).
pub(super) fn bytes_of(shape: &[usize], stored: impl Into<Stored>) -> Result<usize, ArrayErrorKind> {
    let stored = stored.into();
    let overflow = || ArrayErrorKind::TooLarge(format!("shape {shape:?} of {}", stored.name()));
    if shape.len() > MOST_DIMS {
        return Err(ArrayErrorKind::TooLarge(format!("{} dimensions", shape.len())));
    }
    shape
        .iter()
        .filter(|&&n| n > 0)
        .try_fold(stored.size().max(stored.kind().size()), |all, &n| all.checked_mul(n))
        .filter(|&n| isize::try_from(n).is_ok())
        .ok_or_else(overflow)?;
    Ok(shape.iter().product::<usize>() * stored.size())
}

/// Reads the elements of a shape whose size was checked with [`bytes_of`] and against the file.
pub(super) fn read_elements(
    reader: &mut impl Read,
    stored: Stored,
    shape: &[usize],
    fortran: bool,
) -> Result<Array, ArrayErrorKind> {
    let n = shape.iter().product::<usize>();
    let i32s = |values: Vec<i32>| Ok::<_, ArrayErrorKind>(Array::I32(shaped(values, shape, fortran)?));
    let i64s = |values: Vec<i64>| Ok::<_, ArrayErrorKind>(Array::I64(shaped(values, shape, fortran)?));
    Ok(match stored {
        Stored::Same(NpyType::F32) | Stored::F16 | Stored::Bf16 => {
            Array::F32(shaped(floats(reader, n, stored)?, shape, fortran)?)
        }
        Stored::Same(NpyType::F64) => {
            Array::F64(shaped(values(reader, n, f64::from_le_bytes)?, shape, fortran)?)
        }
        Stored::Same(NpyType::I64) => i64s(values(reader, n, i64::from_le_bytes)?)?,
        Stored::U32 => i64s(values(reader, n, |b| u32::from_le_bytes(b).into())?)?,
        Stored::Same(NpyType::I32) => i32s(values(reader, n, i32::from_le_bytes)?)?,
        Stored::I8 => i32s(values(reader, n, |b| i8::from_le_bytes(b).into())?)?,
        Stored::I16 => i32s(values(reader, n, |b| i16::from_le_bytes(b).into())?)?,
        Stored::U16 => i32s(values(reader, n, |b| u16::from_le_bytes(b).into())?)?,
        Stored::Same(NpyType::U8) => {
            let mut bytes = memory::reserved(n)?;
            let read = reader.take(n as u64).read_to_end(&mut bytes)?;
            if read < n {
                return Err(ArrayErrorKind::Truncated { promised: n as u64, held: read as u64 });
            }
            Array::U8(shaped(bytes, shape, fortran)?)
        }
    })
}

/// The next `n` elements of a type that is float32 in memory.
pub(super) fn floats(reader: &mut impl Read, n: usize, stored: Stored) -> Result<Vec<f32>, ArrayErrorKind> {
    match stored {
        Stored::F16 => values(reader, n, |b| f16::from_le_bytes(b).to_f32()),
        Stored::Bf16 => values(reader, n, |b| bf16::from_le_bytes(b).to_f32()),
        Stored::Same(NpyType::F32) => values(reader, n, f32::from_le_bytes),
        Stored::Same(NpyType::F64 | NpyType::I64 | NpyType::I32 | NpyType::U8)
        | Stored::I8
        | Stored::I16
        | Stored::U16
        | Stored::U32 => Err(ArrayErrorKind::Malformed("elements that are no float32 in memory".to_owned())),
    }
}

fn values<T, const S: usize>(
    reader: &mut impl Read,
    n: usize,
    decode: fn([u8; S]) -> T,
) -> Result<Vec<T>, ArrayErrorKind> {
    let mut out = memory::reserved(n)?;
    let mut buffer = vec![0; CHUNK.min(n * S)];
    while out.len() < n {
        let take = buffer.len().min((n - out.len()) * S);
        fill(reader, &mut buffer[..take]).map_err(|e| match e {
            ArrayErrorKind::Truncated { held, .. } => {
                ArrayErrorKind::Truncated { promised: (n * S) as u64, held: (out.len() * S) as u64 + held }
            }
            other => other,
        })?;
        out.extend(buffer[..take].as_chunks::<S>().0.iter().map(|&b| decode(b)));
    }
    Ok(out)
}

fn shaped<T: Clone>(data: Vec<T>, shape: &[usize], fortran: bool) -> Result<ArrayD<T>, ArrayErrorKind> {
    let dims = IxDyn(shape).set_f(fortran);
    let array = ArrayD::from_shape_vec(dims, data)
        .map_err(|e| ArrayErrorKind::TooLarge(format!("shape {shape:?}: {e}")))?;
    Ok(if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() })
}

/// Like `read_exact`, but says how much was there.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<(), ArrayErrorKind> {
    let mut held = 0;
    while held < buffer.len() {
        match reader.read(&mut buffer[held..]) {
            Ok(0) => {
                return Err(ArrayErrorKind::Truncated { promised: buffer.len() as u64, held: held as u64 });
            }
            Ok(n) => held += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn malformed(what: impl Into<String>) -> ArrayErrorKind {
    ArrayErrorKind::Malformed(what.into())
}

/// The header's Python dictionary: exactly `descr`, `fortran_order` and `shape`.
struct Parser<'a> {
    rest: &'a [u8],
}

impl<'a> Parser<'a> {
    fn header(&mut self) -> Result<NpyHeader, ArrayErrorKind> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect(b'{')?;
        while !self.eat(b'}') {
            let key = self.string()?;
            self.expect(b':')?;
            let again = match key {
                b"descr" => descr.replace(self.descr()?).is_some(),
                b"fortran_order" => fortran.replace(self.boolean()?).is_some(),
                b"shape" => shape.replace(self.shape()?).is_some(),
                _ => return Err(malformed("an unknown key in the .npy header")),
            };
            if again {
                return Err(malformed("a key appears twice in the .npy header"));
            }
            if !self.eat(b',') {
                self.expect(b'}')?;
                break;
            }
        }
        self.space();
        match (self.rest, descr, fortran, shape) {
            ([], Some(descr), Some(fortran), Some(shape)) => {
                Ok(NpyHeader { descr, fortran, shape, bytes: 0 })
            }
            _ => Err(malformed("an incomplete .npy header")),
        }
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.space();
        match self.rest.split_first() {
            Some((&b, rest)) if b == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), ArrayErrorKind> {
        if self.eat(byte) {
            Ok(())
        } else {
            Err(malformed(format!("`{}` missing in the .npy header", byte as char)))
        }
    }

    fn string(&mut self) -> Result<&'a [u8], ArrayErrorKind> {
        self.space();
        let bad = || malformed("a word in quotes missing in the .npy header");
        let (&quote, rest) = self.rest.split_first().filter(|(q, _)| b"'\"".contains(q)).ok_or_else(bad)?;
        let end = rest.iter().position(|&b| b == quote).ok_or_else(bad)?;
        self.rest = &rest[end + 1..];
        Ok(&rest[..end])
    }

    /// A type word, or the list of a record type, as written.
    fn descr(&mut self) -> Result<String, ArrayErrorKind> {
        self.space();
        if self.rest.first() != Some(&b'[') {
            return Ok(String::from_utf8_lossy(self.string()?).into_owned());
        }
        let start = self.rest;
        let mut depth = 0_usize;
        loop {
            self.space();
            match self.rest.first() {
                Some(b'\'' | b'"') => {
                    self.string()?;
                    continue;
                }
                Some(b'[' | b'(') => depth += 1,
                Some(b']' | b')') => depth -= 1,
                Some(_) => {}
                None => return Err(malformed("an open bracket in the .npy header")),
            }
            self.rest = &self.rest[1..];
            if depth == 0 {
                let length = start.len() - self.rest.len();
                return Ok(String::from_utf8_lossy(&start[..length]).into_owned());
            }
        }
    }

    fn boolean(&mut self) -> Result<bool, ArrayErrorKind> {
        self.space();
        for (word, value) in [(&b"True"[..], true), (b"False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(malformed("`fortran_order` is neither True nor False"))
    }

    fn shape(&mut self) -> Result<Vec<usize>, ArrayErrorKind> {
        let mut shape = Vec::new();
        self.expect(b'(')?;
        while !self.eat(b')') {
            self.space();
            let digits = self.rest.iter().take_while(|b| b.is_ascii_digit()).count();
            let (number, rest) = self.rest.split_at(digits);
            let number = std::str::from_utf8(number).unwrap_or_default();
            if number.is_empty() {
                return Err(malformed("a size in the .npy header's shape is no whole number"));
            }
            let size = number.parse().map_err(|_| ArrayErrorKind::TooLarge(format!("a size of {number}")))?;
            // Python 2 wrote long integers as `3L`.
            self.rest = rest.strip_prefix(b"L").unwrap_or(rest);
            shape.push(size);
            if shape.len() > MOST_DIMS {
                return Err(ArrayErrorKind::TooLarge(format!("more than {MOST_DIMS} dimensions")));
            }
            if !self.eat(b',') {
                self.expect(b')')?;
                break;
            }
        }
        Ok(shape)
    }
}

/// The header numpy itself would write for a C-ordered array.
pub(super) fn header_bytes(kind: NpyType, shape: &[usize]) -> Result<Vec<u8>, ArrayErrorKind> {
    bytes_of(shape, kind)?;
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    let sizes = if sizes.len() == 1 { format!("{},", sizes[0]) } else { sizes.join(", ") };
    let text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({sizes}), }}", kind.descr());
    // Magic, version, length, text, spaces and a newline: a multiple of 64 bytes.
    let total = (10 + text.len() + 1).next_multiple_of(64);
    let length =
        u16::try_from(total - 10).map_err(|_| ArrayErrorKind::TooLarge("a .npy header".to_owned()))?;
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[1, 0]);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out.resize(total - 1, b' ');
    out.push(b'\n');
    Ok(out)
}

/// Writes header and elements.
pub(super) fn write(writer: &mut impl Write, array: &ArrayRef<'_>) -> Result<(), ArrayErrorKind> {
    array.check()?;
    writer.write_all(&header_bytes(array.kind(), array.shape)?)?;
    write_elements(writer, array.elements)?;
    Ok(())
}

/// Writes the elements, little-endian.
pub(super) fn write_elements(writer: &mut impl Write, elements: Elements<'_>) -> io::Result<()> {
    match elements {
        Elements::F32(v) => write_values(writer, v, |x| x.to_le_bytes()),
        Elements::F64(v) => write_values(writer, v, |x| x.to_le_bytes()),
        Elements::I64(v) => write_values(writer, v, |x| x.to_le_bytes()),
        Elements::I32(v) => write_values(writer, v, |x| x.to_le_bytes()),
        Elements::U8(v) => writer.write_all(v),
    }
}

fn write_values<T: Copy, const S: usize>(
    writer: &mut impl Write,
    values: &[T],
    encode: fn(T) -> [u8; S],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(CHUNK.min(values.len() * S));
    for part in values.chunks(CHUNK / S) {
        buffer.clear();
        buffer.extend(part.iter().flat_map(|&x| encode(x)));
        writer.write_all(&buffer)?;
    }
    Ok(())
}
