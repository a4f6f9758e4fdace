//! Patch lengths as arrays: one row per image, right-padded with 0.

use camino::Utf8Path;
use ndarray::ArrayD;

use crate::arrays::{ArrayError, ArrayErrorKind};

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
    let row = |(i, row): (usize, ndarray::ArrayViewD<'_, i64>)| {
        let used = row.iter().take_while(|l| **l != 0);
        let lengths: Vec<usize> =
            used.filter_map(|l| usize::try_from(*l).ok().filter(|l| *l <= tokens)).collect();
        let padding = row.iter().skip(lengths.len()).all(|l| *l == 0);
        // At most `tokens` lengths of at most `tokens` each: the sum cannot overflow.
        if padding && lengths.len() <= tokens && lengths.iter().sum::<usize>() == tokens {
            return Ok(lengths);
        }
        let message =
            format!("row {i} is not patch lengths that sum to {tokens} tokens, padded with 0 on the right");
        let kind = ArrayErrorKind::Content(message);
        Err(ArrayError { file: Some(file.to_owned()), array: Some(name.to_owned()), kind })
    };
    array.outer_iter().enumerate().map(row).collect()
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
    fn rows_that_are_no_patch_lengths_are_refused() {
        for row in [[-1, 5, 0], [1, 0, 3], [1, 2, 0], [4, 4, 0], [1 << 62, 1, 0], [0, 0, 0]] {
            let array = ArrayD::from_shape_vec(vec![1, 3], row.to_vec()).unwrap();
            let e = unpad(&array, 4, "f".into(), "x").unwrap_err().to_string();
            assert!(e.contains("f: array `x`: row 0"), "{row:?}: {e}");
        }
    }
}
