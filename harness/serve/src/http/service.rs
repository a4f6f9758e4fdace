//! What is served, and within which limits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_decode::generate::sampler::SamplerOptions;
use dpar_export_decode::generate::{DecodeOptions, Request};
use dpar_export_decode::loaded::{LoadedBundle, RunError};
use dpar_export_spec::Hinted;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::tls::{ServedCertificate, TlsError};
use crate::job::{ImageJob, JobError};
use crate::limits::SchedulerLimits;
use crate::scheduler::Scheduler;

/// Opens a bundle on its engine, with every hash checked; again at each change.
pub type Opener = Box<dyn Fn() -> Result<LoadedBundle<'static>, RunError> + Send + Sync>;

/// Bytes of a token at least.
const SHORTEST_TOKEN: usize = 16;

/// Why there is no service.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A bundle, or its engine.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The image that is drawn before anybody may ask has failed.
    #[error("the self-test of {model} failed: {source}")]
    SelfTest {
        /// The model.
        model: String,
        /// Why.
        source: JobError,
    },
    /// Two bundles of one name.
    #[error("two bundles are called {0}")]
    Twice(String),
    /// A name for which requests cannot ask.
    #[error("{0} is no folder whose name can be that of a model")]
    Name(Utf8PathBuf),
    /// Names of classes that are not those of a bundle.
    #[error("{names} class names for the {classes} classes of {model}")]
    ClassNames {
        /// The model.
        model: String,
        /// Names.
        names: usize,
        /// Its classes.
        classes: usize,
    },
    /// A token that is none.
    #[error("{path} holds no token of at least {SHORTEST_TOKEN} printable characters without blanks")]
    Token {
        /// Its file.
        path: Utf8PathBuf,
    },
    /// Whoever reaches the address could use the service.
    #[error("{0} can be reached from other machines, and no token protects it")]
    Open(std::net::SocketAddr),
    /// The address cannot be listened at.
    #[error("{address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate, or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system.
    #[error("the service cannot run: {0}")]
    Io(#[from] std::io::Error),
}

impl Hinted for ServiceError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Run(e) => return e.hint(),
            Self::Tls(e) => return e.hint(),
            Self::SelfTest { source: JobError::Run(e) | JobError::Changed(e), .. } => return e.hint(),
            Self::SelfTest { .. } | Self::Io(_) => return None,
            Self::Twice(_) => "a model is called as its folder: rename one, or link to it",
            Self::Name(_) => "name the folder itself",
            Self::ClassNames { .. } => "one name for each class, in their order",
            Self::Token { .. } => "write one, for example with `openssl rand -hex 32`",
            Self::Open(_) => "give --token-file, or --allow-no-token if another program protects it",
            Self::Listen { .. } => "choose another address with --listen",
        };
        Some(hint.to_owned())
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Run(e) => e.details(),
            _ => Vec::new(),
        }
    }
}

/// What a request must bring. Only its digest is kept, and two digests are compared in constant time.
pub struct AccessToken([u8; 32]);

impl AccessToken {
    /// The token in a file; blanks around it are not part of it.
    ///
    /// # Errors
    /// When it is too short, or could not stand in a header.
    pub fn of(text: &str, path: &Utf8Path) -> Result<Self, ServiceError> {
        let token = text.trim();
        if token.len() < SHORTEST_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ServiceError::Token { path: path.to_owned() });
        }
        Ok(Self(Sha256::digest(token).into()))
    }

    /// Whether it is this one.
    pub(crate) fn is(&self, token: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(token).into();
        self.0.ct_eq(&digest).into()
    }
}

/// What requests may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Bytes of a body.
    pub body: usize,
    /// Connections at a time.
    pub connections: usize,
    /// How long a request may take to arrive, a reader to read on, a connection to be used again.
    pub idle: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self { body: 1 << 20, connections: 512, idle: Duration::from_secs(20) }
    }
}

/// A bundle that can be asked for by its name, and changed.
pub struct ServedModel {
    name: String,
    class_names: Option<Vec<String>>,
    open: Opener,
    limits: SchedulerLimits,
    current: RwLock<Arc<Scheduler>>,
    changing: Mutex<()>,
    pub(crate) changes: AtomicU64,
}

impl ServedModel {
    /// Opens it, and draws an image.
    ///
    /// # Errors
    /// When it cannot be opened, or the image cannot be drawn.
    pub fn open(
        folder: &Utf8Path,
        class_names: Option<Vec<String>>,
        open: Opener,
        limits: SchedulerLimits,
    ) -> Result<Self, ServiceError> {
        let name = folder.file_name().ok_or_else(|| ServiceError::Name(folder.to_owned()))?.to_owned();
        let first = Self::start(&name, class_names.as_deref(), &open, limits)?;
        let current = RwLock::new(Arc::new(first));
        Ok(Self {
            name,
            class_names,
            open,
            limits,
            current,
            changing: Mutex::new(()),
            changes: AtomicU64::new(0),
        })
    }

    fn start(
        model: &str,
        names: Option<&[String]>,
        open: &Opener,
        limits: SchedulerLimits,
    ) -> Result<Scheduler, ServiceError> {
        let loaded = open()?;
        let classes = loaded.bundle().system().num_classes;
        if let Some(names) = names.map(<[String]>::len).filter(|names| *names != classes) {
            return Err(ServiceError::ClassNames { model: model.to_owned(), names, classes });
        }
        let scheduler = Scheduler::start(loaded, limits)?;
        let options =
            DecodeOptions { cfg_scale: 1.0, cfg_interval: None, sampler: SamplerOptions::default(), seed: 0 };
        let job = ImageJob::new(vec![Request { index: 0, class: 0 }], options);
        let drawn = scheduler.submit(job).and_then(crate::job::RunningJob::all_blocking);
        drawn.map_err(|source| ServiceError::SelfTest { model: model.to_owned(), source })?;
        Ok(scheduler)
    }

