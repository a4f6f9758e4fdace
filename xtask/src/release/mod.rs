//! `cargo xtask release`: everything that is handed out, in `dist/`, with its SHA-256: a tarball and a Debian package of the program
//! with completions, manual pages and the licences of all that it is built from; the bill of materials; the Python package's wheel.
//!
//! Program and wheel have every engine, and are made of one build: both packages are asked for together, so that what they share has
//! the same features and is compiled once. Two runs of one commit with one toolchain give the same bytes: paths of this machine are
//! mapped away, times are the commit's.

mod licences;
mod sbom;

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};

use crate::{all_engines, cargo, command};
use licences::BuiltPackage;

/// Where it goes.
const DIST: &str = "dist";
/// How it is built: Cargo.toml says more.
const PROFILE: &str = "dist";
/// Where it is built, below the workspace.
const TARGET: &str = "target/dist";
/// Shells that completions are made for, and where each looks for them below the prefix.
const SHELLS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/dpar-export"),
    ("zsh", "share/zsh/site-functions/_dpar-export"),
    ("fish", "share/fish/vendor_completions.d/dpar-export.fish"),
];
/// Documents that go along.
const DOCUMENTS: [&str; 4] = ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"];
const SUMS: &str = "SHA256SUMS";

/// Builds and packs. `twice`: also a second time from nothing, and compares.
pub(crate) fn run(root: &Utf8Path, twice: bool) -> Result<()> {
    let made = pack(root, &root.join(TARGET), &root.join(DIST))?;
    if twice {
        let (target, again) = (root.join("target/dist-again"), root.join("target/dist-again/packed"));
        if target.exists() {
            fs_err::remove_dir_all(&target)?;
        }
        if pack(root, &target, &again)? != made {
            bail!("{DIST}/ and {again} differ: one commit gave two releases");
        }
        println!("the same bytes twice");
    }
    Ok(())
}

/// Builds into `target`, packs into `dist`; returns the sums.
fn pack(root: &Utf8Path, target: &Utf8Path, dist: &Utf8Path) -> Result<String> {
    fs_err::create_dir_all(dist)?;
    let (variables, epoch) = environment(root, target)?;
    let features = all_engines();
    let of_both = format!("{features},{}", features.replace("dpar-export/", "dpar-export-python/"));
    let both = ["--package", "dpar-export", "--package", "dpar-export-python", "--features", &of_both];
    let args = ["build", "--profile", PROFILE, "--locked", "--bin", "dpar-export"];
    built(&cargo(), &[&args[..], &both].concat(), root, &variables)?;
    let program = target.join(PROFILE).join("dpar-export");
    let packages = licences::packages(root, &features)?;
    licences::check(&packages)?;
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("dpar-export-{version}-{}-linux", std::env::consts::ARCH);
    let scratch = tempfile::tempdir().context("a temporary folder")?;
    let scratch = Utf8Path::from_path(scratch.path()).context("the temporary folder is not UTF-8")?;
    let prefix = scratch.join(&name);
    install(root, &program, &prefix, &packages)?;
    let bom = dist.join(format!("{name}.cdx.json"));
    fs_err::write(&bom, sbom::write(version, &program, &packages)?)?;
    let tarball = dist.join(format!("{name}.tar.gz"));
    tar(scratch, &name, &tarball, &epoch)?;
    let deb = debian(scratch, &prefix, dist, &epoch)?;
    let made = [bom, deb, tarball, build_wheel(root, dist, &variables)?];

    let mut sums = String::new();
    for path in &made {
        let bytes = fs_err::read(path)?;
        let (file, sha256) = (path.file_name().unwrap_or_default(), hex::encode(Sha256::digest(&bytes)));
        println!("{file}: {:.1} MB", bytes.len() as f64 / 1e6);
        sums += &format!("{sha256}  {file}\n");
    }
    println!("the program: {:.1} MB", program.metadata()?.len() as f64 / 1e6);
    fs_err::write(dist.join(SUMS), &sums)?;
    Ok(sums)
}

