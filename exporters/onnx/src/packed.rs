//! Matrices in whole numbers, in the weight file of a component.

use std::collections::BTreeMap;

use dpar_export_spec::{AccuracyLevel, Blocks, Quantized, WeightBits};

use crate::ExportError;
use crate::proto::{FLOAT, TensorProto, UINT8};
use crate::quantize::quantize;
use crate::store::WeightStore;

/// Opset of portable graphs with quantized weights: the first in which `DequantizeLinear` has blocks and 4-bit types.
pub(crate) const QUANTIZED_OPSET: i64 = 21;

/// A matrix in whole numbers: bytes that the dialects name by shapes and types of their own.
pub(crate) struct Packed {
    pub(crate) bits: WeightBits,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Columns that share a scale.
    pub(crate) block: usize,
    /// A code for each weight.
    pub(crate) codes: TensorProto,
    /// A float32 scale for each block.
    pub(crate) scales: TensorProto,
    /// The code of 0 for each block: always the same, but the standard's operator wants it.
    pub(crate) zeros: TensorProto,
}

/// What quantization has made of a component before its first matrix.
pub(crate) fn nothing_yet(blocks: Blocks, accuracy_level: AccuracyLevel) -> Quantized {
    Quantized {
        weights: blocks.bits,
        block: blocks.block,
        opset: QUANTIZED_OPSET,
        accuracy_level,
        matrices: BTreeMap::new(),
        kept: Vec::new(),
        bytes_before: 0,
        bytes_after: 0,
    }
}

impl WeightStore<'_> {
    /// The rows `order` of a checkpoint weight in whole numbers; `None` where it stays in floats.
    pub(crate) fn packed(
        &mut self,
        weight: &str,
        [rows, columns]: [usize; 2],
        order: &[usize],
    ) -> Result<Option<Packed>, ExportError> {
        let Some(blocks) = self.blocks() else { return Ok(None) };
        let Some(block) = blocks.of(order.len(), columns) else {
            self.keep(weight);
            return Ok(None);
        };
        let (bits, kept) = (blocks.bits, order.len());
        let (codes, scales) = (format!("{weight}.codes"), format!("{weight}.scales"));
        let zeros = format!("const/zeros/{}[{kept},{}]", bits.name(), columns / block);
        if !self.has(&codes) {
            let data = self.read_matrix(weight, &[rows, columns])?;
            let picked = order.iter().map(|row| &data[row * columns..][..columns]);
            let coded = quantize(picked, bits, block).map_err(|(at, value)| ExportError::NotFinite {
                component: self.component().to_owned(),
                tensor: weight.to_owned(),
                value,
                column: at,
            })?;
            let bytes: Vec<u8> = coded.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
            let zero = match bits {
                WeightBits::Int8 => vec![bits.zero(); coded.scales.len()],
                WeightBits::Int4 => vec![bits.zero() * 0x11; coded.scales.len().div_ceil(2)],
            };
            let new = if self.has(&zeros) { 0 } else { zero.len() };
            let after = coded.codes.len() + bytes.len() + new;
            self.put_bytes(&codes, UINT8, &coded.codes)?;
            self.put_bytes(&scales, FLOAT, &bytes)?;
            self.put_bytes(&zeros, UINT8, &zero)?;
            self.count(block, (kept * columns * size_of::<f32>()) as u64, after as u64);
        }
        let [codes, scales, zeros] = [&codes, &scales, &zeros].map(|name| self.known(name));
        Ok(Some(Packed { bits, rows: kept, columns, block, codes, scales, zeros }))
    }
}
