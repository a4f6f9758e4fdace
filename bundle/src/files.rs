//! A folder whose files are what its manifest says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{EngineFile, GraphFile};
use dpar_export_inputs::limits;
use dpar_export_spec::{Dialect, SystemKind};
use sha2::{Digest, Sha256};

use super::digest::{Checking, Listed};
use super::held::{Changed, Held};
use super::{
    BundleError, CONFIG, FileEntry, GraphEntry, MANIFEST, Manifest, ProfileEntry, digest, read_small,
};

impl From<Changed> for BundleError {
    fn from(changed: Changed) -> Self {
        Self::Changed { path: changed.0 }
    }
}

/// The files of a bundle, opened and found whole.
#[derive(Debug, Clone)]
pub(super) struct Files {
    /// The folder as it was named.
    pub(super) folder: Utf8PathBuf,
    /// Where it is, without links: a link that is set elsewhere does not change what runs.
    place: Utf8PathBuf,
    pub(super) manifest: Manifest,
    pub(super) manifest_sha256: String,
    held: Held,
    /// Of the files that are too large to be read whole.
    checking: Arc<Checking>,
}

impl Files {
    /// Opens the bundle in `folder`: checks size and SHA-256 of every listed file, and that the folder holds no other.
    /// `system` is asked first whether the kind of bundle is the right one; `graph` is given the bytes of every graph, as
    /// they were hashed. Also returns the bytes of `config.json`. Hashes of larger files are under way until
    /// [`unchanged`](Self::unchanged) has passed.
    pub(super) fn open(
        folder: &Utf8Path,
        system: impl FnOnce(SystemKind) -> Result<(), BundleError>,
        graph: impl FnMut(&Manifest, &GraphEntry, Dialect, &[u8]) -> Result<(), BundleError>,
    ) -> Result<(Self, Vec<u8>), BundleError> {
        let mut held = Held::default();
        let opened = Self::read(folder, system, graph, &mut held);
        // First: what does not fit may be half of another bundle.
        held.check()?;
        let (mut files, config) = opened?;
        files.held = held;
        Ok((files, config))
    }

    fn read(
        folder: &Utf8Path,
        system: impl FnOnce(SystemKind) -> Result<(), BundleError>,
        mut graph: impl FnMut(&Manifest, &GraphEntry, Dialect, &[u8]) -> Result<(), BundleError>,
        held: &mut Held,
    ) -> Result<(Self, Vec<u8>), BundleError> {
        let place = place(folder)?;
        let (manifest, manifest_sha256) = read_manifest(folder, &place, held)?;
        system(manifest.system)?;
        let graphs: BTreeMap<&str, (&GraphEntry, Dialect)> =
            manifest.graphs.iter().flat_map(|g| g.files().map(move |(d, file)| (file, (g, d)))).collect();
        let most = |file: &FileEntry| match graphs.contains_key(file.path.as_str()) {
            true => Some(limits::GRAPH),
            false => (file.path == CONFIG).then_some(limits::TEXT),
        };
        let (mut whole, mut larger) = (Vec::new(), Vec::new());
        for file in &manifest.files {
            let (shown, inside) = (folder.join(&file.path), place.join(&file.path));
            let meta = note(folder, &place, file, held)?;
            let wrong = |message: String| BundleError::Integrity { path: shown.clone(), message };
            if meta.len() != file.size {
                return Err(wrong(format!("it has {} bytes, listed are {}", meta.len(), file.size)));
            }
            match most(file) {
                Some(most) if file.size > most => {
                    return Err(wrong(format!("it is larger than {} MiB", most >> 20)));
                }
                Some(_) => whole.push((file, shown, inside)),
                None => larger.push(Listed { shown, inside, sha256: file.sha256.clone() }),
            }
        }
        let checking = Arc::new(Checking::begin(larger));
        let mut config = Vec::new();
        for (file, path, inside) in whole {
            let bytes = read(&inside, file.size).map_err(|e| BundleError::io(&path, e))?;
            check_digest(&path, file, &hex::encode(Sha256::digest(&bytes)))?;
            match graphs.get(file.path.as_str()) {
                Some((entry, dialect)) => graph(&manifest, entry, *dialect, &bytes)?,
                None => config = bytes,
            }
        }
        note_folders(folder, &place, &manifest, held)?;
        let (folder, held) = (folder.to_owned(), Held::default());
        Ok((Self { folder, place, manifest, manifest_sha256, held, checking }, config))
    }

