//! Where the files of a checkpoint are: experiment folders, single files, paths named by a configuration.

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};

use crate::file::is_index;
use crate::{CheckpointError, ErrorKind, WeightFormat};

/// The files of one trained model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located {
    /// The weight file.
    pub(crate) weights: Utf8PathBuf,
    /// Its configuration, if the layout has one.
    pub(crate) config: Option<Utf8PathBuf>,
    /// The experiment folder, if there is one; portable names start here.
    pub(crate) root: Option<Utf8PathBuf>,
}

impl Located {
    /// A name for manifests: relative to the experiment folder where the file lies in it, else the file name alone;
    /// separated by `/`.
    pub(crate) fn portable(&self, path: &Utf8Path) -> String {
        let inside = self.root.as_deref().and_then(|root| path.strip_prefix(root).ok());
        let normal = |p: &&Utf8Path| p.components().all(|c| matches!(c, Utf8Component::Normal(_)));
        match inside.filter(normal) {
            Some(relative) => relative.components().map(|c| c.as_str()).collect::<Vec<_>>().join("/"),
            None => path.file_name().unwrap_or("unnamed").to_owned(),
        }
    }
}

/// Locates the files of an experiment folder or of a weight file that was named.
pub(crate) fn locate(path: &Utf8Path, epoch: Option<u64>) -> Result<Located, CheckpointError> {
    let metadata = fs_err::metadata(path).map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            CheckpointError::in_file(ErrorKind::NotFound { what: "the checkpoint".to_owned() }, path)
        } else {
            CheckpointError::io(path, e)
        }
    })?;
    if metadata.is_dir() {
        return folder(path, epoch);
    }
    if epoch.is_some() {
        let problem = format!("`{path}` is a file; epochs belong to experiment folders");
        return Err(CheckpointError::in_file(ErrorKind::Option { option: "--epoch", problem }, path));
    }
    if path.extension() == Some("distcp") {
        return Err(distributed(path.parent().unwrap_or(path)));
    }
    if !is_index(path) && WeightFormat::from_path(path).is_none() {
        let what = "neither an experiment folder nor a weight file (.safetensors, .pt, .pth)".to_owned();
        return Err(CheckpointError::in_file(ErrorKind::Layout(what), path));
    }
    let root = path.parent().and_then(experiment_of);
    Ok(Located { weights: path.to_owned(), config: root.as_deref().and_then(config_in), root })
}

fn folder(path: &Utf8Path, epoch: Option<u64>) -> Result<Located, CheckpointError> {
    let checkpoints = path.join("checkpoints");
    if !checkpoints.is_dir() {
        if epoch.is_none() && has_weights(path) {
            let root = experiment_of(path);
            return Ok(Located {
                weights: weights_in(path)?,
                config: root.as_deref().and_then(config_in),
                root,
            });
        }
        let what = "has no folder `checkpoints`".to_owned();
        return Err(CheckpointError::in_file(ErrorKind::Layout(what), path).with_hint(
            "an experiment folder holds config.yaml and checkpoints/final or checkpoints/epoch_*",
        ));
    }
    let chosen = checkpoint_folder(&checkpoints, epoch)?;
    Ok(Located { weights: weights_in(&chosen)?, config: config_in(path), root: Some(path.to_owned()) })
}

/// The experiment folder above a `checkpoints/X` folder.
fn experiment_of(folder: &Utf8Path) -> Option<Utf8PathBuf> {
    let above = folder.parent()?;
    if above.file_name() != Some("checkpoints") {
        return None;
    }
    above.parent().map(Utf8Path::to_owned)
}

fn config_in(root: &Utf8Path) -> Option<Utf8PathBuf> {
    let config = root.join("config.yaml");
    config.is_file().then_some(config)
}

