//! Builders of tiny weight files: pickles by hand, zip archives and safetensors through their crates.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_checkpoint::{CheckpointError, LoadOptions, Loaded, TensorFile, WeightFormat, load};
use safetensors::tensor::TensorView;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

/// A pickle program, opcode by opcode.
#[derive(Default, Clone)]
pub(crate) struct Pickle(pub(crate) Vec<u8>);

impl Pickle {
    pub(crate) fn new() -> Self {
        Self(vec![0x80, 2])
    }
    pub(crate) fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    pub(crate) fn str(self, s: &str) -> Self {
        self.op(b"X").op(&(s.len() as u32).to_le_bytes()).op(s.as_bytes())
    }
    pub(crate) fn int(self, v: i64) -> Self {
        self.op(&[0x8a, 8]).op(&v.to_le_bytes())
    }
    pub(crate) fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }
    pub(crate) fn ints(self, values: &[i64]) -> Self {
        values.iter().fold(self.op(b"("), |p, v| p.int(*v)).op(b"t")
    }
    pub(crate) fn tensor(self, t: &PtTensor) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .str("storage")
            .global("torch", t.class)
            .str(&t.key)
            .str("cpu")
            .int(t.elements)
            .op(b"tQ")
            .int(t.offset)
            .ints(&t.size)
            .ints(&t.stride)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }
    pub(crate) fn state_dict(self, tensors: &[(String, PtTensor)]) -> Self {
        let p = self.global("collections", "OrderedDict").op(b")R(");
        tensors.iter().fold(p, |p, (n, t)| p.str(n).tensor(t)).op(b"u")
    }
    pub(crate) fn stop(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// A tensor as a pickle declares it.
#[derive(Clone)]
pub(crate) struct PtTensor {
    pub(crate) class: &'static str,
    pub(crate) key: String,
    pub(crate) elements: i64,
    pub(crate) offset: i64,
    pub(crate) size: Vec<i64>,
    pub(crate) stride: Vec<i64>,
}

impl PtTensor {
    /// A contiguous float32 tensor with its own storage.
    pub(crate) fn f32(key: &str, size: &[i64]) -> Self {
        let mut stride = vec![1; size.len()];
        for d in (0..size.len().saturating_sub(1)).rev() {
            stride[d] = stride[d + 1] * size[d + 1];
        }
        let elements = size.iter().product();
        Self { class: "FloatStorage", key: key.to_owned(), elements, offset: 0, size: size.to_vec(), stride }
    }
}

pub(crate) fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// A zip archive of stored records.
pub(crate) fn archive(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in records {
        zip.start_file(
            *name,
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored),
        )
        .unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A `.pt` from a pickle and its storages.
pub(crate) fn pt(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let names: Vec<String> = storages.iter().map(|(k, _)| format!("m/data/{k}")).collect();
    let mut records: Vec<(&str, &[u8])> = vec![("m/data.pkl", pickle), ("m/byteorder", b"little")];
    records.extend(names.iter().zip(storages).map(|(n, (_, b))| (n.as_str(), *b)));
    records.push(("m/version", b"3\n"));
    archive(&records)
}

pub(crate) fn open_pt(bytes: Vec<u8>) -> Result<TensorFile, CheckpointError> {
    TensorFile::from_bytes(Utf8Path::new("x.pt"), bytes, WeightFormat::Torch)
}

/// A model as names, shapes and float32 values.
#[derive(Clone, Default)]
pub(crate) struct Model(pub(crate) BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Model {
    pub(crate) fn add(&mut self, name: &str, shape: &[usize]) {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| (i % 13) as f32 * 0.01 - 0.05).collect();
        self.0.insert(name.to_owned(), (shape.to_vec(), values));
    }
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let t = self.0.remove(from).unwrap();
        self.0.insert(to.to_owned(), t);
    }
    pub(crate) fn rename_all(&self, f: impl Fn(&str) -> String) -> Self {
        Self(self.0.iter().map(|(n, t)| (f(n), t.clone())).collect())
    }
    fn block(&mut self, at: &str, d: usize, ffn: usize) {
        self.add(&format!("{at}.attention.wqkv.weight"), &[3 * d, d]);
        self.add(&format!("{at}.attention.wo.weight"), &[d, d]);
        self.add(&format!("{at}.feed_forward.w1.weight"), &[ffn, d]);
        self.add(&format!("{at}.feed_forward.w3.weight"), &[ffn, d]);
        self.add(&format!("{at}.feed_forward.w2.weight"), &[d, ffn]);
        self.add(&format!("{at}.attention_norm.weight"), &[d]);
        self.add(&format!("{at}.ffn_norm.weight"), &[d]);
    }
    /// A LlamaGen transformer of 2 layers; `classes` 0 = unconditional.
    pub(crate) fn gpt(d: usize, vocab: usize, classes: usize) -> Self {
        let mut m = Self::default();
        if classes > 0 {
            m.add("cls_embedding.embedding_table.weight", &[classes + 1, d]);
        }
        m.add("tok_embeddings.weight", &[vocab, d]);
        (0..2).for_each(|i| m.block(&format!("layers.{i}"), d, 24));
        m.add("norm.weight", &[d]);
        m.add("output.weight", &[vocab, d]);
        m
    }
    /// A DPAR of E1 G2 D1, width 16, 12 codes, 3 classes.
    pub(crate) fn dpar() -> Self {
        let mut m = Self::gpt(16, 12, 3);
        m.add("decoder_start_embedding.weight", &[1, 16]);
        for side in ["local_encoder", "local_decoder"] {
            m.block(&format!("{side}.layers.0"), 16, 24);
            let cross = format!("{side}.cross_attn_layers.0");
            m.add(&format!("{cross}.cross_attn_norm_kv.weight"), &[16]);
            m.add(&format!("{cross}.wo.weight"), &[16, 16]);
        }
        m.add("local_encoder.cross_attn_layers.0.cross_attn_norm_q.weight", &[16]);
        for w in ["wq", "wk", "wv"] {
            m.add(&format!("local_encoder.cross_attn_layers.0.{w}.weight"), &[16, 16]);
        }
        m
    }
    pub(crate) fn safetensors(&self) -> Vec<u8> {
        let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> =
            self.0.iter().map(|(n, (s, v))| (n, s, f32s(v.iter().copied()))).collect();
        let views = bytes.iter().map(|(n, s, b)| {
            (n.as_str(), TensorView::new(safetensors::Dtype::F32, (*s).clone(), b).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }
    /// A `.pt` with the state dict under `wrapper`, or bare.
    pub(crate) fn pt(&self, wrapper: Option<&str>) -> Vec<u8> {
        let mut tensors = Vec::new();
        let mut storages = Vec::new();
        for (i, (name, (shape, values))) in self.0.iter().enumerate() {
            let size: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
            tensors.push((name.clone(), PtTensor::f32(&i.to_string(), &size)));
            storages.push((i.to_string(), f32s(values.iter().copied())));
        }
        let p = Pickle::new();
        let program = match wrapper {
            Some(w) => p
                .op(b"}(")
                .str(w)
                .state_dict(&tensors)
                .str("args")
                .global("argparse", "Namespace")
                .op(b")\x81}")
                .str("lr")
                .op(b"G\0\0\0\0\0\0\0\0sb")
                .str("steps")
                .int(7)
                .op(b"u")
                .stop(),
            None => p.state_dict(&tensors).stop(),
        };
        let storages: Vec<(&str, &[u8])> = storages.iter().map(|(k, b)| (k.as_str(), b.as_slice())).collect();
        pt(&program, &storages)
    }
}

pub(crate) const DPAR_CONFIG: &str = "\
exp_name: tiny
model:
  gpt_model: DGPT-tiny
  gpt_type: c2i
  cls_token_num: 1
  codebook_size: 12
  codebook_embed_dim: 8
  downsample_size: 4
  n_head: 1
  embedding_type: dynamic_4d
dataset: {image_size: 16, num_classes: 3}
patcher:
  patching_mode: entropy_row_boundary
  threshold: 2.5
  max_patch_length: 3
  block_size: 4
  entropy_model_checkpoint: ../entropy/checkpoints/final/model.safetensors
  entropy_model_checkpoint_config: ../entropy/config.yaml
";

pub(crate) const ENTROPY_CONFIG: &str = "\
model: {gpt_type: ucond, cls_token_num: 0, codebook_size: 12, downsample_size: 4, n_head: 1}
dataset: {image_size: 16}
";

pub(crate) const GPT_CONFIG: &str = "\
model: {gpt_type: c2i, cls_token_num: 1, codebook_size: 12, codebook_embed_dim: 8, downsample_size: 4, n_head: 1}
dataset: {image_size: 16, num_classes: 3}
";

/// A folder with a tiny DPAR system: `dpar/`, `entropy/`.
pub(crate) struct System {
    _dir: TempDir,
    pub(crate) root: Utf8PathBuf,
}

impl System {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let root = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        let s = Self { _dir: dir, root };
        s.write("dpar/config.yaml", DPAR_CONFIG);
        s.write("dpar/checkpoints/final/model.safetensors", Model::dpar().safetensors());
        s.write("entropy/config.yaml", ENTROPY_CONFIG);
        s.write("entropy/checkpoints/final/model.safetensors", Model::gpt(16, 12, 0).safetensors());
        s.write("gpt.yaml", GPT_CONFIG);
        s
    }
    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        self.root.join(name)
    }
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    pub(crate) fn remove(&self, name: &str) {
        let path = self.path(name);
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
    }
    pub(crate) fn weights(&self, model: &Model) {
        self.write("dpar/checkpoints/final/model.safetensors", model.safetensors());
    }
    /// Replaces text in the configuration of `dpar/` or `entropy/`.
    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{from}");
        self.write(name, text.replacen(from, to, 1));
    }
    pub(crate) fn load(&self) -> Result<Loaded, CheckpointError> {
        load(&self.path("dpar"), &LoadOptions::default())
    }
    pub(crate) fn load_with(&self, options: LoadOptions) -> Result<Loaded, CheckpointError> {
        load(&self.path("dpar"), &options)
    }
    /// Writes a LlamaGen file and loads it with `gpt.yaml`.
    pub(crate) fn load_gpt(&self, name: &str, bytes: &[u8]) -> Result<Loaded, CheckpointError> {
        self.write(name, bytes);
        load(&self.path(name), &LoadOptions { config: Some(self.path("gpt.yaml")), ..LoadOptions::default() })
    }
}

/// Asserts the kind of an error and returns its text.
macro_rules! assert_kind {
    ($result:expr, $kind:pat $(if $guard:expr)?) => {{
        let e = $result.expect_err("this must be refused");
        assert!(matches!(e.kind(), $kind $(if $guard)?), "{e:?}");
        e
    }};
}
pub(crate) use assert_kind;