    /// The files of a bundle that is being written, in a folder that nobody else knows.
    pub(super) fn unwritten(folder: &Utf8Path, manifest: Manifest, manifest_sha256: String) -> Self {
        let place = folder.to_owned();
        let (held, checking) = (Held::default(), Arc::new(Checking::nothing()));
        Self { folder: folder.to_owned(), place, manifest, manifest_sha256, held, checking }
    }

    /// Where a listed file is.
    pub(super) fn path(&self, file: &str) -> Utf8PathBuf {
        self.place.join(file)
    }

    /// Waits until every file is hashed, and checks that it is still the one that was.
    pub(super) fn unchanged(&self) -> Result<(), BundleError> {
        let verdict = self.checking.verdict();
        // First: what does not fit may be half of another bundle.
        self.held.check()?;
        Ok(verdict?)
    }

    /// Calls `f` with a graph in the first of `dialects` that it has, else the portable one, and then checks that what it
    /// read is what was hashed.
    pub(super) fn with<T, E: From<BundleError>>(
        &self,
        entry: &GraphEntry,
        dialects: &[Dialect],
        f: impl FnOnce(GraphFile<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let made = self.ahead(entry, dialects, f)?;
        self.unchanged()?;
        Ok(made)
    }

    /// As [`with`](Self::with), but hashes of weights may be under way afterwards. A built engine is code: it is hashed first.
    pub(super) fn ahead<T, E: From<BundleError>>(
        &self,
        entry: &GraphEntry,
        dialects: &[Dialect],
        f: impl FnOnce(GraphFile<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let (dialect, file) = entry.file_for(dialects);
        let (path, engine) = (self.path(file), self.engine_file(&entry.spec.name));
        if engine.is_some() {
            self.unchanged()?;
        }
        let made = f(GraphFile { spec: &entry.spec, path: &path, dialect, engine: engine.as_ref() });
        // First: a file that is damaged, or was swapped, may be why `f` failed.
        match &made {
            Ok(_) => self.held.check().map_err(BundleError::from)?,
            Err(_) => self.unchanged()?,
        }
        made
    }

    /// The engine of a graph, with the profiles that the manifest lists, narrow ones first.
    fn engine_file(&self, graph: &str) -> Option<EngineFile> {
        let entry = self.manifest.engines.iter().find(|e| e.graph == graph)?;
        let profiles = entry.profiles.iter().map(ProfileEntry::profile);
        Some(EngineFile { path: self.path(&entry.file), profiles: profiles.collect() })
    }

    fn entry(&self, file: &str) -> Result<&FileEntry, BundleError> {
        let listed = self.manifest.files.iter().find(|f| f.path == file);
        listed.ok_or_else(|| BundleError::Integrity {
            path: self.folder.join(file),
            message: "the manifest does not list it".to_owned(),
        })
    }

    /// The bytes of a listed file, which are those that were hashed.
    pub(super) fn bytes(&self, file: &str) -> Result<Vec<u8>, BundleError> {
        let (entry, path) = (self.entry(file)?, self.path(file));
        let bytes = read(&path, entry.size).map_err(|e| BundleError::io(&path, e))?;
        match hex::encode(Sha256::digest(&bytes)) == entry.sha256 {
            true => Ok(bytes),
            false => Err(BundleError::Changed { path }),
        }
    }

    /// Copies a listed file into `folder` under its own name, which is not there yet; the copy is what was hashed.
    pub(super) fn copy(&self, file: &str, folder: &Utf8Path) -> Result<(), BundleError> {
        let (entry, from) = (self.entry(file)?, self.path(file));
        let to = folder.join(from.file_name().unwrap_or_default());
        let copy = || -> std::io::Result<()> {
            let mut target = fs_err::OpenOptions::new().write(true).create_new(true).open(&to)?;
            std::io::copy(&mut dpar_export_inputs::open(&from)?, &mut target).map(|_| ())
        };
        copy().map_err(|e| BundleError::io(&to, e))?;
        match digest(&to)? == (entry.size, entry.sha256.clone()) {
            true => Ok(()),
            false => Err(BundleError::Changed { path: from }),
        }
    }
}

/// The bytes of a file of that size; one more where it is longer, so that no digest fits.
fn read(path: &Utf8Path, size: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    dpar_export_inputs::open(path)?.take(size + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where a folder is, without links.
fn place(folder: &Utf8Path) -> Result<Utf8PathBuf, BundleError> {
    folder.canonicalize_utf8().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => BundleError::NotABundle(folder.to_owned()),
        _ => BundleError::io(folder, e),
    })
}

/// What a folder's manifest says it is, without looking at its files.
pub(super) fn system(folder: &Utf8Path) -> Result<SystemKind, BundleError> {
    Ok(read_manifest(folder, &place(folder)?, &mut Held::default())?.0.system)
}

/// The manifest of a bundle, parsed and checked, and its SHA-256.
fn read_manifest(
    folder: &Utf8Path,
    place: &Utf8Path,
    held: &mut Held,
) -> Result<(Manifest, String), BundleError> {
    let (path, inside) = (folder.join(MANIFEST), place.join(MANIFEST));
    if !inside.is_file() {
        return Err(BundleError::NotABundle(folder.to_owned()));
    }
    let meta = held.note(&inside).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => BundleError::NotABundle(folder.to_owned()),
        _ => busy(&path, e),
    })?;
    if !meta.is_file() {
        return Err(BundleError::Linked { path });
    }
    let bytes = read_small(&inside)?;
    let manifest = Manifest::parse(&bytes).map_err(|source| BundleError::Manifest { path, source })?;
    Ok((manifest, hex::encode(Sha256::digest(&bytes))))
}