/// `final`, else the newest epoch, or the epoch that was asked for.
fn checkpoint_folder(checkpoints: &Utf8Path, epoch: Option<u64>) -> Result<Utf8PathBuf, CheckpointError> {
    let final_folder = checkpoints.join("final");
    if epoch.is_none() && final_folder.is_dir() {
        return Ok(final_folder);
    }
    let mut epochs: Vec<(u64, Utf8PathBuf)> = Vec::new();
    for name in names_in(checkpoints)? {
        let digits = name.strip_prefix("epoch_").filter(|d| d.len() >= 8);
        let number = digits.filter(|d| d.bytes().all(|b| b.is_ascii_digit())).and_then(|d| d.parse().ok());
        let path = checkpoints.join(&name);
        if let (Some(number), true) = (number, path.is_dir()) {
            epochs.push((number, path));
        }
    }
    epochs.sort();
    let chosen = match epoch {
        None => epochs.last(),
        Some(wanted) => epochs.iter().find(|(n, _)| *n == wanted),
    };
    match (chosen, epoch) {
        (Some((_, path)), _) => Ok(path.clone()),
        (None, None) => {
            let what = "holds neither `final` nor an `epoch_*` folder".to_owned();
            Err(CheckpointError::in_file(ErrorKind::Layout(what), checkpoints))
        }
        (None, Some(wanted)) => {
            let problem = format!("there is no folder `epoch_{wanted:08}`");
            let known: Vec<String> = epochs.iter().map(|(n, _)| n.to_string()).collect();
            let hint = if known.is_empty() {
                "the folder holds no epochs; leave `--epoch` out".to_owned()
            } else {
                format!("epochs in this folder: {}", dpar_export_spec::text::list(known))
            };
            Err(CheckpointError::in_file(ErrorKind::Option { option: "--epoch", problem }, checkpoints)
                .with_hint(hint))
        }
    }
}

/// Weight files of a checkpoint folder, in the order they are looked for.
const WEIGHT_NAMES: [&str; 5] = [
    "model.safetensors",
    "model.pt",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

fn has_weights(folder: &Utf8Path) -> bool {
    WEIGHT_NAMES.iter().any(|n| folder.join(n).is_file()) || is_distributed(folder)
}

fn weights_in(folder: &Utf8Path) -> Result<Utf8PathBuf, CheckpointError> {
    if let Some(path) = WEIGHT_NAMES.iter().map(|n| folder.join(n)).find(|p| p.is_file()) {
        return Ok(path);
    }
    let inner = names_in(folder)?.into_iter().map(|n| folder.join(n)).filter(|p| p.is_dir());
    if let Some(found) = [folder.to_owned()].into_iter().chain(inner).find(|f| is_distributed(f)) {
        return Err(distributed(&found));
    }
    if folder.join("latest").is_file() && folder.join("zero_to_fp32.py").is_file() {
        let what = "a DeepSpeed checkpoint, in parts of which none holds the weights".to_owned();
        return Err(CheckpointError::in_file(ErrorKind::UnsupportedFile(what), folder)
            .with_hint("gather it with the program that lies in it: python zero_to_fp32.py . model.pt"));
    }
    let what = format!("holds none of {}", WEIGHT_NAMES.map(|n| format!("`{n}`")).join(", "));
    Err(CheckpointError::in_file(ErrorKind::Layout(what), folder))
}

/// Whether a folder is a distributed checkpoint of PyTorch.
fn is_distributed(folder: &Utf8Path) -> bool {
    let parts = || names_in(folder).is_ok_and(|names| names.iter().any(|n| n.ends_with(".distcp")));
    folder.join(".metadata").is_file() && parts()
}

fn distributed(folder: &Utf8Path) -> CheckpointError {
    let what = "a distributed checkpoint of PyTorch (DCP), which is not read".to_owned();
    CheckpointError::in_file(ErrorKind::UnsupportedFile(what), folder).with_hint(
        "gather it into one file: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
    )
}

/// Names in a folder, sorted; those that are not UTF-8 are none of a checkpoint's.
fn names_in(folder: &Utf8Path) -> Result<Vec<String>, CheckpointError> {
    let io = |e| CheckpointError::io(folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_names_never_leave_the_experiment_folder() {
        let at = |root: &str| Located { weights: "w".into(), config: None, root: Some(root.into()) };
        for (root, path, name) in [
            ("a/b", "a/b/checkpoints/final/model.pt", "checkpoints/final/model.pt"),
            ("", "checkpoints/final/model.pt", "checkpoints/final/model.pt"),
            (".", "./config.yaml", "config.yaml"),
            ("", "/srv/me/config.yaml", "config.yaml"),
            ("", "../other/config.yaml", "config.yaml"),
            ("/a", "/a/../b/c.yaml", "c.yaml"),
            ("/a", "/b/c.yaml", "c.yaml"),
        ] {
            assert_eq!(at(root).portable(Utf8Path::new(path)), name, "{root} {path}");
        }
    }

    #[test]
    fn the_experiment_folder_may_be_the_current_one() {
        assert_eq!(experiment_of(Utf8Path::new("checkpoints/final")), Some(Utf8PathBuf::new()));
        assert_eq!(experiment_of(Utf8Path::new("x/checkpoints/final")), Some("x".into()));
        assert_eq!(experiment_of(Utf8Path::new("x/final")), None);
    }
}
