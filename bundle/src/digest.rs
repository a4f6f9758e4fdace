//! SHA-256 of files: on all cores, and while other work is done.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use camino::{Utf8Path, Utf8PathBuf};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::BundleError;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 18;

/// Size and SHA-256 of a file, lower-case hex.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Utf8Path) -> Result<(u64, String), BundleError> {
    digest_unless(path, &AtomicBool::new(false)).map_err(|e| BundleError::io(path, e))
}

/// [`digest`] of several files at the same time, in their order.
pub fn digests(paths: &[&Utf8Path]) -> Vec<Result<(u64, String), BundleError>> {
    of_each(paths, &AtomicBool::new(false), |path, found| found.map_err(|e| BundleError::io(path, e)))
}

fn digest_unless(path: &Utf8Path, stop: &AtomicBool) -> io::Result<(u64, String)> {
    let mut file = dpar_export_inputs::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0_u8; PIECE];
    let mut size = 0;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let n = match file.read(&mut buffer) {
            Ok(0) => return Ok((size, hex::encode(hash.finalize()))),
            // A signal's handler ran meanwhile: this is no end.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        hash.update(&buffer[..n]);
        size += n as u64;
    }
}

/// Hashes files on threads of its own, no more than there are cores: those of others are not kept busy.
fn of_each<P: AsRef<Utf8Path> + Sync, T: Send>(
    paths: &[P],
    stop: &AtomicBool,
    and: impl Fn(&P, io::Result<(u64, String)>) -> T + Sync,
) -> Vec<T> {
    let one = |path: &P| and(path, digest_unless(path.as_ref(), stop));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = match cores.min(paths.len()) {
        0 | 1 => None,
        threads => rayon::ThreadPoolBuilder::new().num_threads(threads).build().ok(),
    };
    match pool {
        Some(pool) => pool.install(|| paths.par_iter().with_max_len(1).map(one).collect()),
        // A machine that gives no thread still gives this one.
        None => paths.iter().map(one).collect(),
    }
}

/// What [`digest`] gives of a file.
type Digested = Result<(u64, String), BundleError>;

/// Does `work`, and meanwhile hashes files. Where it fails, so does this, at once.
pub(crate) fn while_hashing<T>(
    paths: &[&Utf8Path],
    work: impl FnOnce() -> Result<T, BundleError>,
) -> Result<(T, Vec<Digested>), BundleError> {
    let stop = AtomicBool::new(false);
    let hash = || of_each(paths, &stop, |path, found| found.map_err(|e| BundleError::io(path, e)));
    std::thread::scope(|scope| {
        let hashing = std::thread::Builder::new().name("hash".to_owned()).spawn_scoped(scope, hash);
        let done = work();
        stop.store(done.is_err(), Ordering::Relaxed);
        let hashed = hashing.ok().and_then(|thread| thread.join().ok());
        let done = done?;
        Ok((done, hashed.unwrap_or_else(hash)))
    })
}

/// What is wrong with a file.
#[derive(Debug, Clone)]
pub(crate) enum Wrong {
    /// Its bytes are not those that are listed.
    Unlike { path: Utf8PathBuf, message: String },
    /// It cannot be read.
    Unread { path: Utf8PathBuf, kind: io::ErrorKind, message: String },
}

impl From<Wrong> for BundleError {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Unlike { path, message } => Self::Integrity { path, message },
            Wrong::Unread { path, kind, message } => Self::Io { path, source: io::Error::new(kind, message) },
        }
    }
}

/// A file, as it is named and as it is reached, and the digest that is listed for it.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) shown: Utf8PathBuf,
    pub(crate) inside: Utf8PathBuf,
    pub(crate) sha256: String,
}

impl AsRef<Utf8Path> for Listed {
    fn as_ref(&self) -> &Utf8Path {
        &self.inside
    }
}

impl Listed {
    fn check(&self, found: io::Result<(u64, String)>) -> Result<(), Wrong> {
        let path = self.shown.clone();
        match found {
            Err(e) => Err(Wrong::Unread { path, kind: e.kind(), message: e.to_string() }),
            Ok((_, found)) if found == self.sha256 => Ok(()),
            Ok((_, found)) => {
                let message = format!("its SHA-256 is {found}, listed is {}", self.sha256);
                Err(Wrong::Unlike { path, message })
            }
        }
    }
}

