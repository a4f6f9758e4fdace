//! An array a few rows at a time.

use std::io::Read;

use dpar_export_inputs::memory;

use super::npy::{self, NpyHeader, NpyType, Stored};
use super::{ArrayError, ArrayErrorKind, ArrayFile, Format, npy_open, npz, tensors};

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
        let info = self.fitting(name, wanted)?;
        let fail = |e: ArrayErrorKind| E::from(e.of(name).in_file(&self.path));
        let all = info.shape.iter().fold(1_usize, |all, n| all.saturating_mul(*n));
        let row = info.shape.iter().skip(1).fold(1_usize, |all, n| all.saturating_mul(*n));
        let piece = row.saturating_mul(rows.max(1)).min(all).max(1);
        let stored = Stored::named(&info.dtype).filter(|s| s.kind() == NpyType::F32);
        let mut read = |stored: Stored| -> Result<(), Stop<E>> {
            memory::check("a part of it", (piece as u64).saturating_mul(4)).map_err(ArrayErrorKind::from)?;
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
        match stored.map_or(Err(Stop::Columns), &mut read) {
            Ok(()) => Ok(()),
            Err(Stop::File(e)) => Err(fail(e)),
            Err(Stop::Caller(e)) => Err(e),
            Err(Stop::Columns) => {
                let array = self.f32(name, wanted)?;
                array.as_slice().unwrap_or_default().chunks(piece).try_for_each(f)
            }
        }
    }
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
    f: &mut dyn FnMut(&[f32]) -> Result<(), E>,
) -> Result<(), Stop<E>> {
    let mut left = all;
    while left > 0 {
        let values = npy::floats(&mut reader, piece.min(left), stored).map_err(npz::of_data)?;
        f(&values).map_err(Stop::Caller)?;
        left -= values.len();
    }
    Ok(())
}
