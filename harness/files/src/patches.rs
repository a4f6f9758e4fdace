//! Patch lengths as arrays: one row per image, right-padded with 0.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use ndarray::ArrayD;

use crate::arrays::{ArrayError, ArrayErrorKind, Elements, Spool, Spooled};

/// Rows as a flat matrix and its number of columns.
pub fn pad<'a>(rows: impl Iterator<Item = &'a [usize]> + Clone) -> (Vec<i64>, usize) {
    let columns = rows.clone().map(<[usize]>::len).max().unwrap_or(0);
    let mut flat = Vec::new();
    for row in rows {
        flat.extend(row.iter().map(|l| *l as i64));
        flat.resize(flat.len() + columns - row.len(), 0);
    }
    (flat, columns)
}

/// Patch lengths that come row by row, on the disk: the number of columns is known when all are there.
#[derive(Debug)]
pub struct PatchSpool {
    folder: Utf8PathBuf,
    spool: Spool,
    /// Patches of each row.
    counts: Vec<u32>,
}

impl PatchSpool {
    /// None yet; files are in `folder` until what [`finish`](Self::finish) gives is dropped.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn create_in(folder: &Utf8Path) -> io::Result<Self> {
        Ok(Self { folder: folder.to_owned(), spool: Spool::create_in(folder)?, counts: Vec::new() })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn push(&mut self, lengths: &[usize]) -> io::Result<()> {
        let row: Vec<i64> = lengths.iter().map(|l| *l as i64).collect();
        self.counts.push(u32::try_from(row.len()).map_err(io::Error::other)?);
        self.spool.push(Elements::I64(&row))
    }

    /// Patches of each row.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// The padded matrix, row-major, and its number of columns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self) -> io::Result<(Spooled, usize)> {
        let Self { folder, spool, counts } = self;
        let columns = counts.iter().max().map_or(0, |n| *n as usize);
        let rows = spool.finish()?;
        let (mut padded, mut left) = (Spool::create_in(&folder)?, rows.i64()?);
        let zeros = vec![0; columns];
        for count in counts {
            let (row, later) = left.split_at(count as usize);
            padded.push(Elements::I64(row))?;
            padded.push(Elements::I64(&zeros[row.len()..]))?;
            left = later;
        }
        Ok((padded.finish()?, columns))
    }
}

/// Rows of a matrix `[N, M]` without their padding; `file` and `name` say in the error which it is.
///
/// # Errors
/// When a row is not lengths of 1 to `tokens` that sum to `tokens`, followed by zeros.
pub fn unpad(
    array: &ArrayD<i64>,
    tokens: usize,
    file: &Utf8Path,
    name: &str,
) -> Result<Vec<Vec<usize>>, ArrayError> {
    let rows = array.outer_iter().enumerate();
    rows.map(|(i, row)| unpad_row(i, row.iter(), tokens, (file, name))).collect()
}

/// Row `i` of such a matrix.
///
/// # Errors
/// As [`unpad`].
pub fn unpad_row<'a>(
    i: usize,
    row: impl Iterator<Item = &'a i64> + Clone,
    tokens: usize,
    (file, name): (&Utf8Path, &str),
) -> Result<Vec<usize>, ArrayError> {
    let used = row.clone().take_while(|l| **l != 0);
    let lengths: Vec<usize> =
        used.filter_map(|l| usize::try_from(*l).ok().filter(|l| *l <= tokens)).collect();
    let padding = row.skip(lengths.len()).all(|l| *l == 0);
    // At most `tokens` lengths of at most `tokens` each: the sum cannot overflow.
    if padding && lengths.len() <= tokens && lengths.iter().sum::<usize>() == tokens {
        return Ok(lengths);
    }
    let message =
        format!("row {i} is not patch lengths that sum to {tokens} tokens, padded with 0 on the right");
    let kind = ArrayErrorKind::Content(message);
    Err(ArrayError { file: Some(file.to_owned()), array: Some(name.to_owned()), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_comes_and_goes() {
        let rows = [vec![1, 3], vec![1, 1, 2]];
        let (flat, columns) = pad(rows.iter().map(Vec::as_slice));
        assert_eq!((flat.as_slice(), columns), (&[1, 3, 0, 1, 1, 2][..], 3));
        let array = ArrayD::from_shape_vec(vec![2, 3], flat).unwrap();
        assert_eq!(unpad(&array, 4, "f".into(), "x").unwrap(), rows);
    }

    #[test]
    fn rows_on_the_disk_are_padded_like_rows_in_memory() {
        let (_guard, folder) = crate::arrays::test_folder();
        let rows: Vec<Vec<usize>> = vec![vec![1, 3], vec![4], vec![1, 1, 2], vec![2, 2]];
        let mut spool = PatchSpool::create_in(&folder).unwrap();
        rows.iter().for_each(|row| spool.push(row).unwrap());
        assert_eq!(spool.counts(), [2, 1, 3, 2]);
        let (found, columns) = spool.finish().unwrap();
        assert_eq!((found.i64().unwrap().to_vec(), columns), pad(rows.iter().map(Vec::as_slice)));
        drop(found);
        let none = PatchSpool::create_in(&folder).unwrap().finish().unwrap();
        assert_eq!((none.0.i64().unwrap(), none.1), (&[][..], 0));
        drop(none);
        assert_eq!(fs_err::read_dir(&folder).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn rows_that_are_no_patch_lengths_are_refused() {
        for row in [[-1, 5, 0], [1, 0, 3], [1, 2, 0], [4, 4, 0], [1 << 62, 1, 0], [0, 0, 0]] {
            let array = ArrayD::from_shape_vec(vec![1, 3], row.to_vec()).unwrap();
            let e = unpad(&array, 4, "f".into(), "x").unwrap_err().to_string();
            assert!(e.contains("f: array `x`: row 0"), "{row:?}: {e}");
        }
    }
}