/// What keeps being written is not what was exported.
fn busy(path: &Utf8Path, e: std::io::Error) -> BundleError {
    match e.kind() {
        std::io::ErrorKind::ResourceBusy => BundleError::Changed { path: path.to_owned() },
        _ => BundleError::io(path, e),
    }
}

/// Notes a listed file: there, regular, and not reached through a link.
fn note(
    folder: &Utf8Path,
    place: &Utf8Path,
    file: &FileEntry,
    held: &mut Held,
) -> Result<std::fs::Metadata, BundleError> {
    let path = folder.join(&file.path);
    let wrong = |message: &str| BundleError::Integrity { path: path.clone(), message: message.to_owned() };
    let mut inside = place.to_owned();
    for part in file.path.split('/') {
        inside.push(part);
        if inside.is_symlink() {
            return Err(BundleError::Linked { path: path.clone() });
        }
    }
    let meta = held.note(&inside).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => wrong("it is missing"),
        _ => busy(&path, e),
    })?;
    match meta.is_file() {
        true => Ok(meta),
        false => Err(wrong("it is not a regular file")),
    }
}

/// Checks size and SHA-256 of one file of a bundle in `folder`.
pub(super) fn check_file(folder: &Utf8Path, file: &FileEntry) -> Result<(), BundleError> {
    let path = folder.join(&file.path);
    let (size, sha256) = digest(&path)?;
    if size != file.size {
        let message = format!("it has {size} bytes, listed are {}", file.size);
        return Err(BundleError::Integrity { path, message });
    }
    check_digest(&path, file, &sha256)
}

fn check_digest(path: &Utf8Path, file: &FileEntry, sha256: &str) -> Result<(), BundleError> {
    if sha256 == file.sha256 {
        return Ok(());
    }
    let message = format!("its SHA-256 is {sha256}, listed is {}", file.sha256);
    Err(BundleError::Integrity { path: path.to_owned(), message })
}

/// Notes the folder and those that lead to listed files, in which nothing else lies.
fn note_folders(
    folder: &Utf8Path,
    place: &Utf8Path,
    manifest: &Manifest,
    held: &mut Held,
) -> Result<(), BundleError> {
    let listed: BTreeSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).chain([MANIFEST]).collect();
    let above = |path: &str| path.rsplit_once('/').map(|(above, _)| above.to_owned());
    let mut leads = BTreeSet::from([String::new()]);
    for path in &listed {
        let mut inner = above(path);
        while let Some(name) = inner {
            inner = above(&name);
            if !leads.insert(name) {
                break;
            }
        }
    }
    for lead in &leads {
        let of = |folder: &Utf8Path| match lead.as_str() {
            "" => folder.to_owned(),
            lead => folder.join(lead),
        };
        let (shown, inside) = (of(folder), of(place));
        let io = |e| BundleError::io(&shown, e);
        held.note(&inside).map_err(|e| busy(&shown, e))?;
        for entry in inside.as_std_path().read_dir().map_err(io)? {
            let entry = entry.map_err(io)?;
            // A name that is not UTF-8 is shown as far as it can be, and is listed nowhere.
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if lead.is_empty() { name.clone() } else { format!("{lead}/{name}") };
            let utf8 = entry.file_name().to_str().is_some();
            let is_folder = entry.file_type().map_err(io)?.is_dir();
            if !utf8 || !(listed.contains(path.as_str()) || (is_folder && leads.contains(&path))) {
                let message = "the manifest does not list it: move it out of the bundle".to_owned();
                return Err(BundleError::Integrity { path: folder.join(path), message });
            }
        }
    }
    Ok(())
}
