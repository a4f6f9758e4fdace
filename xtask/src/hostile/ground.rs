//! What the checks stand on: the program, bundles of two models, inputs for every command, and how a run is watched.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};

use super::files;

/// A run that takes longer hangs: the jobs here take a second or two.
pub(super) const HANG: Duration = Duration::from_secs(60);

/// How a run ended.
pub(super) struct Ended {
    /// Exit code; `None` where a signal ended it.
    pub(super) code: Option<i32>,
    /// Standard output.
    pub(super) stdout: String,
    /// Standard error.
    pub(super) stderr: String,
    /// It was still running at the limit and was killed.
    pub(super) hung: bool,
    /// From start to end.
    pub(super) took: Duration,
}

impl Ended {
    /// What no run may do, whatever it was given: hang, panic, die of a signal, end with an unknown code.
    pub(super) fn wrong(&self) -> Option<String> {
        let last = self.stderr.lines().last().unwrap_or_default();
        match self.code {
            _ if self.hung => Some(format!("it hangs: {:.0?}", self.took)),
            _ if self.stderr.contains("panicked at") => Some(format!("panic: {}", self.stderr.trim())),
            None => Some(format!("a signal ended it: {last}")),
            Some(0..=5 | 130) => None,
            Some(code) => Some(format!("exit code {code} is none of the program's: {last}")),
        }
    }

    /// The same, and another exit code than this one.
    pub(super) fn not(&self, code: i32) -> Option<String> {
        let found = self.code.map_or("none".to_owned(), |c| c.to_string());
        let other = || format!("exit code {found}, {code} is right: {}", self.stderr.trim());
        self.wrong().or_else(|| (self.code != Some(code)).then(other))
    }
}

/// A program that runs, its output in files so that no pipe fills.
pub(super) struct Running {
    child: std::process::Child,
    out: tempfile::NamedTempFile,
    err: tempfile::NamedTempFile,
    started: Instant,
}

impl Running {
    /// Starts a command line.
    pub(super) fn start(mut command: Command) -> Result<Self> {
        let (out, err) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
        command.stdin(Stdio::null()).stdout(out.reopen()?).stderr(err.reopen()?);
        let child = command.spawn().with_context(|| format!("{command:?} cannot be started"))?;
        Ok(Self { child, out, err, started: Instant::now() })
    }

    /// Whether it still runs.
    pub(super) fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Time since the start.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sends a signal by its name; one that comes too late is none.
    pub(super) fn signal(&mut self, name: &str) -> Result<()> {
        if self.alive() {
            let id = self.child.id().to_string();
            Command::new("kill").args(["-s", name, &id]).stderr(Stdio::null()).status()?;
        }
        Ok(())
    }

    /// Waits for the end, at most until the limit.
    pub(super) fn end(mut self, limit: Duration) -> Result<Ended> {
        let mut hung = false;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if self.started.elapsed() > limit {
                hung = true;
                self.child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let read = |file: &tempfile::NamedTempFile| -> Result<String> {
            Ok(String::from_utf8_lossy(&fs_err::read(file.path())?).into_owned())
        };
        let (stdout, stderr) = (read(&self.out)?, read(&self.err)?);
        Ok(Ended { code: status.code(), stdout, stderr, hung, took: self.started.elapsed() })
    }
}

/// One of two models and what was made of it.
pub(super) struct ModelFiles {
    /// Its checkpoint.
    pub(super) checkpoint: Utf8PathBuf,
    /// Its golden outputs.
    pub(super) golden: Utf8PathBuf,
    /// Its bundle.
    pub(super) bundle: Utf8PathBuf,
    /// What `generate` drew: samples.npz, trace.npz.
    pub(super) drawn: Utf8PathBuf,
    /// The bundle as an OCI image layout.
    pub(super) layout: Utf8PathBuf,
}

/// Everything that the checks share. No check changes it.
pub(super) struct Ground {
    /// The workspace.
    pub(super) root: Utf8PathBuf,
    /// The program.
    pub(super) program: Utf8PathBuf,
    /// Fewer repetitions.
    pub(super) short: bool,
    /// Of the random times.
    pub(super) seed: u64,
    /// Two models whose bundles have the same kinds of files and other content.
    pub(super) models: [ModelFiles; 2],
    /// The tokenizer of both.
    pub(super) vq: Utf8PathBuf,
    /// A feature network.
    pub(super) network: Utf8PathBuf,
    /// Two sets of samples, and a reference, for `evaluate`.
    pub(super) samples: [Utf8PathBuf; 2],
    pub(super) reference: Utf8PathBuf,
    /// A private key for tests.
    pub(super) key: Utf8PathBuf,
    folder: tempfile::TempDir,
}

impl Ground {
    /// Exports and draws what the checks need.
    pub(super) fn new(root: &Utf8Path, program: Utf8PathBuf, short: bool, seed: u64) -> Result<Self> {
        let folder = tempfile::tempdir().context("a temporary folder")?;
        let scratch = Utf8Path::from_path(folder.path()).context("the temporary folder is not UTF-8")?;
        let model = |name: &str| ModelFiles {
            checkpoint: root.join("fixtures/variants").join(name).join("dpar"),
            golden: root.join("fixtures/variants").join(name),
            bundle: scratch.join(format!("{name}-bundle")),
            drawn: scratch.join(format!("{name}-drawn")),
            layout: scratch.join(format!("{name}-layout")),
        };
        let models = [model("combined"), model("token")];
        let samples = ["a", "b"].map(|n| scratch.join(format!("samples-{n}.npz")));
        let reference = scratch.join("reference.npz");
        for (path, images, seed) in [(&samples[0], 24, 1), (&samples[1], 24, 2), (&reference, 80, 3)] {
            files::images(path, images, 16, seed)?;
        }
        let key = scratch.join("key.pem");
        fs_err::copy(root.join("fixtures/attest-keys/test-only-private.pem"), &key)?;
        #[cfg(unix)]
        fs_err::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let network = root.join("fixtures/features/tiny.onnx");
        let vq = root.join("fixtures/variants/combined/vq.pt");
        let root = root.to_owned();
        let ground =
            Self { root, program, short, seed, models, vq, network, samples, reference, key, folder };
        for m in &ground.models {
            ground.good(&[m.checkpoint.as_str(), "--vq", ground.vq.as_str(), "-o", m.bundle.as_str()])?;
            ground.good(&["package", m.bundle.as_str(), "--oci", "-o", m.layout.as_str()])?;
            ground.good(&["generate", m.bundle.as_str(), "--num", "4", "-o", m.drawn.as_str()])?;
        }
        Ok(ground)
    }

