//! `serve`: images over HTTP.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use camino::Utf8PathBuf;
use clap::Args;
use dpar_export_inputs::{limits, memory};
use serde_json::json;

use super::args::{EngineArgs, RefillArgs};
use super::failure::{Exit, Failure};
use super::generate::class_names;
use super::printer::Printer;
use crate::serve::SchedulerLimits;
use crate::serve::http::{
    AccessToken, HttpLimits, HttpServer, Opener, ServedCertificate, ServedModel, Service, ServiceError,
    Stopped,
};

#[derive(Debug, Args)]
#[command(mut_arg("batch", |a| a.help("Rows: images that are decoded together")))]
pub(crate) struct ServeArgs {
    /// Bundle folders; a model is called as its folder, and the first is meant where a request names none
    #[arg(required = true)]
    bundles: Vec<Utf8PathBuf>,
    /// Address and port; port 0 is any free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080", help_heading = "Service")]
    listen: SocketAddr,
    /// File with the token that requests must bring (`Authorization: Bearer`)
    #[arg(long, value_name = "FILE", help_heading = "Service")]
    token_file: Option<Utf8PathBuf>,
    /// Listen where other machines reach it without a token: another program protects it
    #[arg(long, conflicts_with = "token_file", help_heading = "Service")]
    allow_no_token: bool,
    /// Certificates as PEM, the server's own first: requests go through TLS 1.3
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Service")]
    tls_cert: Option<Utf8PathBuf>,
    /// Key of the certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Service")]
    tls_key: Option<Utf8PathBuf>,
    /// Names by which requests may ask for classes: a JSON list, or an object with the list under "classes"
    #[arg(long, value_name = "FILE")]
    class_names: Option<Utf8PathBuf>,
    /// Images of one request
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Limits")]
    max_request_images: u16,
    /// Images that wait for a row; more are answered 429
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    max_queue: u32,
    /// How long an image may wait for a row; then it is answered 503
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    queue_time: u32,
    /// How long an image may take in its row; then it is answered 503
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    decode_time: u32,
    /// Connections at a time; more are answered 503
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Limits")]
    max_connections: u16,
    /// Bytes of a request; more are answered 413
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = memory::parse, help_heading = "Limits")]
    max_body: u64,
    /// How long a request may take to arrive, a reader to read on, an idle connection to be used again
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    idle_time: u32,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    schedule: RefillArgs,
}

/// What is served, where, and to whom.
pub(super) struct Plan {
    models: Vec<(Utf8PathBuf, Opener)>,
    names: Option<Vec<String>>,
    token: Option<AccessToken>,
    certificate: Option<ServedCertificate>,
    listen: SocketAddr,
    allow_no_token: bool,
    rows: SchedulerLimits,
    limits: HttpLimits,
}

impl ServeArgs {
    /// Reads the token, the certificate and the names, chooses the engine.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        let seconds = |n: u32| Duration::from_secs(n.into());
        Service::check_address(self.listen, self.token_file.is_some() || self.allow_no_token)?;
        let token = match &self.token_file {
            None => None,
            Some(path) => {
                let text = dpar_export_inputs::read_to_string(path, limits::TEXT)?;
                Some(AccessToken::of(&text, path)?)
            }
        };
        let certificate = match self.tls_cert.as_deref().zip(self.tls_key.as_deref()) {
            None => None,
            Some((certificate, key)) => {
                Some(ServedCertificate::open(certificate, key).map_err(ServiceError::from)?)
            }
        };
        let model = |folder: Utf8PathBuf| {
            let open: Opener = Box::new(self.engine.opener(&folder)?);
            Ok::<_, Failure>((folder, open))
        };
        Ok(Plan {
            models: self.bundles.into_iter().map(model).collect::<Result<_, _>>()?,
            names: self.class_names.as_deref().map(class_names).transpose()?,
            token,
            certificate,
            listen: self.listen,
            allow_no_token: self.allow_no_token,
            rows: SchedulerLimits {
                schedule: self.schedule.schedule,
                rows: self.engine.settings.batch(),
                images: self.max_request_images.into(),
                queue: self.max_queue as usize,
                queue_time: seconds(self.queue_time),
                decode_time: seconds(self.decode_time),
            },
            limits: HttpLimits {
                body: usize::try_from(self.max_body).unwrap_or(usize::MAX),
                connections: self.max_connections.into(),
                idle: seconds(self.idle_time),
            },
        })
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let Plan { models, names, token, certificate, listen, allow_no_token, rows, limits } = plan;
    let opening = move |asked_to_end: &AtomicBool| {
        let open =
            |(folder, open): (Utf8PathBuf, Opener)| ServedModel::open(&folder, names.clone(), open, rows);
        let wanted = models.into_iter().take_while(|_| !asked_to_end.load(Ordering::Relaxed));
        wanted.map(open).collect::<Result<Vec<_>, _>>()
    };
    let (server, models) = match HttpServer::new()?.prepare(opening)? {
        Ok(prepared) => prepared,
        Err(stopped) => return Ok(exit(stopped)),
    };
    let models = models?;
    let names: Vec<String> = models.iter().map(|m| m.name().to_owned()).collect();
    let mut service = Service::new(models, token, limits, listen, allow_no_token)?;
    let scheme = if certificate.is_some() { "https" } else { "http" };
    if let Some(certificate) = certificate {
        service = service.with_certificate(certificate);
    }
    let listener =
        TcpListener::bind(listen).map_err(|source| ServiceError::Listen { address: listen, source })?;
    let address = listener.local_addr()?;
    let url = format!("{scheme}://{address}");
    // Who started it may wait for this: it answers from here on.
    printer.document(|| format!("serving at {url}"), json!({ "url": url, "models": names }))?;
    Ok(exit(server.run(listener, service)?))
}

fn exit(stopped: Stopped) -> Exit {
    match stopped {
        Stopped::Finished => Exit::Pass,
        Stopped::Cancelled => Exit::Interrupted,
    }
}
