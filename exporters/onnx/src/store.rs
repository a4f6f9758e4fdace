//! The external-data file of one component: every transformed tensor is written once and shared by all graphs.

use std::borrow::Cow;
use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::{AccuracyLevel, Blocks, DType, Precision, Quantized};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::ExportError;
use crate::hashed::HashedFile;
use crate::proto::{StringStringEntryProto, TensorProto, elem_type};

/// Tensors smaller than this stay inside the graph file.
const INLINE_BYTES: usize = 1024;
/// Offsets of external tensors are multiples of this (the page size, so that a reader can map them).
const ALIGN: u64 = 4096;

/// Where the exporter reads weights from: row-major float32 with a shape.
pub trait Weights {
    /// The tensor of that checkpoint name.
    ///
    /// # Errors
    /// Whatever the reader reports; it is wrapped with component and tensor name.
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Cow<'_, [f32]>), WeightsError>;
}

/// The error type of [`Weights`] readers.
pub type WeightsError = Box<dyn std::error::Error + Send + Sync>;

/// Collects the initializers of one component.
pub(crate) struct WeightStore<'a> {
    component: String,
    weights: &'a dyn Weights,
    precision: Precision,
    blocks: Option<Blocks>,
    quantized: Option<Quantized>,
    path: Utf8PathBuf,
    file_name: String,
    out: HashedFile,
    written: BTreeMap<String, TensorProto>,
}

/// A finished external-data file.
pub(crate) struct FinishedStore {
    pub(crate) file_name: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
    /// What quantization made of the component.
    pub(crate) quantized: Option<Quantized>,
}

impl<'a> WeightStore<'a> {
    pub(crate) fn create(
        component: &str,
        weights: &'a dyn Weights,
        folder: &Utf8Path,
    ) -> Result<Self, ExportError> {
        let file_name = format!("{component}.onnx_data");
        let path = folder.join(&file_name);
        let out =
            HashedFile::create(&path).map_err(|source| ExportError::Write { path: path.clone(), source })?;
        Ok(Self {
            component: component.to_owned(),
            weights,
            precision: Precision::Fp32,
            blocks: None,
            quantized: None,
            path,
            file_name,
            out,
            written: BTreeMap::new(),
        })
    }

    /// The same store, whose weights are kept in the type of `precision`.
    pub(crate) fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same store, whose matrices are quantized; `empty` says how, and of no matrix yet.
    pub(crate) fn with_blocks(self, blocks: Option<Blocks>, empty: impl FnOnce(Blocks) -> Quantized) -> Self {
        Self { blocks, quantized: blocks.map(empty), ..self }
    }

    /// How matrices are quantized.
    pub(crate) fn blocks(&self) -> Option<Blocks> {
        self.blocks
    }

    /// What engines may round in products with quantized matrices.
    pub(crate) fn accuracy(&self) -> AccuracyLevel {
        self.quantized.as_ref().map(|q| q.accuracy_level).unwrap_or_default()
    }

    /// Notes a matrix that stays as it is.
    pub(crate) fn keep(&mut self, weight: &str) {
        if let Some(quantized) = &mut self.quantized
            && quantized.kept.iter().all(|w| w != weight)
        {
            quantized.kept.push(weight.to_owned());
        }
    }

    /// Notes a matrix that is quantized: the columns of its blocks, its bytes before and after.
    pub(crate) fn count(&mut self, block: usize, before: u64, after: u64) {
        if let Some(quantized) = &mut self.quantized {
            *quantized.matrices.entry(block).or_default() += 1;
            quantized.bytes_before += before;
            quantized.bytes_after += after;
        }
    }

    pub(crate) fn component(&self) -> &str {
        &self.component
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Reads a checkpoint tensor that lies between products, and checks its shape and that its type holds its values.
    pub(crate) fn read(&self, name: &str, expected: &[usize]) -> Result<Cow<'a, [f32]>, ExportError> {
        self.read_as(name, expected, self.precision.stream())
    }