    /// A new folder of a check.
    pub(super) fn place(&self, name: &str) -> Result<Utf8PathBuf> {
        let base = Utf8Path::from_path(self.folder.path()).context("the temporary folder is not UTF-8")?;
        let place = base.join("places").join(name);
        if place.exists() {
            fs_err::remove_dir_all(&place)?;
        }
        fs_err::create_dir_all(&place)?;
        Ok(place)
    }

    /// Repetitions: a few in the short form.
    pub(super) fn times(&self, short: usize, long: usize) -> usize {
        if self.short { short } else { long }
    }

    /// Random numbers of a check: the same in every run with the same seed.
    pub(super) fn random(&self, check: &str) -> fastrand::Rng {
        let digest = Sha256::digest(format!("{} {check}", self.seed));
        fastrand::Rng::with_seed(u64::from_le_bytes(std::array::from_fn(|i| digest[i])))
    }

    /// The program with arguments, in the workspace's folder.
    pub(super) fn command<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args.iter().map(AsRef::as_ref)).current_dir(&self.root);
        command.env_remove("RUST_LOG").env("NO_COLOR", "1");
        command
    }

    /// A shell script that runs the program: `"$@"` in it is the program with its arguments, `$0` the given word.
    pub(super) fn shell<S: AsRef<str>>(&self, script: &str, word: &str, args: &[S]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script, word, self.program.as_str()]);
        command.args(args.iter().map(AsRef::as_ref)).current_dir(&self.root);
        command.env_remove("RUST_LOG").env("NO_COLOR", "1");
        command
    }

    /// Runs the program to its end.
    pub(super) fn run<S: AsRef<str>>(&self, args: &[S]) -> Result<Ended> {
        Running::start(self.command(args))?.end(HANG)
    }

    /// Runs what must work before anything can be checked.
    pub(super) fn good<S: AsRef<str>>(&self, args: &[S]) -> Result<Ended> {
        let ended = self.run(args)?;
        if let Some(wrong) = ended.not(0) {
            let words: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
            bail!("`dpar-export {}`: {wrong}", words.join(" "));
        }
        Ok(ended)
    }
}

/// Every file below a path, or the file itself, with its digest; empty where nothing is. Folders end in `/`.
pub(super) fn tree(path: &Utf8Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut open = vec![(path.to_owned(), String::new())];
    while let Some((path, name)) = open.pop() {
        let Ok(metadata) = fs_err::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            found.insert(format!("{name}/"), String::new());
            for entry in path.read_dir_utf8()? {
                let entry = entry?;
                open.push((entry.path().to_owned(), format!("{name}/{}", entry.file_name())));
            }
        } else if metadata.is_file() {
            found.insert(name, hex::encode(Sha256::digest(fs_err::read(&path)?)));
        } else {
            found.insert(name, format!("{:?}", metadata.file_type()));
        }
    }
    Ok(found)
}

/// Names in a folder, sorted.
pub(super) fn names(folder: &Utf8Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in folder.read_dir_utf8()? {
        names.push(entry?.file_name().to_owned());
    }
    names.sort();
    Ok(names)
}

/// A copy of a folder.
pub(super) fn copy(from: &Utf8Path, to: &Utf8Path) -> Result<()> {
    fs_err::create_dir_all(to)?;
    for entry in from.read_dir_utf8()? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(entry.path(), &target)?;
        } else {
            fs_err::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
