//! Extractor bundles: a feature network with how images are prepared for it.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::GraphFile;
use dpar_export_checkpoint::LoadedExtractor;
use dpar_export_files::staging::StagedFolder;
use dpar_export_inputs::limits;
use dpar_export_metrics::Resize;
use dpar_export_onnx::{Foreign, ForeignPort, MAX_BATCH, read_foreign};
use dpar_export_spec::{
    AxisRange, ComponentKind, ComponentSpec, DType, Dim, FeaturesSpec, Form, GraphName, GraphSpec, Port,
    Precision, SystemKind,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::Files;
use super::held::Held;
use super::write::{BUNDLE_FOLDER, add_component, add_config, empty, finish, with_sources};
use super::{
    BundleError, CONFIG, ComponentEntry, FileEntry, GraphEntry, Manifest, Misfit, ONNX, SourceEntry,
    check_opset, check_references, digest, json,
};

/// Names of FID-Inception, the first its own.
const INCEPTION: [&str; 4] = ["inception", "fid-inception", "inception-2015-12-05", "inception-v3-compat"];

/// Whether files of activations mean FID-Inception by this name, letters of either case.
pub fn names_inception(name: &str) -> bool {
    INCEPTION.contains(&name.to_ascii_lowercase().as_str())
}

/// Largest input side in pixels.
const MAX_SIDE: usize = 4096;

/// Input = (v − mean) / std for v in 0..255, per channel red, green, blue.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Normalise {
    /// Means in steps of 1/255.
    pub mean: [f32; 3],
    /// Divisors in steps of 1/255, above 0.
    pub std: [f32; 3],
}

impl Normalise {
    /// What the tool whose resize rule this is gives FID-Inception.
    fn usual(resize: Resize) -> Self {
        match resize {
            Resize::Tf1Bilinear | Resize::PilBicubic => Self { mean: [128.0; 3], std: [128.0; 3] },
            Resize::HalfPixelBilinear => Self { mean: [127.5; 3], std: [127.5; 3] },
        }
    }
}

/// Which port is which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractorPorts {
    /// Input f32 [batch, 3, size, size].
    pub image: String,
    /// Output f32 [batch, width].
    pub features: String,
    /// Spatial features f32 [batch, width], where the network has them (sFID).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spatial: Option<String>,
    /// Logits f32 [batch, classes], where the network has them (IS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<String>,
}

/// A feature extractor: what `config.json` of its bundle holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExtractorSpec {
    /// Always `extractor`.
    pub kind: SystemKind,
    /// Name that metrics are named after: `inception`, `efficientnet-lite0`, or the name of the ONNX file.
    pub name: String,
    /// The network.
    pub component: ComponentSpec,
    /// Side of the input in pixels.
    pub input_size: usize,
    /// How images are resized unless the user asks for another rule.
    pub resize: Resize,
    /// Normalisation of the input; absent: the resize rule's own, to about −1..1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalise: Option<Normalise>,
    /// Which port is which.
    pub ports: ExtractorPorts,
}

impl ExtractorSpec {
    /// The spec of a loaded network, with its own resize and normalisation where none is given.
    ///
    /// # Errors
    /// [`BundleError::Config`] for a normalisation that is none.
    pub fn of(
        loaded: &LoadedExtractor,
        resize: Option<Resize>,
        normalise: Option<Normalise>,
    ) -> Result<Self, BundleError> {
        let component = loaded.component.spec.clone();
        let own = |name: &str| Some(name.to_owned());
        let (input_size, usual, usual_normalise, features, spatial) = match &component {
            ComponentSpec::Inception(_) => {
                (dpar_export_metrics::INCEPTION_SIZE, Resize::Tf1Bilinear, None, "pool_3", own("spatial"))
            }
            // MEAN_RGB and STDDEV_RGB of the TensorFlow implementation.
            ComponentSpec::EfficientnetLite0(s) => {
                let normalise = Normalise { mean: [127.0; 3], std: [128.0; 3] };
                (s.input_size, Resize::PilBicubic, Some(normalise), "features", None)
            }
            ComponentSpec::Dpar(_)
            | ComponentSpec::Entropy(_)
            | ComponentSpec::Llamagen(_)
            | ComponentSpec::Vq(_)
            | ComponentSpec::Features(_) => {
                let message = format!("`{}` is no feature network", component.kind().name());
                return Err(BundleError::Config { path: CONFIG.into(), message });
            }
        };
        let spec = Self {
            kind: SystemKind::Extractor,
            name: component.kind().name().to_owned(),
            component,
            input_size,
            resize: resize.unwrap_or(usual),
            normalise: normalise.or(usual_normalise),
            ports: ExtractorPorts {
                image: "image".to_owned(),
                features: features.to_owned(),
                spatial,
                logits: own("logits"),
            },
        };
        spec.check_values()
            .map_err(|e| BundleError::Config { path: CONFIG.into(), message: e.to_string() })?;
        Ok(spec)
    }