    /// Opens the bundle as it is on the disk now. When it is well, new requests get it, and the old one ends with its last
    /// image; otherwise nothing changes. `None`: another change is under way.
    pub(crate) fn change(&self) -> Option<Result<(), ServiceError>> {
        let _alone = self.changing.try_lock().ok()?;
        let changed = Self::start(&self.name, self.class_names.as_deref(), &self.open, self.limits);
        Some(changed.map(|next| {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
            self.changes.fetch_add(1, Ordering::Relaxed);
        }))
    }

    /// Returns when nothing of it is under way: no image, and no change either, whose libraries do not bear that the process ends.
    pub(super) fn finish(&self) {
        let _settled = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.current().finish();
    }

    /// What it is, as a document.
    pub(crate) fn about(&self) -> Value {
        let scheduler = self.current();
        let runtime = scheduler.runtime();
        let bundle = runtime.bundle();
        let system = bundle.system();
        json!({
            "model": self.name,
            "bundle": bundle.manifest_sha256(),
            "system": system.name,
            "engine": runtime.info(),
            "precision": bundle.manifest().precisions().to_string(),
            "arithmetic": runtime.arithmetic().text,
            "image_size": system.image_size,
            "grid": system.grid(),
            "image_tokens": system.tokens(),
            "classes": system.num_classes,
            "class_names": self.class_names,
            "guidance": system.null_class().is_some(),
            "patch_rule": system.patch_rule,
            "rows": scheduler.limits().rows,
            "max_images": scheduler.limits().images,
        })
    }

    /// What requests ask for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What new requests get.
    pub(crate) fn current(&self) -> Arc<Scheduler> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Names of its classes.
    pub(crate) fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    /// The name of a class.
    pub(crate) fn class_name(&self, class: i64) -> Option<&str> {
        let class = usize::try_from(class).ok()?;
        self.class_names.as_ref()?.get(class).map(String::as_str)
    }
}

/// All that is served.
pub struct Service {
    models: Vec<ServedModel>,
    token: Option<AccessToken>,
    certificate: Option<ServedCertificate>,
    pub(crate) limits: HttpLimits,
    /// Whether only this machine reaches it.
    pub(crate) local: bool,
    pub(crate) stopping: AtomicBool,
    pub(crate) connections: AtomicU64,
    pub(crate) refused_connections: AtomicU64,
    /// Requests by route and status.
    pub(crate) answered: Mutex<BTreeMap<(String, u16), u64>>,
}

impl Service {
    /// Of these models, the first of which is meant where a request names none.
    ///
    /// # Errors
    /// When two have the same name; when other machines reach the address and there is neither a token nor the word that
    /// none is wanted.
    pub fn new(
        models: Vec<ServedModel>,
        token: Option<AccessToken>,
        limits: HttpLimits,
        address: std::net::SocketAddr,
        allow_no_token: bool,
    ) -> Result<Self, ServiceError> {
        Self::check_address(address, token.is_some() || allow_no_token)?;
        let twice = |(at, model): (usize, &ServedModel)| models[..at].iter().any(|m| m.name == model.name);
        if let Some((_, model)) = models.iter().enumerate().find(|m| twice(*m)) {
            return Err(ServiceError::Twice(model.name.clone()));
        }
        Ok(Self {
            models,
            token,
            certificate: None,
            limits,
            // What another program protects may have any name.
            local: address.ip().is_loopback() && !allow_no_token,
            stopping: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            refused_connections: AtomicU64::new(0),
            answered: Mutex::default(),
        })
    }

    /// With TLS on every connection.
    #[must_use]
    pub fn with_certificate(self, certificate: ServedCertificate) -> Self {
        Self { certificate: Some(certificate), ..self }
    }

    /// Refuses an address that other machines reach, where nothing protects it: to be asked before bundles are opened too.
    ///
    /// # Errors
    /// [`ServiceError::Open`].
    pub fn check_address(address: std::net::SocketAddr, protected: bool) -> Result<(), ServiceError> {
        match address.ip().is_loopback() || protected {
            true => Ok(()),
            false => Err(ServiceError::Open(address)),
        }
    }

    /// The token that requests must bring.
    pub(crate) fn token(&self) -> Option<&AccessToken> {
        self.token.as_ref()
    }

    /// What clients see of TLS, where there is TLS.
    pub(crate) fn certificate(&self) -> Option<&ServedCertificate> {
        self.certificate.as_ref()
    }

    /// Every model.
    pub(crate) fn models(&self) -> &[ServedModel] {
        &self.models
    }

    /// The model of a name, or the first.
    pub(crate) fn model(&self, name: Option<&str>) -> Option<&ServedModel> {
        match name {
            Some(name) => self.models.iter().find(|m| m.name == name),
            None => self.models.first(),
        }
    }

    /// Why requests should go elsewhere.
    pub(crate) fn unwell(&self) -> Option<String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("the service stops".to_owned());
        }
        let unwell = |m: &ServedModel| m.current().unwell().map(|why| format!("{}: {why}", m.name));
        self.models.iter().find_map(unwell)
    }
}
