//! An array a few rows at a time.

use std::io::Read;
use std::ops::Range;

use camino::Utf8Path;
use dpar_export_inputs::memory;

use super::npy::{self, NpyHeader, NpyType, Stored};
use super::{
    Array, ArrayError, ArrayErrorKind, ArrayFile, ArrayInfo, Elements, Format, Spool, Spooled, npy_open, npz,
    tensors,
};

/// Elements that are read at a time on their way to the disk.
const AT_ONCE: usize = 1 << 16;

/// Why reading by rows ended early.
enum Stop<E> {
    /// The array does not lie row by row.
    Columns,
    File(ArrayErrorKind),
    Caller(E),
}

impl<E> From<ArrayErrorKind> for Stop<E> {
    fn from(kind: ArrayErrorKind) -> Self {
        Self::File(kind)
    }
}

impl ArrayFile {
    /// Calls `f` with consecutive rows of a float32, float16 or bfloat16 array of the wanted rank and sizes (`None` = any size), at most `rows`
    /// of them at a time; a row is what one index of the first axis has. No more than that is in memory, but an array that
    /// is stored in another type or column-major is read as by [`f32`](Self::f32) first.
    ///
    /// # Errors
    /// As [`f32`](Self::f32); what `f` returns. A damaged file may be found after its last row: what `f` was given counts
    /// only if this returns without an error.
    pub fn f32_rows<E: From<ArrayError>>(
        &self,
        name: &str,
        wanted: &[Option<usize>],
        rows: usize,
        f: &mut dyn FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (info, piece) = (self.fitting(name, wanted)?, self.piece(name, rows)?);
        let streamed = self.stream(info, piece, &[NpyType::F32], &mut |array| match &array {
            Array::F32(a) => f(a.as_slice().unwrap_or_default()),
            other => f(other.to_f32(name)?.as_slice().unwrap_or_default()),
        })?;
        if !streamed {
            let array = self.f32(name, wanted)?;
            array.as_slice().unwrap_or_default().chunks(piece).try_for_each(f)?;
        }
        Ok(())
    }

    /// As [`f32_rows`](Self::f32_rows) for uint8.
    ///
    /// # Errors
    /// As [`u8`](Self::u8), and as [`f32_rows`](Self::f32_rows).
    pub fn u8_rows<E: From<ArrayError>>(
        &self,
        name: &str,
        wanted: &[Option<usize>],
        rows: usize,
        f: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.fits_in(name, "uint8", &[NpyType::U8])?;
        let (info, piece) = (self.fitting(name, wanted)?, self.piece(name, rows)?);
        let streamed = self.stream(info, piece, &[NpyType::U8], &mut |array| match &array {
            Array::U8(a) => f(a.as_slice().unwrap_or_default()),
            other => Err(self.as_stored(other.no_fit("uint8", name)).into()),
        })?;
        if !streamed {
            let array = self.u8(name, wanted)?;
            array.as_slice().unwrap_or_default().chunks(piece).try_for_each(f)?;
        }
        Ok(())
    }

    /// [`i64_in`](Self::i64_in), row-major in a file in `folder`: no more than a piece of it is in memory. What a file may ask for
    /// is limited as if it were: a few bytes that are compressed must not fill a disk either.
    ///
    /// # Errors
    /// As [`i64_in`](Self::i64_in); when the disk refuses.
    pub fn i64_spooled(
        &self,
        name: &str,
        wanted: &[Option<usize>],
        (what, range): (&str, Range<i64>),
        folder: &Utf8Path,
    ) -> Result<Spooled, ArrayError> {
        self.fits_in(name, "int64", &[NpyType::I64, NpyType::I32, NpyType::U8])?;
        let info = self.fitting(name, wanted)?;
        self.take_whole(info)?;
        if Stored::named(&info.dtype).is_some_and(|stored| stored.kind().size() != NpyType::I64.size()) {
            self.take(info, NpyType::I64.size())?;
        }
        let fail = |e: ArrayErrorKind| e.of(name).in_file(&self.path);
        let disk = |e: std::io::Error| ArrayErrorKind::Io(e).in_file(folder);
        let mut spool = Spool::create_in(folder).map_err(disk)?;
        let mut before = 0;
        let mut put = |values: &[i64]| {
            if let Some(i) = values.iter().position(|v| !range.contains(v)) {
                let at = place(before + i, &info.shape);
                let message =
                    format!("{what} {} at {at:?} is not in {}..{}", values[i], range.start, range.end);
                return Err(fail(ArrayErrorKind::Content(message)));
            }
            before += values.len();
            spool.push(Elements::I64(values)).map_err(disk)
        };
        let streamed = self.stream(
            info,
            AT_ONCE,
            &[NpyType::I64, NpyType::I32, NpyType::U8],
            &mut |array| match &array {
                Array::I64(a) => put(a.as_slice().unwrap_or_default()),
                other => put(other.to_i64(name)?.as_slice().unwrap_or_default()),
            },
        )?;
        if !streamed {
            put(self.i64(name, wanted)?.as_slice().unwrap_or_default())?;
        }
        spool.finish().map_err(disk)
    }