    /// Whether its weights are FID-Inception's.
    pub fn is_inception(&self) -> bool {
        matches!(self.component, ComponentSpec::Inception(_))
    }

    /// Whether the distance on its features is called FID: on FID-Inception, whose images are normalised as the tool does whose
    /// resize rule this is.
    pub fn is_fid(&self) -> bool {
        self.is_inception() && self.normalise.is_none_or(|n| n == Normalise::usual(self.resize))
    }

    /// What numbers on its features are named after: FID-Inception with a normalisation of its own, and whatever else is called
    /// like it, are other networks.
    pub fn network_name(&self) -> String {
        match self.normalise {
            Some(n) if self.is_inception() && !self.is_fid() => {
                format!("{} normalised by mean {:?}, std {:?}", INCEPTION[0], n.mean, n.std)
            }
            _ if self.is_inception() => INCEPTION[0].to_owned(),
            _ if names_inception(&self.name) => format!("{} (another network)", self.name),
            _ => self.name.clone(),
        }
    }

    /// The name of the Fréchet distance on its features.
    pub fn distance_name(&self) -> String {
        if self.is_fid() { "FID".to_owned() } else { format!("Fréchet distance on {}", self.network_name()) }
    }

    fn check_values(&self) -> Result<(), Misfit> {
        if self.kind != SystemKind::Extractor || !self.component.kind().is_extractor() {
            return Err("it describes no feature extractor".into());
        }
        self.component.validate().map_err(|e| e.to_string())?;
        if !(1..=MAX_SIDE).contains(&self.input_size) {
            return Err(format!("`input_size` is not in 1..={MAX_SIDE}").into());
        }
        match &self.normalise {
            Some(n)
                if !n.mean.iter().all(|v| v.is_finite())
                    || !n.std.iter().all(|v| *v > 0.0 && v.is_finite()) =>
            {
                Err("`normalise` needs finite means and divisors above 0".into())
            }
            _ => Ok(()),
        }
    }

    /// That the manifest has the component of the spec and its one graph.
    fn check_manifest(&self, manifest: &Manifest) -> Result<(), Misfit> {
        let kind = self.component.kind();
        if !matches!(manifest.components.as_slice(), [only] if only.kind == kind) {
            return Err(format!("its component `{}` is not the one in the manifest", kind.name()).into());
        }
        let [graph] = manifest.graphs.as_slice() else {
            return Err(
                format!("the manifest has {} graphs, an extractor has one", manifest.graphs.len()).into()
            );
        };
        let names = match &self.component {
            ComponentSpec::Features(_) => vec![GraphName::Features],
            ComponentSpec::Dpar(_)
            | ComponentSpec::Entropy(_)
            | ComponentSpec::Llamagen(_)
            | ComponentSpec::Vq(_)
            | ComponentSpec::Inception(_)
            | ComponentSpec::EfficientnetLite0(_) => {
                dpar_export_onnx::graph_names(&self.component, None).map_err(|e| e.to_string())?
            }
        };
        if !matches!(names.as_slice(), [only] if *only == *graph.spec.name) {
            return Err(
                format!("graph `{}` of the manifest is none of its component", graph.spec.name).into()
            );
        }
        self.check_ports(&graph.spec)
    }

