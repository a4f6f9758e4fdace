//! Initializers: inline, or out of a mapped file in the graph's folder.

use std::collections::BTreeMap;
use std::ops::Range;

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::TensorProto;
use candle_onnx::onnx::tensor_proto::{DataLocation, DataType};
use dpar_engine_api::GraphFault;
use memmap2::Mmap;

/// The data files of one graph, each mapped once.
pub(crate) struct MappedWeights {
    folder: Utf8PathBuf,
    files: BTreeMap<String, Mmap>,
}

impl MappedWeights {
    /// For a graph in `folder`.
    pub(crate) fn new(folder: &Utf8Path) -> Self {
        let folder = if folder.as_str().is_empty() { Utf8Path::new(".") } else { folder };
        Self { folder: folder.to_owned(), files: BTreeMap::new() }
    }

    /// The tensor of an initializer: its bytes are copied once.
    pub(crate) fn tensor(&mut self, proto: &TensorProto) -> Result<Tensor, GraphFault> {
        self.read(proto).map_err(|why| format!("initializer `{}`: {why}", proto.name).into())
    }

    fn read(&mut self, proto: &TensorProto) -> Result<Tensor, GraphFault> {
        let shape = proto.dims.iter().map(|d| usize::try_from(*d));
        let shape: Vec<usize> = shape.collect::<Result<_, _>>().map_err(|_| "a negative size".to_owned())?;
        let count = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)).ok_or("too many elements")?;
        let (dtype, size) = match DataType::try_from(proto.data_type) {
            Ok(DataType::Float) => (DType::F32, 4),
            Ok(DataType::Double) => (DType::F64, 8),
            Ok(DataType::Int64) => (DType::I64, 8),
            Ok(DataType::Float16) => (DType::F16, 2),
            Ok(DataType::Bfloat16) => (DType::BF16, 2),
            Ok(DataType::Uint8 | DataType::Bool) => (DType::U8, 1),
            Ok(other) => return Err(format!("candle has no tensors of {}", other.as_str_name()).into()),
            Err(_) => return Err(format!("data type {} is unknown", proto.data_type).into()),
        };
        let bytes = count.checked_mul(size).ok_or("too many bytes")?;
        let make = |raw: &[u8]| {
            if raw.len() != bytes {
                return Err(GraphFault::from(format!(
                    "{} bytes for shape {shape:?} of {dtype:?}",
                    raw.len()
                )));
            }
            Tensor::from_raw_buffer(raw, dtype, &shape, &Device::Cpu).map_err(|e| e.to_string().into())
        };
        if DataLocation::try_from(proto.data_location) == Ok(DataLocation::External) {
            let (location, range) = place(proto, bytes)?;
            let file = self.map(&location)?;
            let len = file.len();
            return make(file.get(range.clone()).ok_or_else(|| {
                format!("bytes {range:?} lie beyond the end of `{location}`, which has {len}")
            })?);
        }
        let fields: [(DType, usize, Vec<u8>); 3] = [
            (DType::F32, proto.float_data.len(), le(&proto.float_data, |v| v.to_le_bytes())),
            (DType::F64, proto.double_data.len(), le(&proto.double_data, |v| v.to_le_bytes())),
            (DType::I64, proto.int64_data.len(), le(&proto.int64_data, |v| v.to_le_bytes())),
        ];
        match fields.iter().find(|(d, len, _)| *d == dtype && *len > 0) {
            Some((_, _, raw)) => make(raw),
            None => make(&proto.raw_data),
        }
    }

    /// A data file, which must lie in the graph's folder and be reached without leaving it.
    fn map(&mut self, location: &str) -> Result<&Mmap, GraphFault> {
        if !self.files.contains_key(location) {
            let inside = |c: Utf8Component<'_>| matches!(c, Utf8Component::Normal(_));
            if location.is_empty() || !Utf8Path::new(location).components().all(inside) {
                return Err(format!("`{location}` is not a path inside the graph's folder").into());
            }
            let path = self.folder.join(location);
            let real = |p: &Utf8Path| fs_err::canonicalize(p).map_err(|e| e.to_string());
            if !real(&path)?.starts_with(real(&self.folder)?) {
                return Err(format!("`{location}` leads out of the graph's folder").into());
            }
            let file = fs_err::File::open(&path).map_err(|e| e.to_string())?;
            // SAFETY: the mapping is read only. Whoever truncates the file while it is being read ends this process,
            // as with every mapped weight file of this project.
            #[allow(unsafe_code)]
            let map = unsafe { Mmap::map(file.file()) }.map_err(|e| format!("{path}: {e}"))?;
            self.files.insert(location.to_owned(), map);
        }
        self.files.get(location).ok_or_else(|| format!("`{location}` was not mapped").into())
    }
}

