//! Engines that were built before, shared between bundles: a folder that can be on a shared disk.
//!
//! `KEY.json` says which engine was made from these bytes with these settings by this library version; KEY is the
//! SHA-256 of all of them. It names the engine by its own SHA-256, in `SHA256.engine`. Both are written beside their
//! place and renamed, the engine first: an interrupted writer leaves nothing that is found, and of two writers of one
//! key (TensorRT's engines differ in a few bytes each time) either result is whole. What is read is hashed again.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_bundle::EngineEntry;
use dpar_export_files::arrays::write_atomic;
use dpar_export_files::staging::remove_unfinished;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A folder of engines.
#[derive(Debug, Clone)]
pub struct EngineCache {
    folder: Utf8PathBuf,
}

/// `KEY.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheRecord {
    /// SHA-256 of the engine.
    sha256: String,
    /// The entry of the bundle that it was built for.
    entry: EngineEntry,
}

/// What the cache has for a build.
#[derive(Debug)]
pub enum CacheLookup {
    /// The engine's bytes, which have the recorded digest, and what is known of the build.
    Engine(Vec<u8>, Box<EngineEntry>),
    /// Nothing.
    Nothing,
    /// An entry that cannot be used, and why; it is to be replaced.
    Damaged(String),
}

impl EngineCache {
    /// Opens a folder, which is made where it is missing. What killed writers left is removed.
    ///
    /// # Errors
    /// When it cannot be made, or is no folder.
    pub fn open(folder: &Utf8Path) -> io::Result<Self> {
        fs_err::create_dir_all(folder)?;
        remove_unfinished(folder);
        Ok(Self { folder: folder.to_owned() })
    }

    /// Everything that decides the bytes of an engine, in one digest.
    pub fn key(entry: &EngineEntry) -> String {
        let same = EngineEntry { graph: String::new(), file: String::new(), ..entry.settings() };
        // Maps have fixed orders, and numbers one spelling.
        let text = serde_json::to_vec(&same).unwrap_or_default();
        hex::encode(Sha256::digest(text))
    }

    fn record(&self, key: &str) -> Utf8PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    fn engine(&self, sha256: &str) -> Utf8PathBuf {
        self.folder.join(format!("{sha256}.engine"))
    }

    /// Looks for the engine of a build.
    pub fn find(&self, entry: &EngineEntry) -> CacheLookup {
        let path = self.record(&Self::key(entry));
        let bytes = match fs_err::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return CacheLookup::Nothing,
            Err(e) => return CacheLookup::Damaged(e.to_string()),
        };
        let record: CacheRecord = match serde_json::from_slice(&bytes) {
            Ok(record) => record,
            Err(e) => return CacheLookup::Damaged(format!("{path}: {e}")),
        };
        let plain = record.sha256.len() == 64 && record.sha256.bytes().all(|b| b.is_ascii_hexdigit());
        if !plain || Self::key(&record.entry) != Self::key(entry) {
            return CacheLookup::Damaged(format!("{path} is of another build"));
        }
        let engine = self.engine(&record.sha256);
        match fs_err::read(&engine) {
            Ok(bytes) if hex::encode(Sha256::digest(&bytes)) == record.sha256 => {
                CacheLookup::Engine(bytes, Box::new(record.entry))
            }
            Ok(_) => CacheLookup::Damaged(format!("{engine} does not have the recorded SHA-256")),
            Err(e) => CacheLookup::Damaged(e.to_string()),
        }
    }

    /// Keeps an engine.
    ///
    /// # Errors
    /// When the disk refuses; nothing incomplete is left.
    pub fn keep(&self, entry: &EngineEntry, bytes: &[u8]) -> io::Result<()> {
        let sha256 = hex::encode(Sha256::digest(bytes));
        write_named(&self.engine(&sha256), bytes)?;
        let record = CacheRecord { sha256, entry: entry.clone() };
        let text = serde_json::to_vec_pretty(&record).map_err(io::Error::other)?;
        write_named(&self.record(&Self::key(entry)), &text)
    }
}