/// Variables of a build that leaves no path of this machine in what it makes, and the time of the commit.
fn environment(root: &Utf8Path, target: &Utf8Path) -> Result<(Vec<(&'static str, String)>, String)> {
    let epoch = said(root, "git", &["log", "-1", "--format=%ct"])?.trim().to_owned();
    let rust = said(root, "rustc", &["--print", "sysroot"])?;
    let registry = std::env::var("CARGO_HOME").ok().or_else(|| Some(std::env::var("HOME").ok()? + "/.cargo"));
    let registry = registry.context("neither CARGO_HOME nor HOME is set")?;
    // Of several that fit the last one counts: the target folder may lie in the workspace.
    let maps = [
        (root.as_str(), "/src"),
        (&registry, "/cargo"),
        (rust.trim(), "/rust"),
        (target.as_str(), "/target"),
    ];
    let flags = maps.map(|(from, to)| format!("--remap-path-prefix={from}={to}"));
    let of_c = maps.map(|(from, to)| format!("-ffile-prefix-map={from}={to}")).join(" ");
    let variables = vec![
        ("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")),
        ("CARGO_TARGET_DIR", target.to_string()),
        ("CFLAGS", of_c.clone()),
        ("CXXFLAGS", of_c),
        ("SOURCE_DATE_EPOCH", epoch.clone()),
    ];
    Ok((variables, epoch))
}

fn built(program: &str, args: &[&str], root: &Utf8Path, variables: &[(&str, String)]) -> Result<()> {
    let variables = variables.iter().map(|(name, value)| (*name, value));
    let status = Command::new(program).args(args).current_dir(root).envs(variables).status();
    if !status.with_context(|| format!("`{program}` cannot be started"))?.success() {
        bail!("`{program} {}` failed", args.join(" "));
    }
    Ok(())
}