    /// That the graph has the ports of the spec, with its sizes.
    fn check_ports(&self, graph: &GraphSpec) -> Result<(), Misfit> {
        let size = Dim::Fixed(self.input_size);
        let is_image = |p: &Port| {
            p.dtype == DType::F32
                && p.dims.len() == 4
                && matches!(p.dims[0], Dim::Axis(_))
                && p.dims[1..] == [Dim::Fixed(3), size.clone(), size.clone()]
        };
        if graph.inputs.len() != 1 || !graph.input(&self.ports.image).is_some_and(is_image) {
            return Err(format!("graph `{}` has not the one image input of the spec", graph.name).into());
        }
        let wanted = [Some(&self.ports.features), self.ports.spatial.as_ref(), self.ports.logits.as_ref()];
        for name in wanted.into_iter().flatten() {
            if port_width(graph, name).is_none() {
                return Err(format!(
                    "graph `{}` has no output `{name}` of rows of a fixed width",
                    graph.name
                )
                .into());
            }
        }
        Ok(())
    }
}

/// Width of a `[batch, width]` output.
pub fn port_width(graph: &GraphSpec, name: &str) -> Option<usize> {
    let port = graph.outputs.iter().find(|p| p.name == name && p.dtype == DType::F32)?;
    match port.dims.as_slice() {
        [Dim::Axis(_), Dim::Fixed(width)] if *width > 0 => Some(*width),
        _ => None,
    }
}

/// An opened extractor bundle whose files match its manifest.
#[derive(Debug, Clone)]
pub struct ExtractorBundle {
    files: Files,
    spec: ExtractorSpec,
}

impl ExtractorBundle {
    /// Opens an extractor bundle and checks size and SHA-256 of every listed file.
    ///
    /// # Errors
    /// [`BundleError::Integrity`] names the file that does not match; [`BundleError::NotAnExtractor`] for a system.
    pub fn open(folder: &Utf8Path) -> Result<Self, BundleError> {
        let system = |system| match system {
            SystemKind::Extractor => Ok(()),
            SystemKind::Dpar | SystemKind::Llamagen => Err(BundleError::NotAnExtractor(folder.to_owned())),
        };
        let graph = |manifest: &Manifest, entry: &GraphEntry, dialect, bytes: &[u8]| match manifest
            .components
            .iter()
            .any(|c| c.kind == ComponentKind::Features)
        {
            true => check_foreign(folder, manifest, entry, bytes),
            false => check_references(folder, manifest, (entry, dialect), bytes).map(drop),
        };
        let (files, config) = Files::open(folder, system, graph)?;
        files.unchanged()?;
        let bad = |message: String| BundleError::Integrity { path: folder.join(CONFIG), message };
        let spec: ExtractorSpec = json::read(&config).map_err(|e| bad(e.to_string()))?;
        spec.check_values().map_err(|e| bad(e.to_string()))?;
        spec.check_manifest(&files.manifest).map_err(|e| bad(e.to_string()))?;
        Ok(Self { files, spec })
    }

    /// The folder.
    pub fn folder(&self) -> &Utf8Path {
        &self.files.folder
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.files.manifest
    }

    /// What it is.
    pub fn spec(&self) -> &ExtractorSpec {
        &self.spec
    }

    /// SHA-256 of `manifest.json`: identifies network, weights and preparation.
    pub fn manifest_sha256(&self) -> &str {
        &self.files.manifest_sha256
    }

    /// Checks that every file is still the one that was hashed, as [`Bundle::unchanged`](super::Bundle::unchanged) does.
    ///
    /// # Errors
    /// As there.
    pub fn unchanged(&self) -> Result<(), BundleError> {
        self.files.unchanged()
    }

