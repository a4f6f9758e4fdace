//! The external-data file of one component: every transformed tensor is written once and shared by all graphs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::File;
use sha2::{Digest, Sha256};

use crate::ExportError;
use crate::proto::{FLOAT, StringStringEntryProto, TensorProto};

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
    path: Utf8PathBuf,
    file_name: String,
    out: BufWriter<File>,
    hash: Sha256,
    offset: u64,
    written: BTreeMap<String, TensorProto>,
}

/// A finished external-data file.
pub(crate) struct FinishedStore {
    pub(crate) file_name: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

impl<'a> WeightStore<'a> {
    pub(crate) fn create(
        component: &str,
        weights: &'a dyn Weights,
        folder: &Utf8Path,
    ) -> Result<Self, ExportError> {
        let file_name = format!("{component}.onnx_data");
        let path = folder.join(&file_name);
        let file = File::create(&path).map_err(|source| ExportError::Write { path: path.clone(), source })?;
        Ok(Self {
            component: component.to_owned(),
            weights,
            path,
            file_name,
            out: BufWriter::with_capacity(1 << 20, file),
            hash: Sha256::new(),
            offset: 0,
            written: BTreeMap::new(),
        })
    }

    pub(crate) fn component(&self) -> &str {
        &self.component
    }

    /// Reads a checkpoint tensor and checks its shape.
    pub(crate) fn read(&self, name: &str, expected: &[usize]) -> Result<Cow<'a, [f32]>, ExportError> {
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

    /// The initializer `name`, made by `make` when it is asked for the first time.
    pub(crate) fn initializer(
        &mut self,
        name: &str,
        shape: &[usize],
        make: impl FnOnce(&Self) -> Result<Cow<'a, [f32]>, ExportError>,
    ) -> Result<TensorProto, ExportError> {
        if let Some(known) = self.written.get(name) {
            return Ok(known.clone());
        }
        let data = make(self)?;
        debug_assert_eq!(shape.iter().product::<usize>(), data.len(), "{name}");
        let mut proto = TensorProto {
            dims: shape.iter().map(|d| *d as i64).collect(),
            data_type: Some(FLOAT),
            name: Some(name.to_owned()),
            ..TensorProto::default()
        };
        let bytes = data.len() * 4;
        if bytes < INLINE_BYTES {
            proto.raw_data = Some(data.iter().flat_map(|v| v.to_le_bytes()).collect());
        } else {
            let offset = self.append(&data)?;
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
        self.written.insert(name.to_owned(), proto.clone());
        Ok(proto)
    }

    fn append(&mut self, data: &[f32]) -> Result<u64, ExportError> {
        let start = self.offset.next_multiple_of(ALIGN);
        self.put(&vec![0_u8; (start - self.offset) as usize])?;
        let mut buffer = Vec::with_capacity(1 << 16);
        for chunk in data.chunks(1 << 14) {
            buffer.clear();
            buffer.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
            self.put(&buffer)?;
        }
        Ok(start)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.out.write_all(bytes).map_err(|source| ExportError::Write { path: self.path.clone(), source })?;
        self.hash.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<FinishedStore, ExportError> {
        let written = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        written.map_err(|source| ExportError::Write { path: self.path.clone(), source })?;
        Ok(FinishedStore {
            file_name: self.file_name,
            size: self.offset,
            sha256: hex::encode(self.hash.finalize()),
        })
    }
}