/// What lies below the prefix once it is installed.
fn install(root: &Utf8Path, program: &Utf8Path, prefix: &Utf8Path, packages: &[BuiltPackage]) -> Result<()> {
    let put = |path: &str, bytes: &[u8]| -> Result<()> {
        let path = prefix.join(path);
        fs_err::create_dir_all(path.parent().context("a file below the prefix")?)?;
        Ok(fs_err::write(path, bytes)?)
    };
    put("bin/dpar-export", &fs_err::read(program)?)?;
    fs_err::set_permissions(
        prefix.join("bin/dpar-export"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    for (shell, path) in SHELLS {
        put(path, said(root, program.as_str(), &["completions", shell])?.as_bytes())?;
    }
    put("share/man/man1/dpar-export.1", said(root, program.as_str(), &["manual"])?.as_bytes())?;
    for name in dpar_subcommands(root, program)? {
        let page = said(root, program.as_str(), &["manual", &name])?;
        put(&format!("share/man/man1/dpar-export-{name}.1"), page.as_bytes())?;
    }
    for name in DOCUMENTS {
        put(&format!("share/doc/dpar-export/{name}"), &fs_err::read(root.join(name))?)?;
    }
    put("share/doc/dpar-export/THIRD-PARTY.txt", licences::texts(root, packages)?.as_bytes())
}

/// Names of the subcommands, from the help.
fn dpar_subcommands(root: &Utf8Path, program: &Utf8Path) -> Result<Vec<String>> {
    let help = said(root, program.as_str(), &["--help"])?;
    let commands = help.lines().skip_while(|l| !l.starts_with("Commands:")).skip(1);
    let named = commands.take_while(|l| l.starts_with("  ")).filter(|l| !l.starts_with("   "));
    let names = named.filter_map(|l| l.split_whitespace().next()).filter(|name| *name != "help");
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.len() < 10 {
        bail!("the help lists {} commands: its layout has changed", names.len());
    }
    Ok(names)
}

/// `folder/name` as a tarball that does not depend on who packs it, or when.
fn tar(folder: &Utf8Path, name: &str, out: &Utf8Path, epoch: &str) -> Result<()> {
    let time = format!("--mtime=@{epoch}");
    let alike = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=go=rX,u+rw,a-s", &time];
    let what = ["--use-compress-program=gzip -9n", "-C", folder.as_str(), "-cf", out.as_str(), name];
    command(folder, "tar", &[&alike[..], &what].concat())
}

/// The Python package's wheel in `dist/`, of the build that [`run`] makes or goes on with.
pub(crate) fn wheel(root: &Utf8Path) -> Result<Utf8PathBuf> {
    let dist = root.join(DIST);
    fs_err::create_dir_all(&dist)?;
    let (variables, _) = environment(root, &root.join(TARGET))?;
    build_wheel(root, &dist, &variables)
}

fn build_wheel(root: &Utf8Path, dist: &Utf8Path, variables: &[(&str, String)]) -> Result<Utf8PathBuf> {
    let maturin = crate::setup::python(root).with_file_name("maturin");
    if !maturin.is_file() {
        bail!("{maturin} is missing: run `cargo xtask setup`");
    }
    let out = tempfile::tempdir_in(dist)?;
    let out = Utf8Path::from_path(out.path()).context("the folder is not UTF-8")?;
    let manifest = root.join("python/Cargo.toml");
    // Which features, pyproject.toml says.
    let args = ["build", "--profile", PROFILE, "--locked", "--out", out.as_str()];
    let args = [&args[..], &["--manifest-path", manifest.as_str()]].concat();
    built(maturin.as_str(), &args, root, variables)?;
    let wheel = out.read_dir_utf8()?.next().context("maturin left no wheel")??.into_path();
    let place = dist.join(wheel.file_name().unwrap_or_default());
    fs_err::rename(&wheel, &place)?;
    Ok(place)
}

/// A Debian package of what lies below the prefix.
fn debian(scratch: &Utf8Path, prefix: &Utf8Path, dist: &Utf8Path, epoch: &str) -> Result<Utf8PathBuf> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no Debian name for {other}"),
    };
    let version = env!("CARGO_PKG_VERSION");
    let tree = scratch.join("deb");
    fs_err::create_dir_all(tree.join("DEBIAN"))?;
    command(scratch, "cp", &["-a", prefix.as_str(), tree.join("usr").as_str()])?;
    fs_err::rename(
        tree.join("usr/share/doc/dpar-export/LICENSE-MIT"),
        tree.join("usr/share/doc/dpar-export/copyright"),
    )?;
    let control = format!(
        "Package: dpar-export\nVersion: {version}\nArchitecture: {arch}\nMaintainer: the dpar-export authors <dpar-export@localhost>\n\
         Depends: libc6, libgcc-s1, libstdc++6\nSection: science\nPriority: optional\n\
         Description: exports DPAR and LlamaGen checkpoints to ONNX, runs and verifies them\n"
    );
    fs_err::write(tree.join("DEBIAN/control"), control)?;
    command(scratch, "chmod", &["-R", "u=rwX,go=rX", tree.as_str()])?;
    let out = dist.join(format!("dpar-export_{version}_{arch}.deb"));
    let args = ["--root-owner-group", "-Zxz", "--build", tree.as_str(), out.as_str()];
    let status = Command::new("dpkg-deb").args(args).env("SOURCE_DATE_EPOCH", epoch).status();
    if !status.context("`dpkg-deb` cannot be started")?.success() {
        bail!("dpkg-deb failed");
    }
    Ok(out)
}

/// What a program prints.
fn said(root: &Utf8Path, program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program).args(args).current_dir(root).stderr(Stdio::inherit()).output();
    let out = out.with_context(|| format!("`{program}` cannot be started"))?;
    if !out.status.success() {
        bail!("`{program} {}` failed: {}", args.join(" "), out.status);
    }
    String::from_utf8(out.stdout).with_context(|| format!("`{program}` does not print UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wheel_has_the_features_of_the_program() {
        let project = include_str!("../../../python/pyproject.toml");
        let features: Vec<String> = all_engines().split(',').map(|f| f.replace("dpar-export/", "")).collect();
        let line = project.lines().find_map(|l| l.strip_prefix("features = ")).unwrap();
        let mut said: Vec<String> = serde_json::from_str(line).unwrap();
        said.sort();
        let mut wanted = features;
        wanted.sort();
        assert_eq!(said, wanted);
    }
}
