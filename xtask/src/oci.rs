//! `cargo xtask oci-check`: a bundle goes through a registry and comes back, carried by other programs.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use camino::Utf8Path;

use crate::{command, onnx};

/// Debian packages of the programs.
const PACKAGES: [&str; 2] = ["skopeo", "docker-registry"];
/// How long the registry may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A registry on loopback; it ends with this.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Registry {
    fn start(folder: &Utf8Path) -> Result<(Self, String)> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = folder.join("registry.yml");
        let store = folder.join("store");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {store}}}}}\nhttp: {{addr: \"{address}\"}}\nlog: {{level: error}}\n"
        );
        fs_err::write(&config, text)?;
        let log = fs_err::File::create(folder.join("registry.log"))?;
        let mut serve = Command::new("docker-registry");
        serve
            .args(["serve", config.as_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.into_parts().0);
        let registry = Self(serve.spawn().context("docker-registry cannot be started")?);
        let started = Instant::now();
        while TcpStream::connect(&address).is_err() {
            if started.elapsed() > PATIENCE {
                bail!(
                    "the registry does not answer: {}",
                    fs_err::read_to_string(folder.join("registry.log"))?
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok((registry, address))
    }
}

/// Packed, pushed, pulled and unpacked: the same manifest digest, and the same files. `built` as in [`onnx::program`].
pub(crate) fn run(root: &Utf8Path, built: bool) -> Result<()> {
    for package in PACKAGES {
        if Command::new(package).arg("--version").stdout(Stdio::null()).status().is_err() {
            bail!("{package} is missing: on Debian, `apt-get install {}`", PACKAGES.join(" "));
        }
    }
    let scratch = tempfile::tempdir().context("a temporary folder")?;
    let scratch = Utf8Path::from_path(scratch.path()).context("the temporary folder is not UTF-8")?;
    let program = onnx::program(root, built)?;
    let ours = |args: &[&str]| command(scratch, program.as_str(), args);
    ours(&[root.join("fixtures/variants/combined/dpar").as_str(), "-o", "bundle"])?;
    ours(&["package", "bundle", "--oci", "--tag", "v1", "-o", "layout"])?;
    let (_registry, address) = Registry::start(scratch)?;
    let there = format!("docker://{address}/dpar:v1");
    let copy = ["--insecure-policy", "copy", "--quiet", "--preserve-digests"];
    command(scratch, "skopeo", &[&copy[..], &["--dest-tls-verify=false", "oci:layout:v1", &there]].concat())?;
    command(scratch, "skopeo", &[&copy[..], &["--src-tls-verify=false", &there, "oci:back:v1"]].concat())?;
    ours(&["unpack", "back", "-o", "again"])?;
    command(scratch, "diff", &["-r", "bundle", "again"])?;
    let digest = |layout: &str| -> Result<serde_json::Value> {
        let index: serde_json::Value =
            serde_json::from_slice(&fs_err::read(scratch.join(layout).join("index.json"))?)?;
        Ok(index["manifests"][0]["digest"].clone())
    };
    let (sent, came) = (digest("layout")?, digest("back")?);
    if sent != came || !sent.is_string() {
        bail!("the model was {sent} and came back as {came}");
    }
    ours(&["verify", "again", "--reference", root.join("fixtures/variants/combined").as_str(), "--no-probes"])
}