    /// Reads the matrix of a linear layer; checks as [`read`](Self::read).
    pub(crate) fn read_matrix(&self, name: &str, expected: &[usize]) -> Result<Cow<'a, [f32]>, ExportError> {
        self.read_as(name, expected, self.precision.rounds_to())
    }

    fn read_as(&self, name: &str, expected: &[usize], to: DType) -> Result<Cow<'a, [f32]>, ExportError> {
        let data = self.read_unbounded(name, expected)?;
        let largest = match to {
            DType::F16 => f16::MAX.to_f32(),
            DType::BF16 => bf16::MAX.to_f32(),
            DType::F32 | DType::I64 => return Ok(data),
        };
        match data.iter().position(|v| v.abs() > largest) {
            None => Ok(data),
            Some(index) => Err(ExportError::Overflow {
                component: self.component.clone(),
                tensor: name.to_owned(),
                value: data[index],
                index,
                precision: self.precision,
                largest,
            }),
        }
    }

    /// Reads a checkpoint tensor whose values are scaled before they are stored; checks its shape only.
    pub(crate) fn read_unbounded(
        &self,
        name: &str,
        expected: &[usize],
    ) -> Result<Cow<'a, [f32]>, ExportError> {
        let (shape, data) = self.weights.tensor(name).map_err(|source| ExportError::Weight {
            component: self.component.clone(),
            tensor: name.to_owned(),
            source,
        })?;
        if shape != expected {
            return Err(ExportError::Shape {
                component: self.component.clone(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: shape,
            });
        }
        Ok(data)
    }

    /// The initializer `name`, made by `make` when it is asked for the first time and kept as `dtype`, each value
    /// rounded to the nearest (ties to even).
    pub(crate) fn initializer(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        make: impl FnOnce(&Self) -> Result<Cow<'a, [f32]>, ExportError>,
    ) -> Result<TensorProto, ExportError> {
        if let Some(known) = self.written.get(name) {
            return Ok(known.clone());
        }
        let data = make(self)?;
        debug_assert_eq!(shape.iter().product::<usize>(), data.len(), "{name}");
        let mut pieces = data.chunks(1 << 14);
        let mut next = |out: &mut Vec<u8>| pieces.next().map(|piece| encode(piece, dtype, out)).is_some();
        let mut proto = self.hold(name, data.len() * dtype.bytes(), &mut next)?;
        proto.dims = shape.iter().map(|d| *d as i64).collect();
        proto.data_type = Some(elem_type(dtype));
        self.written.insert(name.to_owned(), proto.clone());
        Ok(proto)
    }

    /// Whether a tensor of that name was written.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.written.contains_key(name)
    }

    /// The tensor of that name, which was written.
    pub(crate) fn known(&self, name: &str) -> TensorProto {
        debug_assert!(self.has(name), "{name}");
        self.written.get(name).cloned().unwrap_or_default()
    }

    /// Writes bytes as a tensor of no shape yet, unless it is known.
    pub(crate) fn put_bytes(&mut self, name: &str, data_type: i32, bytes: &[u8]) -> Result<(), ExportError> {
        if self.has(name) {
            return Ok(());
        }
        let mut pieces = bytes.chunks(1 << 16);
        let mut next = |out: &mut Vec<u8>| pieces.next().map(|piece| out.extend_from_slice(piece)).is_some();
        let proto = self.hold(name, bytes.len(), &mut next)?;
        self.written.insert(name.to_owned(), TensorProto { data_type: Some(data_type), ..proto });
        Ok(())
    }

    /// A tensor with its elements: inside the graph, or in the file. `next` adds the next piece of them.
    fn hold(
        &mut self,
        name: &str,
        bytes: usize,
        next: &mut dyn FnMut(&mut Vec<u8>) -> bool,
    ) -> Result<TensorProto, ExportError> {
        let mut proto = TensorProto { name: Some(name.to_owned()), ..TensorProto::default() };
        if bytes < INLINE_BYTES {
            let mut raw = Vec::with_capacity(bytes);
            while next(&mut raw) {}
            proto.raw_data = Some(raw);
        } else {
            let offset = self.append(next)?;
            let entry = |key: &str, value: String| StringStringEntryProto {
                key: Some(key.to_owned()),
                value: Some(value),
            };
            proto.external_data = vec![
                entry("location", self.file_name.clone()),
                entry("offset", offset.to_string()),
                entry("length", bytes.to_string()),
            ];
            proto.data_location = Some(1);
        }
        Ok(proto)
    }

    fn append(&mut self, next: &mut dyn FnMut(&mut Vec<u8>) -> bool) -> Result<u64, ExportError> {
        let end = self.out.size();
        let start = end.next_multiple_of(ALIGN);
        self.put(&vec![0_u8; (start - end) as usize])?;
        let mut buffer = Vec::with_capacity(1 << 16);
        while next(&mut buffer) {
            self.put(&buffer)?;
            buffer.clear();
        }
        Ok(start)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.out.push(bytes).map_err(|source| ExportError::Write { path: self.path.clone(), source })
    }

    pub(crate) fn finish(self) -> Result<FinishedStore, ExportError> {
        let Self { out, path, file_name, quantized, .. } = self;
        let (size, sha256) = out.finish().map_err(|source| ExportError::Write { path, source })?;
        Ok(FinishedStore { file_name, size, sha256, quantized })
    }
}

