//! Development tasks; `cargo xtask help` lists them.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod book;
mod check;
mod cluster;
mod demo;
mod export_cost;
mod fetch;
mod full_size;
mod fuzz;
mod gpu;
mod hostile;
mod metered;
mod nightly;
mod npz;
mod oci;
mod oms;
mod onnx;
mod package;
mod parity;
mod python;
mod release;
mod report;
mod reproduce;
mod samplers;
mod setup;
mod statistics;
mod tidy;
mod tools;
mod triton;
mod trt_bench;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use clap::{Parser, Subcommand};
use dpar_engine_table::{self as engines, Runs};
use xtask_web::{aiperf, api, load, page};

/// Every optional engine, as features: one build, so that nothing is compiled twice with other features.
fn all_engines() -> String {
    let optional = engines::all().iter().filter(|e| !e.plain).map(|e| format!("dpar-export/{}", e.name));
    optional.collect::<Vec<_>>().join(",")
}

/// The engines that run graphs; `plain` = those of a plain build.
fn graph_engines(plain: bool) -> Vec<String> {
    let run = engines::all().iter().filter(|e| e.runs == Runs::Graphs && (e.plain || !plain));
    run.map(|e| e.name.to_owned()).collect()
}

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Development tasks of dpar-export")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetch the pinned third-party libraries and tools that the tests and checks need
    Setup {
        /// Leave out what only the features `tensorrt` and `candle` need: the TensorRT-RTX libraries, libclang, clang
        /// and protoc
        #[arg(long)]
        minimal: bool,
        /// Also PyTorch (7 GB), which `full-size` and benches/side_by_side need
        #[arg(long)]
        torch: bool,
        /// Also Triton Inference Server and its clients (CPython 3.11, x86-64), which `triton` needs
        #[arg(long)]
        triton: bool,
        /// Also Ray (0.3 GB), which `ray`, `rehearse` and `k8s` need
        #[arg(long)]
        ray: bool,
        /// Also schemathesis (CPython 3.11, x86-64), which `api-check` needs
        #[arg(long)]
        load_tools: bool,
        /// Also AIPerf (CPython 3.11, x86-64; 0.9 GB), which `aiperf` needs
        #[arg(long)]
        aiperf: bool,
    },
    /// As `cargo demo`: build the program and run `dpar-export demo`: export a trained DPAR, draw a labelled grid, verify
    Demo,
    /// Compare every reference stream (1,024 images of both systems) with what the engines decode
    Streams {
        /// Engines
        #[arg(long = "engine", default_values_t = graph_engines(true))]
        engines: Vec<String>,
        /// Only the first N images
        #[arg(long)]
        limit: Option<usize>,
    },
    /// Reproduce the reference run of both trained systems (1,024 images), with distances on EfficientNet-Lite0
    Reproduce {
        /// Engines
        #[arg(long = "engine", default_values_t = graph_engines(true))]
        engines: Vec<String>,
        /// Only the first N images
        #[arg(long)]
        num: Option<usize>,
        /// Of bundles with quantized weights: int8, int4, as an export takes it
        #[arg(long)]
        quantize: Option<String>,
    },
    /// Measure the README's parity table: every golden case on every engine
    Parity {
        /// Engines
        #[arg(long = "engine", default_values_t = graph_engines(false))]
        engines: Vec<String>,
        /// Take the program that `cargo xtask check` built, instead of a release build
        #[arg(long)]
        built: bool,
    },
    /// Run everything that a change must pass: fmt, clippy, tests, doctests, tidy, onnx-check, npz-check, python
    Check {
        /// These steps only, by their names; the later ones use what the tests built
        steps: Vec<String>,
        /// Only what a build without the features `tensorrt` and `candle` has (after `cargo xtask setup --minimal`)
        #[arg(long)]
        minimal: bool,
    },
    /// Run the checks that are too slow for every change, each a task of its own
    Nightly {
        /// These only
        #[arg(value_parser = nightly::names())]
        tasks: Vec<String>,
    },
    /// Try to break the promises of docs/threat-model.md: kills, full disks, races, bombs, hostile names, an empty network
    Hostile {
        /// These checks only
        checks: Vec<String>,
        /// A few repetitions of everything, as `cargo xtask check` runs it
        #[arg(long)]
        short: bool,
        /// Seed of the random times
        #[arg(long, default_value = "1")]
        seed: u64,
        /// Take the program that `cargo xtask check` built, instead of building it
        #[arg(long)]
        built: bool,
    },
    /// Fuzz the readers of untrusted files (needs cargo-fuzz and a nightly toolchain); the corpora begin with the fixtures
    Fuzz {
        /// These targets only
        targets: Vec<String>,
        /// Time for each target
        #[arg(long, value_name = "N", default_value = "600")]
        seconds: u32,
    },
    /// Run everything that needs an NVIDIA GPU, where one is, and write a log of it
    Gpu,
    /// Measure what building TensorRT engines takes: the trained systems, dpar-small, and a DPAR-B with random weights
    TrtBench {
        /// Precisions
        #[arg(long = "precision", default_values = ["fp32"])]
        precisions: Vec<String>,
        /// Leave DPAR-B out
        #[arg(long)]
        small: bool,
    },
    /// Make systems of the published table at full size with seeded weights, export, inspect and decode them on every CPU engine, hold
    /// them against PyTorch, build their TensorRT engines (needs `setup --torch`; hours for all fourteen)
    FullSize {
        /// Of the published table, e.g. DPAR-B [default: all]
        systems: Vec<String>,
        /// Take the program that `cargo xtask check` built, instead of a release build
        #[arg(long)]
        built: bool,
    },
    /// Measure what export and opening cost beside `cp` of the same files, in turns, on a system with seeded weights
    ExportCost {
        /// System of the published table
        #[arg(default_value = "DPAR-B")]
        system: String,
        /// Precision of the graphs
        #[arg(long, default_value = "fp32")]
        precision: String,
        /// Turns of each
        #[arg(long, default_value = "5")]
        rounds: usize,
        /// Where to write: several times the bundle's size [default: out/export-cost]
        #[arg(long)]
        folder: Option<Utf8PathBuf>,
    },
    /// Count the images that part between two engines, for each sampler, on a system of 16,384 codes with seeded
    /// weights
    Samplers {
        /// Two engines
        #[arg(long = "engine", default_values_t = graph_engines(true))]
        engines: Vec<String>,
        /// Images
        #[arg(long, value_name = "N", default_value = "64")]
        images: u16,
        /// Guidance scales
        #[arg(long = "cfg-scale", value_name = "S", default_values = ["1", "2"])]
        scales: Vec<String>,
        /// Layers of encoder, global transformer, decoder and entropy model
        #[arg(long, value_name = "N,..", value_delimiter = ',', num_args = 1, default_values = ["1", "8", "3", "12"])]
        layers: Vec<usize>,
        /// Take the program that `cargo xtask check` built, instead of building it
        #[arg(long)]
        built: bool,
    },
    /// Check the invariants in ARCHITECTURE.md that a machine can check
    Tidy,
    /// Let numpy read the .npz files that this tool writes, and this tool those that numpy writes
    NpzCheck,
    /// Sign bundles with this tool and PyPI's model-signing, and verify with the other (CPython 3.11; downloads it)
    OmsCheck {
        /// Take the program that `cargo xtask check` built, instead of building it
        #[arg(long)]
        built: bool,
    },
    /// Send a bundle through a registry with skopeo and get it back (Debian's skopeo and docker-registry)
    OciCheck {
        /// Take the program that `cargo xtask check` built, instead of building it
        #[arg(long)]
        built: bool,
    },
    /// Build and pack what is handed out into dist/: tarball, Debian package, licences, bill of materials, SHA256SUMS
    Release {
        /// Also a second time from nothing, and compare
        #[arg(long)]
        twice: bool,
    },
    /// Build the Python package's wheel into dist/, and use it in a fresh environment without Rust
    Wheel,
    /// Pack the crates as a registry would take them
    Package {
        /// Also build each as it would be downloaded, without this checkout (half an hour)
        #[arg(long)]
        verify: bool,
    },
    /// Hold licences, sources and versions of all dependencies against deny.toml (builds cargo-deny once)
    Deny,
    /// Make a book of docs/ in out/book (builds mdBook once)
    Book,
    /// Record references from a small PyTorch model with the Python package, and verify bundles against them
    RecordCheck,
    /// Run a Triton server on a repository of `--target triton`: HTTP, gRPC, streams, a killed client (needs `setup --triton`)
    Triton,
    /// Hold the files that `deploy` writes against the schemas of Kubernetes and against systemd (needs `setup --triton`)
    DeployCheck {
        /// Take the program that `cargo xtask check` built, instead of building it
        #[arg(long)]
        built: bool,
    },
    /// Submit what `evaluate --emit slurm` prints to a Slurm on loopback, and requeue a task: the bytes are one process's (needs
    /// Debian's slurmctld, slurmd, slurm-client and munge, and root)
    Slurm {
        /// Take the program that `cargo xtask check` built, instead of building it
        #[arg(long)]
        built: bool,
    },
    /// Hold what `evaluate --emit k8s` prints against the schemas of Kubernetes (needs `setup --ray`)
    K8s {
        /// Take the program that `cargo xtask check` built, instead of building it
        #[arg(long)]
        built: bool,
    },
    /// Evaluate on a Ray of this machine, with 1, 2 and 3 workers, killed workers and a killed driver: the bytes are one process's
    /// (needs `setup --ray`)
    Ray,
    /// Rehearse the protocol of 50,000 images on a Ray of this machine: emoji32, a network of FID-Inception's shape, all metrics; time,
    /// memory, disk, shards = whole (needs `setup --ray`)
    Rehearse {
        /// Samples, and references
        #[arg(long, value_name = "N", default_value = "50000")]
        images: u32,
        /// Workers of one thread
        #[arg(long, value_name = "N", default_value = "2")]
        workers: u16,
        /// Images of a part
        #[arg(long, value_name = "N", default_value = "256")]
        chunk: u16,
    },
    /// Count how often comparisons that are looked at while images come are wrong: fails above what is claimed (minutes)
    Sequential,
    /// Precision and Recall at the protocol's size, seeded features: time and memory, at most 2 GB (minutes)
    Manifolds {
        /// Samples, and references
        #[arg(long, value_name = "N", default_value = "50000")]
        images: u32,
    },
    /// Open the HTML reports in a headless Chromium: light, dark and phone-wide; screenshots stay in out/report
    ReportCheck,
    /// Open the page of `serve` in a headless Chromium and draw with it; screenshots stay in out/report
    PageCheck,
    /// Let schemathesis ask a service what its OpenAPI document allows and what it does not (needs `setup --load-tools`)
    ApiCheck(api::ApiArgs),
    /// Load a service on loopback: many clients, overload, throughput and latency beside the command line's (minutes, on a quiet machine)
    Load(load::LoadArgs),
    /// Let AIPerf ask a service at arrivals that wait for no answer: first picture, latency, goodput (needs `setup --aiperf`)
    Aiperf(aiperf::ArrivalArgs),
    /// Check ONNX files with the reference checker; without bundles, export the fixtures and check those
    OnnxCheck {
        /// Bundle folders
        bundles: Vec<Utf8PathBuf>,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let task = Args::parse().task;
    let root = root()?;
    dpar_export_fixtures::make(&root.join("fixtures"))?;
    match task {
        Task::Setup { minimal, torch, triton, ray, load_tools, aiperf } => {
            setup::run(&root, minimal)?;
            if torch {
                setup::with_torch(&root)?;
            }
            if triton {
                setup::with_triton(&root)?;
            }
            if load_tools {
                setup::with_load_tools(&root)?;
            }
            if aiperf {
                setup::with_aiperf(&root)?;
            }
            if ray { setup::with_ray(&root) } else { Ok(()) }
        }
        Task::Demo => demo::run(&root),
        Task::Parity { engines, built } => parity::run(&root, &engines, built),
        Task::Reproduce { engines, num, quantize } => {
            reproduce::run(&root, &engines, num, quantize.as_deref())
        }
        Task::Streams { engines, limit } => demo::streams(&root, &engines, limit),
        Task::Check { steps, minimal } => check::run(&root, &steps, minimal),
        Task::Nightly { tasks } => nightly::run(&root, &tasks),
        Task::Hostile { checks, short, seed, built } => {
            let options = hostile::Options { checks: &checks, short, seed, built };
            step("hostile", || hostile::run(&root, &options))
        }
        Task::Fuzz { targets, seconds } => fuzz::run(&root, &targets, seconds),
        Task::Gpu => gpu::run(&root),
        Task::TrtBench { precisions, small } => trt_bench::run(&root, &precisions, small),
        Task::FullSize { systems, built } => full_size::run(&root, &systems, built),
        Task::Samplers { engines, images, scales, layers, built } => {
            let [encoder, global, decoder, entropy] = layers[..] else {
                bail!("--layers takes four numbers: encoder, global transformer, decoder, entropy model")
            };
            let layers = samplers::Layers { dpar: [encoder, global, decoder], entropy };
            samplers::run(&root, &engines, images, &scales, layers, built)
        }
        Task::ExportCost { system, precision, rounds, folder } => {
            export_cost::run(&root, &system, &precision, rounds, folder.as_deref())
        }
        Task::Tidy => step("tidy", || tidy::run(&root)),
        Task::NpzCheck => step("npz-check", || npz::run(&root, false)),
        Task::OmsCheck { built } => step("oms-check", || oms::run(&root, built)),
        Task::OciCheck { built } => step("oci-check", || oci::run(&root, built)),
        Task::Release { twice } => step("release", || release::run(&root, twice)),
        Task::Wheel => step("wheel", || python::wheel(&root)),
        Task::Package { verify } => step("package", || package::run(&root, verify)),
        Task::Deny => step("deny", || package::deny(&root)),
        Task::Book => step("book", || book::run(&root)),
        Task::RecordCheck => {
            let features = all_engines();
            step("record-check", || python::record_check(&root, &["--workspace", "--features", &features]))
        }
        Task::Triton => {
            let features = all_engines();
            step("triton", || triton::run(&root, &["--workspace", "--features", &features]))
        }
        Task::DeployCheck { built } => step("deploy-check", || triton::deploy(&root, built)),
        Task::Slurm { built } => step("slurm", || cluster::slurm(&root, built)),
        Task::K8s { built } => step("k8s", || cluster::k8s(&root, built)),
        Task::Ray => {
            let features = all_engines();
            step("ray", || python::ray(&root, &["--workspace", "--features", &features]))
        }
        Task::Rehearse { images, workers, chunk } => {
            let features = all_engines();
            let scope = ["--workspace", "--features", &features];
            step("rehearse", || python::rehearse(&root, &scope, images, workers, chunk))
        }
        Task::Sequential => step("sequential", || statistics::sequential(&root)),
        Task::Manifolds { images } => step("manifolds", || statistics::manifolds(&root, images)),
        Task::ReportCheck => step("report-check", || report::run(&root, false)),
        Task::PageCheck => step("page-check", || page::run(&root, &onnx::program(&root, false)?)),
        Task::ApiCheck(asked) => step("api-check", || {
            api::run(&root, &onnx::program(&root, asked.built)?, &setup::load_tools(&root), &asked)
        }),
        Task::Load(plan) => {
            let program = plan.program.clone().map_or_else(|| demo::program(&root), Ok)?;
            step("load", || load::run(&root, &program, &plan))
        }
        Task::Aiperf(plan) => {
            let program = plan.program.clone().map_or_else(|| demo::program(&root), Ok)?;
            step("aiperf", || aiperf::run(&root, &program, &setup::aiperf(&root), &plan))
        }
        Task::OnnxCheck { bundles } => step("onnx-check", || onnx::run(&root, &bundles, false)),
    }
}

