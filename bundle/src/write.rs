//! Export: a loaded checkpoint becomes a bundle.

use std::borrow::Cow;

use camino::Utf8Path;
use dpar_export_checkpoint::{Loaded, LoadedComponent, SourceFile, WeightSet};
use dpar_export_files::staging::{FolderKind, StagedFolder};
use dpar_export_onnx::{Weights, WeightsError, WrittenFile, export_component, opset};
use dpar_export_spec::{Form, Precision, SystemKind, SystemSpec};

use super::digest::while_hashing;
use super::files::check_file;
use super::{
    Bundle, BundleError, CONFIG, ComponentEntry, DialectEntry, FileEntry, GraphEntry, MANIFEST, Manifest,
    ONNX, OwnArithmetic, SCHEMA_VERSION, SourceEntry, TRT, ToolEntry, digest,
};

/// What an export writes.
pub(super) const BUNDLE_FOLDER: FolderKind =
    FolderKind { marks: &[MANIFEST], writes: |name| [MANIFEST, CONFIG, ONNX, TRT].contains(&name) };

/// Gives the exporter float32 tensors from a checkpoint.
struct Float32<'a>(&'a WeightSet);

impl Weights for Float32<'_> {
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Cow<'_, [f32]>), WeightsError> {
        let tensor = self.0.require(name)?;
        let shape = tensor.shape.clone();
        // The mapped file is borrowed as it is where it holds aligned float32.
        Ok((shape, tensor.into_f32()?))
    }
}

/// Adds what a target needs to the folder of a bundle and to its manifest, which is written afterwards.
pub type Extend<'a> = &'a mut dyn FnMut(&Utf8Path, &mut Manifest) -> Result<(), BundleError>;

/// Writes a bundle with graphs of that form to `output`, atomically: a temporary folder beside it is renamed when complete.
///
/// `output` may be missing or an empty folder; with `replace`, an existing bundle is replaced. `progress` is
/// called with the graph about to be written and returns false to stop. `target` adds engines, say.
///
/// # Errors
/// When the checkpoint cannot be exported in that form, when writing fails, when `output` exists; nothing is left behind.
pub fn write(
    loaded: &Loaded,
    form: impl Into<Form>,
    output: &Utf8Path,
    replace: bool,
    progress: &mut dyn FnMut(&str) -> bool,
    target: Extend<'_>,
) -> Result<Manifest, BundleError> {
    let staged = StagedFolder::create(output, replace, &BUNDLE_FOLDER)?;
    let onnx = staged.path().join(ONNX);
    fs_err::create_dir(&onnx).map_err(|e| BundleError::io(&onnx, e))?;
    let mut manifest = fill(loaded, &form.into(), staged.path(), &onnx, progress)?;
    target(staged.path(), &mut manifest)?;
    finish(staged, manifest)
}

/// Writes a bundle again with what `target` adds, to `output` or, atomically, in place of itself. Files that stay
/// are linked where the bundle replaces itself, and copied otherwise.
///
/// # Errors
/// When writing fails, when another `output` exists; the old bundle is then still there.
pub fn extend(
    bundle: &Bundle,
    output: Option<&Utf8Path>,
    replace: bool,
    target: Extend<'_>,
) -> Result<Manifest, BundleError> {
    let staged =
        StagedFolder::create(output.unwrap_or(bundle.folder()), replace || output.is_none(), &BUNDLE_FOLDER)?;
    let mut manifest = bundle.manifest().clone();
    for file in &manifest.files {
        let (from, to) = (bundle.path(&file.path), staged.path().join(&file.path));
        if let Some(folder) = to.parent() {
            fs_err::create_dir_all(folder).map_err(|e| BundleError::io(folder, e))?;
        }
        if output.is_some() || fs_err::hard_link(&from, &to).is_err() {
            copy(&from, &to)?;
        }
        // The new manifest vouches for what was opened, and for nothing that was put there since.
        check_file(staged.path(), file)?;
    }
    target(staged.path(), &mut manifest)?;
    finish(staged, manifest)
}

/// Copies a file's bytes. The copy has the mode of any new file, whatever the original's is.
pub(super) fn copy(from: &Utf8Path, to: &Utf8Path) -> Result<(), BundleError> {
    let mut source = dpar_export_inputs::open(from).map_err(|e| BundleError::io(from, e))?;
    let copied = fs_err::File::create(to).and_then(|mut file| std::io::copy(&mut source, &mut file));
    copied.map(drop).map_err(|e| BundleError::io(to, e))
}

/// Writes the manifest and puts the folder in its place.
pub(super) fn finish(staged: StagedFolder, mut manifest: Manifest) -> Result<Manifest, BundleError> {
    manifest.files.sort_by(|a, b| a.path.cmp(&b.path));
    let path = staged.path().join(MANIFEST);
    let json = |e: serde_json::Error| BundleError::Config { path: path.clone(), message: e.to_string() };
    write_synced(&path, &manifest.to_bytes().map_err(json)?)?;
    staged.commit()?;
    Ok(manifest)
}