    /// Calls `f` with its graph, and then checks that the files are those that were hashed.
    ///
    /// # Errors
    /// [`BundleError::Changed`]; what `f` returns.
    pub fn with_graph<T, E: From<BundleError>>(
        &self,
        f: impl FnOnce(GraphFile<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(entry) = self.manifest().graphs.first() else {
            return Err(BundleError::NotAnExtractor(self.folder().to_owned()).into());
        };
        self.files.with(entry, &[], f)
    }
}

/// Writes the bundle of a loaded network to `output`, atomically, as [`super::write`] does for systems.
///
/// # Errors
/// When the weights cannot be exported, when writing fails, when `output` exists; nothing is left behind.
pub fn write_extractor(
    loaded: &LoadedExtractor,
    spec: &ExtractorSpec,
    output: &Utf8Path,
    replace: bool,
    progress: &mut dyn FnMut(&str) -> bool,
) -> Result<Manifest, BundleError> {
    let staged = StagedFolder::create(output, replace, &BUNDLE_FOLDER)?;
    let onnx = onnx_folder(&staged)?;
    let mut manifest = empty(SystemKind::Extractor, &spec.name, Precision::Fp32);
    with_sources(&mut manifest, &loaded.sources, |manifest| {
        add_component(manifest, &loaded.component, None, &Form::default(), &onnx, progress)?;
        add_config(manifest, staged.path(), spec)
    })?;
    finish(staged, manifest)
}

/// Writes a bundle around an ONNX file that another tool wrote; the file is copied as it is.
///
/// # Errors
/// As [`write_extractor`].
pub fn write_features(
    file: &Utf8Path,
    features: &ForeignExtractor,
    output: &Utf8Path,
    replace: bool,
) -> Result<Manifest, BundleError> {
    let staged = StagedFolder::create(output, replace, &BUNDLE_FOLDER)?;
    let onnx = onnx_folder(&staged)?;
    let copy = onnx.join(format!("{}.onnx", features.graph.name));
    super::write::copy(file, &copy)?;
    let mut manifest = empty(SystemKind::Extractor, &features.spec.name, Precision::Fp32);
    let path = format!("{ONNX}/{}.onnx", features.graph.name);
    let (size, sha256) = digest(&copy)?;
    if sha256 != features.sha256 {
        return Err(BundleError::Changed { path: file.to_owned() });
    }
    manifest.opset = features.opset;
    manifest.files.push(FileEntry { path: path.clone(), size, sha256: sha256.clone() });
    manifest.components.push(ComponentEntry {
        arithmetic: None,
        kind: ComponentKind::Features,
        parameters: features.parameters,
        weights: path.clone(),
        graphs: vec![features.graph.name.clone()],
        quantized: None,
    });
    manifest.graphs.push(GraphEntry { file: path, dialects: Vec::new(), spec: features.graph.clone() });
    add_config(&mut manifest, staged.path(), &features.spec)?;
    let (role, name) = (ComponentKind::Features.name().to_owned(), features.spec.name.clone());
    manifest.sources.push(SourceEntry { role, name, size, sha256, weights: None });
    finish(staged, manifest)
}

fn onnx_folder(staged: &StagedFolder) -> Result<Utf8PathBuf, BundleError> {
    let onnx = staged.path().join(ONNX);
    fs_err::create_dir(&onnx).map_err(|e| BundleError::io(&onnx, e))?;
    Ok(onnx)
}

/// An ONNX file of another tool, read as an extractor.
#[derive(Debug, Clone, PartialEq)]
pub struct ForeignExtractor {
    /// What it is.
    pub spec: ExtractorSpec,
    /// Its interface.
    pub graph: GraphSpec,
    /// Opset.
    pub opset: i64,
    /// Elements of its initializers.
    pub parameters: u64,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Where the file is, without links.
    path: Utf8PathBuf,
    held: Held,
}

impl ForeignExtractor {
    /// Reads the interface of an ONNX file with one image input [N, 3, S, S] and one output [N, F]; `input_size` says S
    /// where the file leaves it open, and must agree where it does not.
    ///
    /// # Errors
    /// [`BundleError::Foreign`] with what does not fit.
    pub fn read(
        path: &Utf8Path,
        input_size: Option<usize>,
        resize: Resize,
        normalise: Option<Normalise>,
    ) -> Result<Self, BundleError> {
        let bad = |message: String| BundleError::Foreign { path: path.to_owned(), message };
        let io = |e| BundleError::io(path, e);
        let place = path.canonicalize_utf8().map_err(io)?;
        let mut held = Held::default();
        if held.note(&place).map_err(io)?.len() > limits::GRAPH {
            return Err(bad("it is larger than 2 GiB".to_owned()));
        }
        let bytes = dpar_export_inputs::read(&place, limits::GRAPH).map_err(io)?;
        let foreign = read_foreign(&bytes).map_err(|e| bad(e.to_string()))?;
        let file_name = path.file_name().unwrap_or("features.onnx");
        let (size, width) = interface(&foreign, input_size).map_err(|e| bad(e.to_string()))?;
        let (image, features) = (&foreign.inputs[0].name, &foreign.outputs[0].name);
        let batch = || Dim::axis("batch");
        let side = || Dim::Fixed(size);
        let graph = GraphSpec {
            name: ComponentKind::Features.name().to_owned(),
            component: ComponentKind::Features.name().to_owned(),
            inputs: vec![Port::new(image, DType::F32, vec![batch(), Dim::Fixed(3), side(), side()])],
            outputs: vec![Port::new(features, DType::F32, vec![batch(), Dim::Fixed(width)])],
            axes: vec![AxisRange { name: "batch".to_owned(), min: 1, opt: 8, max: MAX_BATCH }],
        };
        let spec = ExtractorSpec {
            kind: SystemKind::Extractor,
            name: file_name.to_owned(),
            component: ComponentSpec::Features(FeaturesSpec { input_size: size, width }),
            input_size: size,
            resize,
            normalise,
            ports: ExtractorPorts {
                image: image.clone(),
                features: features.clone(),
                spatial: None,
                logits: None,
            },
        };
        spec.check_values().map_err(|e| bad(e.to_string()))?;
        graph.validate(true).map_err(|e| bad(e.to_string()))?;
        let sha256 = hex::encode(Sha256::digest(&bytes));
        let (opset, parameters) = (foreign.opset, foreign.parameters);
        Ok(Self { spec, graph, opset, parameters, sha256, path: place, held })
    }