/// The workspace's folder. Cargo sets the variable when it runs this program.
fn root() -> Result<Utf8PathBuf> {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`")?;
    let parent = Utf8Path::new(&manifest).parent().map(Utf8Path::to_owned);
    match parent.filter(|p| p.join("Cargo.toml").is_file()) {
        Some(root) => Ok(root),
        None => bail!("no workspace above {manifest}"),
    }
}

/// Runs one step and says how it ended and how long it took.
fn step(name: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let start = Instant::now();
    let result = body();
    let end = if result.is_ok() { "ok" } else { "FAILED" };
    println!("== {name}: {end} in {:.1} s", start.elapsed().as_secs_f64());
    result.with_context(|| format!("step `{name}`"))
}

/// A step: its name, and what it does.
type NamedStep<'a> = (&'a str, Box<dyn FnOnce() -> Result<()> + 'a>);

/// Runs every step, also after one failed, and fails if any did.
fn each_step(steps: Vec<NamedStep<'_>>) -> Result<()> {
    let mut failed = Vec::new();
    for (name, body) in steps {
        if let Err(e) = step(name, body) {
            eprintln!("error: {e:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs a program to its end in the workspace's folder.
fn command(root: &Utf8Path, program: &str, args: &[&str]) -> Result<()> {
    let status = std::process::Command::new(program).args(args).current_dir(root).status();
    let status = status.with_context(|| format!("`{program}` cannot be started"))?;
    if !status.success() {
        bail!("`{program} {}` failed: {status}", args.join(" "));
    }
    Ok(())
}

/// The cargo that runs this program.
fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}