fn check_all(files: &[Listed], stop: &AtomicBool) -> Result<(), Wrong> {
    of_each(files, stop, Listed::check).into_iter().collect()
}

/// The check of files against their digests, under way or done. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Checking {
    stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Running(JoinHandle<Result<(), Wrong>>),
    Done(Result<(), Wrong>),
}

impl Checking {
    /// Nothing to check.
    pub(crate) fn nothing() -> Self {
        Self { stop: Arc::default(), state: Mutex::new(State::Done(Ok(()))) }
    }

    /// Begins. The first of `files` that is wrong is what [`verdict`](Self::verdict) says.
    pub(crate) fn begin(files: Vec<Listed>) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let files = Arc::new(files);
        let (told, theirs) = (Arc::clone(&stop), Arc::clone(&files));
        let thread = std::thread::Builder::new().name("hash".to_owned());
        let state = match thread.spawn(move || check_all(&theirs, &told)) {
            Ok(thread) => State::Running(thread),
            Err(_) => State::Done(check_all(&files, &stop)),
        };
        Self { stop, state: Mutex::new(state) }
    }

    /// Waits for the end: the first file that is wrong.
    pub(crate) fn verdict(&self) -> Result<(), Wrong> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *state, State::Done(Ok(())));
        let verdict = match before {
            State::Done(verdict) => verdict,
            State::Running(thread) => thread.join().unwrap_or_else(|_| {
                let message = "the thread that hashes has panicked".to_owned();
                Err(Wrong::Unread { path: Utf8PathBuf::new(), kind: io::ErrorKind::Other, message })
            }),
        };
        *state = State::Done(verdict.clone());
        verdict
    }
}

impl Drop for Checking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::tests::test_folder;

    fn listed(folder: &Utf8Path, name: &str, bytes: &[u8], said: &[u8]) -> Listed {
        let inside = folder.join(name);
        fs_err::write(&inside, bytes).unwrap();
        Listed { shown: name.into(), inside, sha256: hex::encode(Sha256::digest(said)) }
    }

    #[test]
    fn digests_come_in_the_order_of_the_files() {
        let (_guard, folder) = test_folder();
        let paths: Vec<Utf8PathBuf> = (0..9).map(|i| folder.join(format!("{i}"))).collect();
        for (i, path) in paths.iter().enumerate() {
            fs_err::write(path, vec![7; i * PIECE / 3]).unwrap();
        }
        let mut asked: Vec<&Utf8Path> = paths.iter().map(Utf8PathBuf::as_path).collect();
        let gone = folder.join("gone");
        asked.push(&gone);
        let found = digests(&asked);
        for (i, path) in paths.iter().enumerate() {
            let expected = (fs_err::metadata(path).unwrap().len(), digest(path).unwrap().1);
            assert_eq!(found[i].as_ref().unwrap(), &expected);
        }
        assert!(found[9].as_ref().unwrap_err().to_string().contains("gone"));
    }

    #[test]
    fn the_first_file_that_is_wrong_is_said_every_time() {
        let (_guard, folder) = test_folder();
        let files = |wrong: &[usize]| -> Vec<Listed> {
            let one = |i: usize| {
                listed(&folder, &i.to_string(), &[i as u8], &[i as u8 + u8::from(wrong.contains(&i))])
            };
            (0..6).map(one).collect()
        };
        Checking::begin(files(&[])).verdict().unwrap();
        Checking::nothing().verdict().unwrap();
        let checking = Checking::begin(files(&[4, 2]));
        for _ in 0..2 {
            let e = BundleError::from(checking.verdict().unwrap_err()).to_string();
            assert!(e.starts_with("2 does not match the manifest: its SHA-256 is"), "{e}");
        }
    }

    #[test]
    fn work_that_fails_does_not_wait_for_the_hashes() {
        let (_guard, folder) = test_folder();
        let path = folder.join("f");
        fs_err::write(&path, [1, 2]).unwrap();
        let (done, found) = while_hashing(&[&path], || Ok(5)).unwrap();
        assert_eq!((done, found[0].as_ref().unwrap().0), (5, 2));
        let failed = || Err::<(), _>(BundleError::NotABundle("x".into()));
        assert!(matches!(while_hashing(&[&path], failed), Err(BundleError::NotABundle(_))));
    }
}