/// The nearest numbers of a half type, ties to even, as float32.
pub(crate) fn rounded(data: &[f32], to: DType) -> Vec<f32> {
    match to {
        DType::F16 => data.iter().map(|v| f16::from_f32(*v).to_f32()).collect(),
        DType::BF16 => data.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
        DType::F32 | DType::I64 => data.to_vec(),
    }
}

/// Appends the little-endian bytes of `data` as `dtype`.
fn encode(data: &[f32], dtype: DType, out: &mut Vec<u8>) {
    match dtype {
        DType::F16 => {
            let mut halves = vec![f16::ZERO; data.len()];
            halves.convert_from_f32_slice(data);
            little_endian(&halves, |v| v.to_le_bytes(), out);
        }
        DType::BF16 => little_endian(data, |v| bf16::from_f32(*v).to_le_bytes(), out),
        DType::F32 | DType::I64 => little_endian(data, |v| v.to_le_bytes(), out),
    }
}

/// In a form that becomes vector instructions.
fn little_endian<T, const N: usize>(data: &[T], bytes: impl Fn(&T) -> [u8; N], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + N * data.len(), 0);
    for (place, value) in out[start..].as_chunks_mut::<N>().0.iter_mut().zip(data) {
        *place = bytes(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_the_nearest_and_ties_to_even() {
        let bytes = |value: f32, dtype| {
            let mut out = Vec::new();
            encode(&[value], dtype, &mut out);
            out
        };
        assert_eq!(bytes(1.5, DType::F32), 1.5_f32.to_le_bytes());
        // Half a unit in the last place above 1, whose mantissa is even, and above its odd neighbour.
        assert_eq!(bytes(1.0 + 2.0_f32.powi(-11), DType::F16), f16::from_f32(1.0).to_le_bytes());
        assert_eq!(bytes(1.0 + 3.0 * 2.0_f32.powi(-11), DType::F16), [0x02, 0x3c]);
        assert_eq!(bytes(1.0 + 2.0_f32.powi(-8), DType::BF16), bf16::from_f32(1.0).to_le_bytes());
        assert_eq!(bytes(1.0 + 3.0 * 2.0_f32.powi(-8), DType::BF16), [0x82, 0x3f]);
        // The smallest number that fp16 keeps.
        assert_eq!(bytes(2.0_f32.powi(-24), DType::F16), [1, 0]);
    }

    struct One(f32);

    impl Weights for One {
        fn tensor(&self, _: &str) -> Result<(Vec<usize>, Cow<'_, [f32]>), WeightsError> {
            Ok((vec![2], Cow::Owned(vec![0.5, self.0])))
        }
    }

    #[test]
    fn a_weight_beyond_the_type_is_named_with_its_value() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let read = |value, precision| {
            let weights = One(value);
            let store = WeightStore::create("c", &weights, folder).unwrap().with_precision(precision);
            store.read("layers.0.w", &[2]).map(Cow::into_owned).map_err(|e| e.to_string())
        };
        assert_eq!(read(65504.0, Precision::Fp16).unwrap(), [0.5, 65504.0]);
        let e = read(-65505.0, Precision::Fp16).unwrap_err();
        assert_eq!(e, "c: tensor `layers.0.w` holds -65505 at element 1, and fp16 ends at 65504");
        read(65505.0, Precision::Bf16).unwrap();
        read(f32::MAX, Precision::Fp32).unwrap();
        assert!(read(f32::MAX, Precision::Bf16).unwrap_err().contains("bf16 ends at 33895"));
    }
}
