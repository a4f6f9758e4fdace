//! A bundle as an OCI image layout in the form of the CNCF ModelPack specification (model-spec v1): one raw layer a file, so that
//! registries and the tools around them store, move and mount it, and each file keeps the digest that the manifest has.
//!
//! Nothing in it is a time or a path of a machine: the same bundle gives the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use dpar_export_files::staging::{FolderKind, StagedFolder, StagingError};
use dpar_export_inputs::limits;
use dpar_export_spec::Hinted;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::write::{BUNDLE_FOLDER, copy};
use super::{Bundle, BundleError, CONFIG, JsonError, MANIFEST, digest, unique_keys};

const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
const BLOBS: &str = "blobs/sha256";
const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const MODEL: &str = "application/vnd.cncf.model.manifest.v1+json";
const MODEL_CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
/// What a layer is: settings, or weights with their graphs.
const SETTINGS: &str = "application/vnd.cncf.model.weight.config.v1.raw";
const WEIGHTS: &str = "application/vnd.cncf.model.weight.v1.raw";
/// Where a layer's file belongs.
const FILE_PATH: &str = "org.cncf.model.filepath";
const TITLE: &str = "org.opencontainers.image.title";
const TAG: &str = "org.opencontainers.image.ref.name";

/// What a layout folder holds.
const OCI_FOLDER: FolderKind =
    FolderKind { marks: &[LAYOUT, INDEX], writes: |name| [LAYOUT, INDEX, "blobs"].contains(&name) };

/// Why a bundle could not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The bundle, or what was to become one.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The output folder could not be prepared.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// Not a layout, or none with a model in this form.
    #[error("{path}: {message}")]
    Layout {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A tag that is no tag.
    #[error("`{0}` is no tag: letters, digits and `_.-`, at most 128, not beginning with `.` or `-`")]
    Tag(String),
    /// The layout has not the one model that was asked for.
    #[error("{layout} has no single model {asked}: it has {known}")]
    NoModel {
        /// The layout.
        layout: Utf8PathBuf,
        /// By which tag it was looked for.
        asked: String,
        /// The tags that are there.
        known: String,
    },
    /// A blob is not what its descriptor says.
    #[error("{path} is not what its descriptor says: {message}")]
    Blob {
        /// The blob.
        path: Utf8PathBuf,
        /// What differs.
        message: String,
    },
    /// Stopped by the user; nothing is left behind.
    #[error("stopped")]
    Stopped,
}

impl Hinted for OciError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Bundle(e) => e.hint(),
            Self::Staging(e) => e.hint(),
            Self::NoModel { .. } => Some("name one with --tag".to_owned()),
            Self::Blob { .. } => {
                Some("it was changed on its way: copy it from the registry again".to_owned())
            }
            Self::Layout { .. } | Self::Tag(_) | Self::Stopped => None,
        }
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Bundle(e) => e.details(),
            Self::Staging(e) => e.details(),
            Self::Layout { .. } | Self::Tag(_) | Self::NoModel { .. } | Self::Blob { .. } | Self::Stopped => {
                Vec::new()
            }
        }
    }
}

impl OciError {
    fn layout(path: &Utf8Path, message: impl ToString) -> Self {
        Self::Layout { path: path.to_owned(), message: message.to_string() }
    }

    fn blob(path: &Utf8Path, message: String) -> Self {
        Self::Blob { path: path.to_owned(), message }
    }
}

/// A model in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedModel {
    /// SHA-256 of the image manifest, `sha256:…`: what registries and deployments pin.
    pub digest: String,
    /// Files of the bundle.
    pub layers: usize,
    /// Their bytes together.
    pub bytes: u64,
}

/// Says which file is next; false stops.
pub type GoOn<'a> = &'a mut dyn FnMut(&str) -> bool;