/// Writes a file; an error says which of the folder's.
fn write_named(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    write_atomic(path, bytes).map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpar_export_spec::Precision;

    fn entry() -> EngineEntry {
        EngineEntry {
            graph: "head".into(),
            file: "trt/head.engine".into(),
            builder: "B".into(),
            version: "1.7".into(),
            graph_sha256: "1".repeat(64),
            weights_sha256: "2".repeat(64),
            layers: 7,
            ..EngineEntry::default()
        }
    }

    fn cache() -> (tempfile::TempDir, EngineCache) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(dir.path()).unwrap().join("a/b");
        (dir, EngineCache::open(&folder).unwrap())
    }

    #[test]
    fn the_key_covers_what_decides_the_bytes_and_nothing_else() {
        let base = EngineCache::key(&entry());
        let other = |change: fn(&mut EngineEntry)| {
            let mut e = entry();
            change(&mut e);
            EngineCache::key(&e)
        };
        for same in [
            other(|e| e.graph = "other".into()),
            other(|e| e.file = "x".into()),
            other(|e| e.layers = 9),
            other(|e| e.warnings.push("w".into())),
        ] {
            assert_eq!(same, base);
        }
        for differs in [
            other(|e| e.version = "1.8".into()),
            other(|e| e.precision = Precision::Fp16),
            other(|e| e.graph_sha256 = "3".repeat(64)),
            other(|e| e.weights_sha256 = "3".repeat(64)),
            other(|e| e.compute_capabilities.push("8.9".into())),
            other(|e| e.optimization_level = Some(1)),
            other(|e| e.detailed = true),
        ] {
            assert_ne!(differs, base);
        }
    }

    #[test]
    fn what_is_kept_is_found_and_damage_is_seen() {
        let (_guard, cache) = cache();
        assert!(matches!(cache.find(&entry()), CacheLookup::Nothing));
        cache.keep(&entry(), b"an engine").unwrap();
        let CacheLookup::Engine(bytes, found) = cache.find(&entry()) else { panic!("not found") };
        assert_eq!((bytes.as_slice(), found.layers), (b"an engine".as_slice(), 7));
        let other = EngineEntry { version: "2".into(), ..entry() };
        assert!(matches!(cache.find(&other), CacheLookup::Nothing));

        let digest = hex::encode(Sha256::digest(b"an engine"));
        let path = cache.engine(&digest);
        fs_err::write(&path, b"an enginf").unwrap();
        let CacheLookup::Damaged(why) = cache.find(&entry()) else { panic!("damage was not seen") };
        assert!(why.contains("SHA-256"), "{why}");
        fs_err::remove_file(&path).unwrap();
        assert!(matches!(cache.find(&entry()), CacheLookup::Damaged(_)));
        // A record that points outside, one of another build, and no record at all.
        let record = cache.record(&EngineCache::key(&entry()));
        let text = fs_err::read_to_string(&record).unwrap();
        for bad in [text.replace(&digest, "../../../etc/passwd"), text.replace("1.7", "1.8"), "{".into()] {
            fs_err::write(&record, bad).unwrap();
            assert!(matches!(cache.find(&entry()), CacheLookup::Damaged(_)));
        }
        cache.keep(&entry(), b"an engine").unwrap();
        assert!(matches!(cache.find(&entry()), CacheLookup::Engine(..)));
    }

    #[test]
    fn writers_at_the_same_time_leave_a_whole_entry() {
        let (_guard, cache) = cache();
        std::thread::scope(|scope| {
            for i in 0..4_u8 {
                let cache = &cache;
                scope.spawn(move || {
                    for _ in 0..8 {
                        cache.keep(&entry(), &vec![i; 5000]).unwrap();
                        assert!(matches!(cache.find(&entry()), CacheLookup::Engine(..)));
                    }
                });
            }
        });
        let names = cache.folder.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned());
        assert!(names.into_iter().all(|n| !n.contains(".part")), "nothing half-written stays");
    }
}
