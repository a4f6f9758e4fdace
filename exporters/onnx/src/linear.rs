//! Linear layers: x · Wᵀ with a float matrix, or with one that is kept in whole numbers.

use std::borrow::Cow;

use dpar_export_spec::{Dialect, WeightBits};

use crate::ExportError;
use crate::builder::{GraphBuilder, ValueName, int};
use crate::packed::Packed;
use crate::proto::{TensorProto, UINT4, UINT8};

impl GraphBuilder<'_, '_> {
    /// x · Wᵀ for a checkpoint weight `[rows, columns]`.
    pub(crate) fn linear(
        &mut self,
        x: &ValueName,
        weight: &str,
        rows: usize,
        columns: usize,
    ) -> Result<ValueName, ExportError> {
        self.linear_rows(x, weight, [rows, columns], (0..rows).collect())
    }

    /// x · Wᵀ for an operand x and the rows `order` of a checkpoint weight `[rows, columns]`. A float matrix is stored
    /// transposed.
    pub(crate) fn linear_rows(
        &mut self,
        x: &ValueName,
        weight: &str,
        shape: [usize; 2],
        order: Vec<usize>,
    ) -> Result<ValueName, ExportError> {
        let [rows, columns] = shape;
        if let Some(packed) = self.store.packed(weight, shape, &order)? {
            return Ok(self.packed_product(x, weight, &packed));
        }
        let w = self.matrix(&format!("{weight}.T"), &[columns, order.len()], |store| {
            let data = store.read_matrix(weight, &[rows, columns])?;
            Ok(Cow::Owned(transposed(&data, columns, order.into_iter())))
        })?;
        Ok(self.product(x, &w))
    }

    /// Bytes of the weight file as an initializer of a type and shape.
    fn held(&mut self, name: &str, bytes: &TensorProto, data_type: i32, dims: &[usize]) -> ValueName {
        let dims = dims.iter().map(|d| *d as i64).collect();
        let tensor =
            TensorProto { name: Some(name.to_owned()), data_type: Some(data_type), dims, ..bytes.clone() };
        self.insert(name, tensor);
        name.to_owned()
    }

    /// The product with a matrix of whole numbers. The portable form makes the float matrix first; the packed one is for
    /// engines whose operator reads the codes themselves. Both read the same bytes.
    fn packed_product(&mut self, x: &ValueName, weight: &str, packed: &Packed) -> ValueName {
        let Packed { bits, rows, columns, block, codes, scales, zeros } = packed;
        let blocks = columns / block;
        let (codes_name, scales_name) = (format!("{weight}.codes"), format!("{weight}.scales"));
        let float = scales.data_type.unwrap_or_default();
        match self.dialect() {
            Dialect::Portable => {
                let code = match bits {
                    WeightBits::Int8 => UINT8,
                    WeightBits::Int4 => UINT4,
                };
                let w = self.held(&codes_name, codes, code, &[*rows, *columns]);
                let s = self.held(&scales_name, scales, float, &[*rows, blocks]);
                let zeros_name = zeros.name.clone().unwrap_or_default();
                let z = self.held(&zeros_name, zeros, code, &[*rows, blocks]);
                let attributes = vec![int("axis", 1), int("block_size", *block as i64)];
                let w = self.op("DequantizeLinear", &[&w, &s, &z], attributes);
                let w = self.transpose(&w, &[1, 0]);
                self.product(x, &w)
            }
            Dialect::Packed => {
                let w = self.held(&codes_name, codes, UINT8, &[*rows, blocks, block * bits.bits() / 8]);
                let s = self.held(&scales_name, scales, float, &[rows * blocks]);
                let attributes = vec![
                    int("K", *columns as i64),
                    int("N", *rows as i64),
                    int("accuracy_level", self.store.accuracy().number()),
                    int("bits", bits.bits() as i64),
                    int("block_size", *block as i64),
                ];
                self.microsoft_op("MatMulNBits", &[x, &w, &s], attributes)
            }
        }
    }
}

/// Rows and columns of a tile: it stays in the nearest cache.
const TILE: usize = 32;

/// The given rows of a row-major matrix with `columns` columns, as columns of the result.
fn transposed(data: &[f32], columns: usize, rows: impl Iterator<Item = usize>) -> Vec<f32> {
    let rows: Vec<usize> = rows.collect();
    let n = rows.len();
    let mut out = vec![0.0; n * columns];
    // Through a small tile: lines that lie a power of two apart, as those of most matrices do, share places in a cache, and a
    // column of them pushes itself out.
    let mut tile = [[0.0_f32; TILE]; TILE];
    for (j0, rows) in rows.chunks(TILE).enumerate() {
        for c0 in (0..columns).step_by(TILE) {
            let width = TILE.min(columns - c0);
            for (j, row) in rows.iter().enumerate() {
                let from = &data[row * columns + c0..][..width];
                for (line, value) in tile.iter_mut().zip(from) {
                    line[j] = *value;
                }
            }
            for (c, line) in tile[..width].iter().enumerate() {
                out[(c0 + c) * n + j0 * TILE..][..rows.len()].copy_from_slice(&line[..rows.len()]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::transposed;

    #[test]
    fn rows_become_columns_in_the_given_order() {
        let data: Vec<f32> = (0..70 * 40).map(|i| i as f32).collect();
        let order: Vec<usize> = (0..70).rev().collect();
        let out = transposed(&data, 40, order.iter().copied());
        for (j, row) in order.iter().enumerate() {
            for c in 0..40 {
                assert_eq!(out[c * 70 + j], data[row * 40 + c]);
            }
        }
    }
}