/// Writes `bundle` as an OCI image layout with one model, tagged, to `output`, atomically. Files are copied as they are.
///
/// # Errors
/// When the tag is none, a file changed since it was opened, writing fails, or `output` exists and is not to be replaced.
pub fn pack(
    bundle: &Bundle,
    tag: &str,
    output: &Utf8Path,
    replace: bool,
    go_on: GoOn<'_>,
) -> Result<PackedModel, OciError> {
    if !is_tag(tag) {
        return Err(OciError::Tag(tag.to_owned()));
    }
    let staged = StagedFolder::create(output, replace, &OCI_FOLDER)?;
    let blobs = staged.path().join(BLOBS);
    fs_err::create_dir_all(&blobs).map_err(|e| BundleError::io(&blobs, e))?;
    let manifest = bundle.manifest();
    let own = bundle.path(MANIFEST);
    let size = own.metadata().map_err(|e| BundleError::io(&own, e))?.len();
    let mut files: Vec<(&str, u64, &str)> = vec![(MANIFEST, size, bundle.manifest_sha256())];
    files.extend(manifest.files.iter().map(|f| (f.path.as_str(), f.size, f.sha256.as_str())));
    let mut layers = Vec::with_capacity(files.len());
    for &(path, size, sha256) in &files {
        if !go_on(path) {
            return Err(OciError::Stopped);
        }
        let blob = blobs.join(sha256);
        copy(&bundle.path(path), &blob)?;
        checked(&blob, size, sha256)?;
        let settings = [MANIFEST, CONFIG].contains(&path);
        layers.push(json!({
            "mediaType": if settings { SETTINGS } else { WEIGHTS },
            "digest": format!("sha256:{sha256}"),
            "size": size,
            "annotations": { FILE_PATH: path, TITLE: path },
        }));
    }
    let diffs: Vec<String> = files.iter().map(|(_, _, sha256)| format!("sha256:{sha256}")).collect();
    let mut technical = json!({
        "architecture": "transformer", "format": "onnx", "precision": manifest.precisions().to_string(),
        "capabilities": { "outputTypes": ["image"] },
    });
    if let Some(bits) = manifest.numbers().weights() {
        technical["quantization"] = json!(bits.to_string());
    }
    let config = json!({
        "descriptor": { "name": manifest.name, "family": manifest.system.to_string() },
        "config": technical,
        "modelfs": { "type": "layers", "diffIds": diffs },
    });
    let config = put(&blobs, MODEL_CONFIG, &config)?;
    let image = put(
        &blobs,
        IMAGE_MANIFEST,
        &json!({
            "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": MODEL, "config": config, "layers": layers,
        }),
    )?;
    let digest = image["digest"].as_str().unwrap_or_default().to_owned();
    let mut described = image;
    described["artifactType"] = json!(MODEL);
    described["annotations"] = json!({ TAG: tag });
    let index = json!({ "schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [described] });
    write(&staged.path().join(LAYOUT), json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes())?;
    write(&staged.path().join(INDEX), index.to_string().as_bytes())?;
    bundle.unchanged()?;
    staged.commit()?;
    Ok(PackedModel { digest, layers: files.len(), bytes: files.iter().map(|(_, size, _)| size).sum() })
}

/// Makes a bundle of the model in an OCI image layout, atomically: every blob is held against its digest, and what came of them is
/// opened as a bundle before it is in its place. Without `tag` the layout has one model.
///
/// # Errors
/// When the layout is none or has another kind of artifact, a blob differs from its descriptor, a path leads out of the folder, or
/// the files are no bundle; nothing is left behind.
pub fn unpack(
    layout: &Utf8Path,
    tag: Option<&str>,
    output: &Utf8Path,
    replace: bool,
    go_on: GoOn<'_>,
) -> Result<PackedModel, OciError> {
    let index: ImageIndex = read(&layout.join(INDEX))?;
    let image = chosen(layout, index, tag)?;
    let sha256 = image.sha256(&layout.join(INDEX))?;
    let path = layout.join(BLOBS).join(sha256);
    checked(&path, image.size, sha256)?;
    let model: ImageManifest = read(&path)?;
    if model.artifact_type.as_deref() != Some(MODEL) {
        let found = model.artifact_type.as_deref().unwrap_or("none");
        return Err(OciError::layout(&path, format!("its artifactType is {found}, not {MODEL}")));
    }
    let staged = StagedFolder::create(output, replace, &BUNDLE_FOLDER)?;
    let mut seen = BTreeSet::new();
    let mut bytes = 0_u64;
    for layer in &model.layers {
        let raw = [SETTINGS, WEIGHTS].contains(&layer.media_type.as_str());
        let file = layer.annotations.get(FILE_PATH).map(String::as_str);
        let Some(file) = file.filter(|file| raw && is_inside(file)) else {
            let (kind, file) = (&layer.media_type, file.unwrap_or("no file"));
            return Err(OciError::layout(
                &path,
                format!("a layer of {kind} for {file}: not one of a bundle"),
            ));
        };
        if !seen.insert(file) {
            return Err(OciError::layout(&path, format!("two layers for {file}")));
        }
        if !go_on(file) {
            return Err(OciError::Stopped);
        }
        let sha256 = layer.sha256(&path)?;
        let (blob, to) = (layout.join(BLOBS).join(sha256), staged.path().join(file));
        if let Some(folder) = to.parent() {
            fs_err::create_dir_all(folder).map_err(|e| BundleError::io(folder, e))?;
        }
        // Before a large one that is not meant fills the disk.
        sized(&blob, layer.size)?;
        copy(&blob, &to)?;
        checked(&to, layer.size, sha256).map_err(|e| match e {
            OciError::Blob { message, .. } => OciError::blob(&blob, message),
            other => other,
        })?;
        bytes = bytes.saturating_add(layer.size);
    }
    // Also that these files, and no others, are a bundle.
    Bundle::open(staged.path())?.unchanged()?;
    staged.commit()?;
    Ok(PackedModel { digest: image.digest, layers: model.layers.len(), bytes })
}

/// Writes a document as a blob; its descriptor.
fn put(blobs: &Utf8Path, media_type: &str, document: &Value) -> Result<Value, OciError> {
    let bytes = document.to_string().into_bytes();
    let sha256 = hex::encode(Sha256::digest(&bytes));
    write(&blobs.join(&sha256), &bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{sha256}"), "size": bytes.len() }))
}

fn write(path: &Utf8Path, bytes: &[u8]) -> Result<(), BundleError> {
    fs_err::write(path, bytes).map_err(|e| BundleError::io(path, e))
}

/// Holds a file against what a descriptor says of it.
fn checked(path: &Utf8Path, size: u64, sha256: &str) -> Result<(), OciError> {
    sized(path, size)?;
    let (_, is) = digest(path)?;
    if is != sha256 {
        return Err(OciError::blob(path, format!("its SHA-256 is {is}, not {sha256}")));
    }
    Ok(())
}

/// Holds a file's size against what a descriptor says of it.
fn sized(path: &Utf8Path, size: u64) -> Result<(), OciError> {
    let found = path.metadata().map_err(|e| BundleError::io(path, e))?.len();
    if found != size {
        return Err(OciError::blob(path, format!("{found} bytes, not {size}")));
    }
    Ok(())
}

/// As the specification of distribution has it.
fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || ".-".contains(c))
}

/// Whether a path names a file below the folder it is joined to.
fn is_inside(file: &str) -> bool {
    let normal = |c: Utf8Component<'_>| matches!(c, Utf8Component::Normal(_));
    let path = Utf8Path::new(file);
    let plain: Utf8PathBuf = path.components().collect();
    !file.is_empty() && path.components().all(normal) && plain.as_str() == file
}

/// The model of an index that has this tag; without one, its only model.
fn chosen(layout: &Utf8Path, index: ImageIndex, tag: Option<&str>) -> Result<Descriptor, OciError> {
    let tags = |d: &Descriptor| d.annotations.get(TAG).map_or("one without a tag", String::as_str).to_owned();
    let known: Vec<String> = index.manifests.iter().map(tags).collect();
    let mut fit: Vec<Descriptor> = index.manifests;
    fit.retain(|d| tag.is_none() || d.annotations.get(TAG).map(String::as_str) == tag);
    match <[Descriptor; 1]>::try_from(fit) {
        Ok([one]) if one.media_type == IMAGE_MANIFEST => Ok(one),
        Ok([other]) => {
            Err(OciError::layout(&layout.join(INDEX), format!("{} is no model", other.media_type)))
        }
        Err(_) => Err(OciError::NoModel {
            layout: layout.to_owned(),
            asked: tag.map_or_else(|| "without --tag".to_owned(), |tag| format!("`{tag}`")),
            known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
        }),
    }
}

/// Reads a document of a layout. Keys that the specification has and this does not need are passed over: other tools add them.
fn read<T: serde::de::DeserializeOwned>(path: &Utf8Path) -> Result<T, OciError> {
    let bytes = dpar_export_inputs::read(path, limits::TEXT).map_err(|e| BundleError::io(path, e))?;
    unique_keys(&bytes).map_err(|e: JsonError| OciError::layout(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| OciError::layout(path, e))
}

#[derive(Debug, Deserialize)]
struct ImageIndex {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageManifest {
    artifact_type: Option<String>,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The digest as the name of a blob. `path`: where it stands.
    fn sha256(&self, path: &Utf8Path) -> Result<&str, OciError> {
        let hex = self.digest.strip_prefix("sha256:");
        let digits =
            |hex: &&str| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        hex.filter(digits).ok_or_else(|| OciError::layout(path, format!("`{}` is no SHA-256", self.digest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_nowhere_else() {
        for good in ["manifest.json", "onnx/entropy.weights"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", ".", "..", "/etc/passwd", "onnx/../../x", "./a", "a//b", "a/", "a/./b"] {
            assert!(!is_inside(bad), "{bad}");
        }
    }

    #[test]
    fn tags_are_those_of_registries() {
        for good in ["latest", "v1.0-fp32_cfg2", "_a"] {
            assert!(is_tag(good), "{good}");
        }
        for bad in ["", ".hidden", "-x", "a/b", "a:b", "é", &"a".repeat(129)] {
            assert!(!is_tag(bad), "{bad}");
        }
    }
}