    /// Calls `f` with the graph, and then checks that the file is the one that was read.
    ///
    /// # Errors
    /// [`BundleError::Changed`]; what `f` returns.
    pub fn with_graph<T, E: From<BundleError>>(
        &self,
        f: impl FnOnce(GraphFile<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let made = f(GraphFile::new(&self.graph, &self.path));
        self.unchanged()?;
        made
    }

    /// Checks that the file is still the one that was read.
    ///
    /// # Errors
    /// [`BundleError::Changed`].
    pub fn unchanged(&self) -> Result<(), BundleError> {
        Ok(self.held.check()?)
    }
}

/// A foreign graph in a bundle holds its weights, as it did when it was taken.
fn check_foreign(
    folder: &Utf8Path,
    manifest: &Manifest,
    graph: &GraphEntry,
    bytes: &[u8],
) -> Result<(), BundleError> {
    let wrong = |message: String| BundleError::Integrity { path: folder.join(&graph.file), message };
    let foreign = read_foreign(bytes).map_err(|e| wrong(e.to_string()))?;
    check_opset(foreign.opset, manifest.opset).map_err(|e| wrong(e.to_string()))
}

/// Input side and feature width.
fn interface(foreign: &Foreign, input_size: Option<usize>) -> Result<(usize, usize), Misfit> {
    let one = |ports: &[ForeignPort], what: &str| match ports {
        [port] if port.float => Ok::<_, Misfit>(port.clone()),
        [port] => Err(format!("{what} `{}` is not float32", port.name).into()),
        _ => Err(format!("it has {} {what}s, one is needed", ports.len()).into()),
    };
    let (image, features) = (one(&foreign.inputs, "input")?, one(&foreign.outputs, "output")?);
    let Some([batch, channels, height, width]) = image.dims.as_deref() else {
        return Err(format!("input `{}` has not the shape [N, 3, S, S]", image.name).into());
    };
    if let Some(n) = batch {
        return Err(
            format!("the batch axis of input `{}` is fixed at {n}; export it dynamic", image.name).into()
        );
    }
    if channels.is_some_and(|c| c != 3) {
        return Err(
            format!("input `{}` has {} channels, 3 are needed", image.name, channels.unwrap_or(0)).into()
        );
    }
    let sides: Vec<usize> = [*height, *width, input_size].into_iter().flatten().collect();
    let Some(size) = sides.first().copied() else {
        return Err("its input size is open: give it with --input-size".into());
    };
    if sides.iter().any(|s| *s != size) {
        let side = |s: &Option<usize>| s.map_or_else(|| "any".to_owned(), |s| s.to_string());
        let given = input_size.map(|s| format!(", --input-size {s}")).unwrap_or_default();
        return Err(format!("its input is {} x {} pixels{given}", side(height), side(width)).into());
    }
    match features.dims.as_deref() {
        Some([_, Some(f)]) if *f > 0 => Ok((size, *f)),
        _ => Err(format!("output `{}` has not the shape [N, F] with a fixed F", features.name).into()),
    }
}

/// Whether a folder holds an extractor bundle, without reading more than its manifest.
///
/// # Errors
/// When it is no bundle at all.
pub fn is_extractor(folder: &Utf8Path) -> Result<bool, BundleError> {
    Ok(super::files::system(folder)? == SystemKind::Extractor)
}