fn le<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|v| bytes(*v)).collect()
}

/// File and byte range of external data.
fn place(proto: &TensorProto, bytes: usize) -> Result<(String, Range<usize>), GraphFault> {
    let field = |key: &str| proto.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    let location = field("location").ok_or("external data without a location")?;
    let number = |key: &str, or: usize| match field(key) {
        Some(text) => text.parse::<usize>().map_err(|_| format!("`{key}` of its external data is `{text}`")),
        None => Ok(or),
    };
    let (start, length) = (number("offset", 0)?, number("length", bytes)?);
    let end = start.checked_add(length).ok_or("its external data ends nowhere")?;
    Ok((location.to_owned(), start..end))
}

#[cfg(test)]
mod tests {
    use candle_onnx::onnx::StringStringEntryProto;

    use super::*;

    fn external(location: &str, offset: &str, length: &str) -> TensorProto {
        let entry = |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
        TensorProto {
            name: "w".into(),
            dims: vec![2],
            data_type: DataType::Bfloat16 as i32,
            data_location: DataLocation::External as i32,
            external_data: vec![
                entry("location", location),
                entry("offset", offset),
                entry("length", length),
            ],
            ..TensorProto::default()
        }
    }

    #[test]
    fn external_data_is_read_from_the_folder_and_nowhere_else() {
        let temp = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(temp.path()).unwrap();
        let folder = root.join("onnx");
        fs_err::create_dir(&folder).unwrap();
        let values: Vec<u8> =
            [1.5_f32, -2.0].iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        let data = [vec![0; 8], values].concat();
        fs_err::write(folder.join("w.onnx_data"), &data).unwrap();
        fs_err::write(root.join("outside"), &data).unwrap();
        let mut weights = MappedWeights::new(&folder);
        let tensor = weights.tensor(&external("w.onnx_data", "8", "4")).unwrap();
        let found: Vec<f32> = tensor.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
        assert_eq!(found, [1.5, -2.0]);
        let absolute = root.join("outside");
        for (location, offset, length, why) in [
            ("../outside", "8", "4", "not a path inside"),
            (absolute.as_str(), "8", "4", "not a path inside"),
            ("", "0", "4", "not a path inside"),
            ("none", "0", "4", "none"),
            ("w.onnx_data", "10", "4", "beyond the end"),
            ("w.onnx_data", "8", "2", "2 bytes for shape [2]"),
            ("w.onnx_data", "x", "4", "`offset`"),
            ("w.onnx_data", "18446744073709551615", "4", "ends nowhere"),
        ] {
            let e = weights.tensor(&external(location, offset, length)).unwrap_err();
            assert!(
                e.to_string().starts_with("initializer `w`: ") && e.to_string().contains(why),
                "{location} {offset}: {e}"
            );
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(root.join("outside"), folder.join("link")).unwrap();
            let e = weights.tensor(&external("link", "8", "4")).unwrap_err();
            assert!(e.to_string().contains("leads out"), "{e}");
        }
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        for dims in [vec![-1], vec![i64::MAX, 8]] {
            let proto = TensorProto { dims, ..external("w", "0", "4") };
            MappedWeights::new(Utf8Path::new("")).tensor(&proto).unwrap_err();
        }
        let proto = TensorProto { data_type: DataType::String as i32, ..external("w", "0", "4") };
        assert!(
            MappedWeights::new(Utf8Path::new("")).tensor(&proto).unwrap_err().to_string().contains("STRING")
        );
    }
}