    /// [`f32`](Self::f32), row-major in a file in `folder`, as [`i64_spooled`](Self::i64_spooled) does.
    ///
    /// # Errors
    /// As [`f32`](Self::f32); when the disk refuses.
    pub fn f32_spooled(
        &self,
        name: &str,
        wanted: &[Option<usize>],
        folder: &Utf8Path,
    ) -> Result<Spooled, ArrayError> {
        self.fits_in(name, "float32", &[NpyType::F32, NpyType::U8])?;
        let info = self.fitting(name, wanted)?;
        self.take_whole(info)?;
        let row = info.shape.get(1..).unwrap_or_default().iter().product::<usize>().max(1);
        let disk = |e: std::io::Error| ArrayErrorKind::Io(e).in_file(folder);
        let mut spool = Spool::create_in(folder).map_err(disk)?;
        self.f32_rows(name, wanted, AT_ONCE.div_ceil(row), &mut |values| {
            spool.push(Elements::F32(values)).map_err(disk)
        })?;
        spool.finish().map_err(disk)
    }

    /// Elements of so many rows, of no more than there are.
    fn piece(&self, name: &str, rows: usize) -> Result<usize, ArrayError> {
        let shape = &self.info(name)?.shape;
        let product = |sizes: &[usize]| sizes.iter().fold(1_usize, |all, n| all.saturating_mul(*n));
        Ok(product(shape.get(1..).unwrap_or_default()).saturating_mul(rows.max(1)).min(product(shape)).max(1))
    }

    /// Calls `f` with consecutive pieces of an array of one of these types that lies row by row; false, and no call, where it
    /// does not, or is of another type.
    fn stream<E: From<ArrayError>>(
        &self,
        info: &ArrayInfo,
        piece: usize,
        kinds: &[NpyType],
        f: &mut dyn FnMut(Array) -> Result<(), E>,
    ) -> Result<bool, E> {
        let Some(stored) = Stored::named(&info.dtype).filter(|s| kinds.contains(&s.kind())) else {
            return Ok(false);
        };
        let all = info.shape.iter().fold(1_usize, |all, n| all.saturating_mul(*n));
        let piece = piece.min(all).max(1);
        let mut read = || -> Result<(), Stop<E>> {
            let bytes = (piece as u64).saturating_mul(stored.kind().size() as u64);
            memory::check("a part of it", bytes).map_err(ArrayErrorKind::from)?;
            match self.format {
                Format::Npz => {
                    npz::elements(&self.path, info, |header, held, reader| -> Result<(), Stop<E>> {
                        in_order::<E>(header, stored, held)?;
                        pieces(reader, stored, (all, piece), f)
                    })
                }
                Format::Npy => {
                    let (header, held, mut reader) = npy_open(&self.path)?;
                    in_order::<E>(&header, stored, held)?;
                    pieces(&mut reader, stored, (all, piece), f)
                }
                Format::Safetensors => {
                    pieces(&mut tensors::elements(&self.path, info)?.1, stored, (all, piece), f)
                }
            }
        };
        match read() {
            Ok(()) => Ok(true),
            Err(Stop::Columns) => Ok(false),
            Err(Stop::File(e)) => Err(E::from(e.of(&info.name).in_file(&self.path))),
            Err(Stop::Caller(e)) => Err(e),
        }
    }
}

/// Indices of an element in row-major order.
fn place(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (at, size) in at.iter_mut().zip(shape).rev() {
        (*at, index) = (index % (*size).max(1), index / (*size).max(1));
    }
    at
}

/// Whether the elements lie row by row, and are all there.
fn in_order<E>(header: &NpyHeader, stored: Stored, held: u64) -> Result<(), Stop<E>> {
    if header.fortran {
        return Err(Stop::Columns);
    }
    header.check_size(stored, held)?;
    Ok(())
}

fn pieces<E>(
    mut reader: &mut dyn Read,
    stored: Stored,
    (all, piece): (usize, usize),
    f: &mut dyn FnMut(Array) -> Result<(), E>,
) -> Result<(), Stop<E>> {
    let mut left = all;
    while left > 0 {
        let n = piece.min(left);
        f(npy::read_elements(&mut reader, stored, &[n], false).map_err(npz::of_data)?)
            .map_err(Stop::Caller)?;
        left -= n;
    }
    Ok(())
}