/// Writes every file of the bundle into `staging`.
fn fill(
    loaded: &Loaded,
    form: &Form,
    staging: &Utf8Path,
    onnx: &Utf8Path,
    progress: &mut dyn FnMut(&str) -> bool,
) -> Result<Manifest, BundleError> {
    let system = &loaded.system;
    let mut manifest = empty(system.kind, &system.name, form.precision.main());
    manifest.patch_rule = Some(system.patch_rule.clone());
    manifest.configured_rule = loaded.configured_rule.clone().map(Box::new);
    with_sources(&mut manifest, &loaded.sources, |manifest| {
        for component in &loaded.components {
            add_component(manifest, component, Some(system), form, onnx, progress)?;
        }
        add_config(manifest, staging, system)
    })?;
    Ok(manifest)
}

/// A manifest without contents.
pub(super) fn empty(system: SystemKind, name: &str, precision: Precision) -> Manifest {
    Manifest {
        schema_version: SCHEMA_VERSION,
        tool: ToolEntry::this(),
        system,
        name: name.to_owned(),
        precision,
        opset: opset(precision),
        patch_rule: None,
        configured_rule: None,
        sources: Vec::new(),
        components: Vec::new(),
        graphs: Vec::new(),
        engines: Vec::new(),
        files: Vec::new(),
    }
}

/// Writes the graphs of one component, of a system or of none, and lists them.
pub(super) fn add_component(
    manifest: &mut Manifest,
    component: &LoadedComponent,
    system: Option<&SystemSpec>,
    form: &Form,
    onnx: &Utf8Path,
    progress: &mut dyn FnMut(&str) -> bool,
) -> Result<(), BundleError> {
    let entry = |f: &WrittenFile| FileEntry {
        path: format!("{ONNX}/{}", f.name),
        size: f.size,
        sha256: f.sha256.clone(),
    };
    let weights = Float32(&component.weights);
    let written = export_component(&component.spec, system, form, &weights, onnx, progress)?;
    let kind = component.spec.kind();
    let own = form.precision.own().get(&kind);
    manifest.components.push(ComponentEntry {
        kind,
        parameters: component.weights.parameters(),
        weights: format!("{ONNX}/{}", written.data.name),
        graphs: written.graphs.iter().map(|g| g.spec.name.clone()).collect(),
        arithmetic: own.map(|precision| OwnArithmetic { precision: *precision, opset: opset(*precision) }),
        quantized: written.quantized,
    });
    manifest.files.push(entry(&written.data));
    for graph in written.graphs {
        manifest.files.push(entry(&graph.file));
        manifest.files.extend(graph.dialects.iter().map(|(_, file)| entry(file)));
        let path = |file: &WrittenFile| format!("{ONNX}/{}", file.name);
        let dialects = graph.dialects.iter().map(|(d, file)| DialectEntry { dialect: *d, file: path(file) });
        manifest.graphs.push(GraphEntry {
            file: path(&graph.file),
            dialects: dialects.collect(),
            spec: graph.spec,
        });
    }
    Ok(())
}

/// Writes `config.json` and lists it.
pub(super) fn add_config(
    manifest: &mut Manifest,
    staging: &Utf8Path,
    config: &impl serde::Serialize,
) -> Result<(), BundleError> {
    let path = staging.join(CONFIG);
    let mut bytes = serde_json::to_vec_pretty(config)
        .map_err(|e| BundleError::Config { path: path.clone(), message: e.to_string() })?;
    bytes.push(b'\n');
    write_synced(&path, &bytes)?;
    let (size, sha256) = digest(&path)?;
    manifest.files.push(FileEntry { path: CONFIG.to_owned(), size, sha256 });
    Ok(())
}

/// Fills a manifest with `fill`, and meanwhile hashes the files that are read, to list them too.
pub(super) fn with_sources(
    manifest: &mut Manifest,
    sources: &[SourceFile],
    fill: impl FnOnce(&mut Manifest) -> Result<(), BundleError>,
) -> Result<(), BundleError> {
    let paths: Vec<&Utf8Path> = sources.iter().map(|s| s.path.as_path()).collect();
    let ((), digests) = while_hashing(&paths, || fill(manifest))?;
    for (source, digest) in sources.iter().zip(digests) {
        let (size, sha256) = digest?;
        let SourceFile { role, name, weights, .. } = source.clone();
        manifest.sources.push(SourceEntry { role, name, size, sha256, weights });
    }
    Ok(())
}

fn write_synced(path: &Utf8Path, bytes: &[u8]) -> Result<(), BundleError> {
    use std::io::Write;
    let write = || -> std::io::Result<()> {
        let mut file = fs_err::File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| BundleError::io(path, e))
}
