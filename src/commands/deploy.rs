//! `deploy`: files that run `serve` on a cluster or a host.

use camino::Utf8PathBuf;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::args::{OutputArgs, ThreadsArgs, engine_names};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::bundle::Bundle;
use crate::deploy::{DeployHost, Deployment, memory};
use crate::engines::{self, DEFAULT_ENGINE};
use crate::staging::{FolderKind, StagingError};

/// What `deploy` writes, for any host.
const FOLDER: FolderKind = FolderKind {
    marks: &["deployment.yaml", "inferenceservice.yaml", "compose.yaml", "dpar-export.service"],
    writes: |name| DeployHost::ALL.iter().flat_map(|h| h.files()).any(|f| f.split('/').next() == Some(name)),
};

/// Who runs the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HostWord {
    /// Kubernetes: a Deployment, a Service, a HorizontalPodAutoscaler on the length of the queue
    K8s,
    /// KServe: an InferenceService with a custom container
    Kserve,
    /// Docker Compose, with Prometheus and a dashboard for Grafana
    Compose,
    /// systemd: a unit in a sandbox
    Systemd,
}

#[derive(Debug, Args)]
#[command(
    mut_arg("output", |a| a.help("Folder of the files")),
    mut_arg("threads", |a| a.help("Processors, and threads of one run [default: 2]"))
)]
pub(crate) struct DeployArgs {
    /// Who runs the service
    #[arg(value_enum, value_name = "HOST")]
    host: HostWord,
    /// Bundle folder
    bundle: Utf8PathBuf,
    /// Image of the container
    #[arg(long, value_name = "IMAGE", default_value = concat!("dpar-export:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// Most copies of the service, on a cluster
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u16).range(1..))]
    replicas: u16,
    /// Engine of the service
    #[arg(long, value_name = "ENGINE", value_parser = engine_names(), default_value = DEFAULT_ENGINE, help_heading = "Engine")]
    engine: String,
    #[command(flatten)]
    threads: ThreadsArgs,
    /// Rows: images that are decoded together
    #[arg(long, value_name = "B", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Engine")]
    batch: u16,
    #[command(flatten)]
    output: OutputArgs,
}

/// A bundle, and how it is served.
pub(super) struct Plan {
    host: DeployHost,
    bundle: Utf8PathBuf,
    deployment: Deployment,
    output: OutputArgs,
}

impl DeployArgs {
    /// Which files, and the folder as they name it.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        if engines::find(&self.engine).is_some_and(|e| !e.runs_on_processor()) {
            let message =
                format!("the files give the service no GPU, which the engine {} needs", self.engine);
            return Err(Failure::usage(message, Some("say an engine that runs on the processor")));
        }
        let host = match self.host {
            HostWord::K8s => DeployHost::Kubernetes,
            HostWord::Kserve => DeployHost::KServe,
            HostWord::Compose => DeployHost::Compose,
            HostWord::Systemd => DeployHost::Systemd,
        };
        let folder = match host {
            // Of a cluster the folder is a volume's.
            DeployHost::Kubernetes | DeployHost::KServe => String::new(),
            DeployHost::Compose | DeployHost::Systemd => {
                // A link stays one: who points it at another bundle and reloads gets that one.
                let folder = camino::absolute_utf8(&self.bundle);
                folder.map_err(|source| StagingError::Io { path: self.bundle.clone(), source })?.into_string()
            }
        };
        let deployment = Deployment {
            engine: self.engine,
            rows: self.batch.into(),
            threads: self.threads.given().unwrap_or(2),
            image: self.image,
            replicas: self.replicas.into(),
            folder,
        };
        Ok(Plan { host, bundle: self.bundle, deployment, output: self.output })
    }
}

pub(super) fn run(plan: Plan, printer: Printer<'_>) -> Result<Exit, Failure> {
    let Plan { host, bundle, deployment, output } = plan;
    let bundle = Bundle::open(&bundle)?;
    let files = deployment.files(host, &bundle)?;
    let need = memory(&bundle, deployment.rows);
    bundle.unchanged()?;
    let staged = output.folder(&FOLDER)?;
    for (name, text) in &files {
        let path = staged.path().join(name);
        let made = path.parent().map_or(Ok(()), fs_err::create_dir_all);
        let written = made.and_then(|()| fs_err::write(&path, text));
        written.map_err(|source| StagingError::Io { path, source })?;
    }
    staged.commit()?;
    let output = &output.output;
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let text = || {
        let (all, reload) = (need.all >> 20, need.reload >> 20);
        format!("{output}: {}; {all} MiB of memory, {reload} MiB during a reload", names.join(", "))
    };
    let value = json!({
        "output": output, "bundle": bundle.manifest_sha256(), "files": names,
        "memory": {
            "weights": need.weights, "row": need.row, "picture": need.picture, "bodies": need.bodies,
            "all": need.all, "reload": need.reload,
        },
    });
    printer.document(text, value)?;
    Ok(Exit::Pass)
}
