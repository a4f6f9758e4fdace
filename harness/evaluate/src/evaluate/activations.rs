//! Activations and stored statistics in `.npz` files.
//!
//! `pool_3` [N, D], optional `spatial` [N, S], `logits` [N, C]; or `mu` [D], `sigma` [D, D] and `mu_s`, `sigma_s`,
//! as the reference files of guided-diffusion hold them. `extractor` u8 [L] names the feature network in UTF-8;
//! without it the arrays are FID-Inception's. `extractor_sha256` and `extractor_resize`, where they are there, say which
//! copy of it and how images were prepared.

use camino::Utf8Path;
use dpar_export_files::arrays::{Array, ArrayFile};
use dpar_export_inputs::memory;
use dpar_export_metrics::{Compute, Moments, MomentsAccumulator, Rows, working_memory};

use super::report::Network;
use super::{EvaluateError, InputKind};

/// Longest name of a feature network.
const LONGEST_NAME: usize = 200;
/// Names of the arrays that say what made the features.
pub(crate) const DIGEST: &str = "extractor_sha256";
/// See [`DIGEST`].
pub(crate) const RESIZE: &str = "extractor_resize";

/// A matrix with one row an image, in memory.
#[derive(Debug, Clone)]
pub struct ActivationTable {
    data: Vec<f32>,
    width: usize,
}

impl ActivationTable {
    /// Its rows; `what` names them in errors.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn rows(&self, what: &'static str) -> Result<Rows<'_>, EvaluateError> {
        Rows::new(what, &self.data, self.width).map_err(EvaluateError::metric(what))
    }

    /// Number of images.
    pub fn count(&self) -> usize {
        self.data.len() / self.width
    }

    /// Values an image.
    pub fn width(&self) -> usize {
        self.width
    }
}

/// Features of two preparations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlike {
    /// [`DIGEST`] or [`RESIZE`].
    pub array: &'static str,
    /// What the file says.
    pub own: String,
    /// What it is held against.
    pub wanted: String,
}

impl std::fmt::Display for Unlike {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { array, own, wanted } = self;
        write!(f, "features of other preparations: `{array}` is {own} and {wanted}")
    }
}

/// What a file says about a set of images. Activations take 4 bytes a value.
#[derive(Debug, Clone)]
pub struct StoredActivations {
    /// The feature network.
    pub network: Network,
    /// Pooled features, [N, D].
    pub pool: Option<ActivationTable>,
    /// Spatial features, [N, S].
    pub spatial: Option<ActivationTable>,
    /// Logits, [N, C].
    pub logits: Option<ActivationTable>,
    /// Stored mean and covariance of the pooled features.
    pub pool_moments: Option<Moments>,
    /// Stored mean and covariance of the spatial features.
    pub spatial_moments: Option<Moments>,
    /// SHA-256 of the extractor and its resize rule, where they are recorded.
    pub preparation: [Option<String>; 2],
    /// Whether there are images (`arr_0`), which only a feature network can use.
    pub images: bool,
}

impl StoredActivations {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is no readable array file, holds neither `pool_3` nor `mu` and `sigma`, or its arrays do not fit
    /// together.
    pub fn read(path: &Utf8Path) -> Result<Self, EvaluateError> {
        let file = ArrayFile::open(path)?;
        let pool = table(&file, "pool_3")?;
        let spatial = table(&file, "spatial")?;
        let logits = table(&file, "logits")?;
        let pool_moments = moments(&file, "mu", "sigma")?;
        let spatial_moments = moments(&file, "mu_s", "sigma_s")?;
        for (name, table) in [("pool_3", &pool), ("spatial", &spatial)] {
            table.iter().try_for_each(|t| statistics_fit(&file, name, t.width()))?;
        }
        let images = file.contains("arr_0");
        if pool.is_none() && pool_moments.is_none() {
            let message =
                format!("{path} holds neither `pool_3` nor `mu` and `sigma` (it has {})", file.listing());
            let hint = match images {
                true => "images need a feature network: `dpar-export evaluate --extractor`",
                false => "save activations as `pool_3` [N, 2048] float32",
            };
            return Err(EvaluateError::input(InputKind::Activations, message, Some(hint)));
        }
        let counts = [("pool_3", &pool), ("spatial", &spatial), ("logits", &logits)];
        let mut known: Option<(&str, usize)> = None;
        for (name, table) in counts {
            let Some(count) = table.as_ref().map(ActivationTable::count) else { continue };
            match known {
                Some((other, n)) if n != count => {
                    let message = format!("{path}: `{other}` holds {n} images, `{name}` {count}");
                    return Err(EvaluateError::input(InputKind::Activations, message, None));
                }
                _ => known = Some((name, count)),
            }
        }
        if let (Some(pool), Some(moments)) = (&pool, &pool_moments)
            && pool.width() != moments.width()
        {
            let (a, b) = (pool.width(), moments.width());
            let message = format!("{path}: `pool_3` has {a} features, `mu` {b}");
            return Err(EvaluateError::input(InputKind::Activations, message, None));
        }
        let network = network(&file)?;
        let preparation = [words(&file, DIGEST)?, words(&file, RESIZE)?];
        Ok(Self { network, pool, spatial, logits, pool_moments, spatial_moments, preparation, images })
    }

    /// Whether the features were made by another extractor, or with another resize, than those of the other file, as far as
    /// both say: what differs.
    pub fn other_preparation(&self, other: &Self) -> Option<Unlike> {
        self.prepared_by(other.preparation.each_ref().map(Option::as_deref))
    }

    /// As [`other_preparation`](Self::other_preparation), with SHA-256 and resize of an extractor.
    pub(crate) fn prepared_by(&self, wanted: [Option<&str>; 2]) -> Option<Unlike> {
        let pairs = self.preparation.iter().zip(wanted).zip([DIGEST, RESIZE]);
        pairs.filter_map(|((own, wanted), array)| Some((own.as_deref()?, wanted?, array))).find_map(
            |(own, wanted, array)| {
                (own != wanted).then(|| Unlike { array, own: own.to_owned(), wanted: wanted.to_owned() })
            },
        )
    }

    /// Number of images of which there are activations.
    pub fn count(&self) -> Option<usize> {
        self.pool.as_ref().map(ActivationTable::count)
    }
}

/// Mean and covariance of a table.
///
/// # Errors
/// When a value is not finite or there are fewer than two images.
pub fn moments_of(
    table: &ActivationTable,
    what: &'static str,
    compute: &Compute,
) -> Result<Moments, EvaluateError> {
    let rows = table.rows(what)?;
    let run = || {
        let mut all = MomentsAccumulator::new(table.width())?;
        all.push(rows, compute)?;
        all.finish(compute)
    };
    run().map_err(EvaluateError::metric(what))
}

/// Whether there is memory for the statistics of an array's rows, which grow with the square of their width.
fn statistics_fit(file: &ArrayFile, name: &str, width: usize) -> Result<(), EvaluateError> {
    let what = format!("the covariance of {width} features, and what is computed with it,");
    memory::check(&what, working_memory(width)).map_err(|e| too_much(file, name, &e))
}

fn too_much(file: &ArrayFile, name: &str, e: &memory::MemoryError) -> EvaluateError {
    EvaluateError::input(
        InputKind::Activations,
        format!("{}: array `{name}`: {e}", file.path()),
        Some(memory::HINT),
    )
}

/// An array of one row an image, trailing dimensions flattened. float64 is taken where every value is one of
/// float32: features are float32 everywhere, and some tools save them widened.
fn table(file: &ArrayFile, name: &str) -> Result<Option<ActivationTable>, EvaluateError> {
    if !file.contains(name) {
        return Ok(None);
    }
    let array = file.get(name)?;
    let shape = array.shape().to_vec();
    let width: usize = shape.iter().skip(1).product();
    if shape.len() < 2 || width == 0 {
        let message =
            format!("{}: array `{name}`: shape {shape:?} where one row an image is wanted", file.path());
        return Err(EvaluateError::input(InputKind::Activations, message, None));
    }
    let data: Vec<f32> = match array {
        Array::F32(a) => a.into_raw_vec_and_offset().0,
        Array::F64(a) => {
            let mut narrow: Vec<f32> = memory::reserved(a.len()).map_err(|e| too_much(file, name, &e))?;
            narrow.extend(a.iter().map(|v| *v as f32));
            if a.iter().zip(&narrow).any(|(wide, v)| f64::from(*v) != *wide) {
                let message =
                    format!("{}: array `{name}`: float64 values that are none of float32", file.path());
                return Err(EvaluateError::input(
                    InputKind::Activations,
                    message,
                    Some("save the activations as float32"),
                ));
            }
            narrow
        }
        other => other.to_f32(name)?.into_raw_vec_and_offset().0,
    };
    if let Some(bad) = data.iter().position(|v| !v.is_finite()) {
        let message = format!("{}: array `{name}`: image {} holds {}", file.path(), bad / width, data[bad]);
        return Err(EvaluateError::input(InputKind::Activations, message, None));
    }
    Ok(Some(ActivationTable { data, width }))
}

fn moments(file: &ArrayFile, mean: &str, covariance: &str) -> Result<Option<Moments>, EvaluateError> {
    match (file.contains(mean), file.contains(covariance)) {
        (false, false) => return Ok(None),
        (true, true) => {}
        (has_mean, _) => {
            let (there, not) = if has_mean { (mean, covariance) } else { (covariance, mean) };
            let message = format!("{} holds `{there}` without `{not}`", file.path());
            return Err(EvaluateError::input(InputKind::Activations, message, None));
        }
    }
    let mu = file.f64(mean, &[None])?;
    let d = mu.len();
    statistics_fit(file, mean, d)?;
    let sigma = file.f64(covariance, &[Some(d), Some(d)])?;
    let (mu, sigma) = (mu.into_raw_vec_and_offset().0, sigma.into_raw_vec_and_offset().0);
    let what = format!("{}: `{mean}` and `{covariance}`", file.path());
    Moments::from_parts(mu, sigma, None).map(Some).map_err(EvaluateError::metric(what))
}

fn network(file: &ArrayFile) -> Result<Network, EvaluateError> {
    Ok(words(file, "extractor")?.map_or_else(Network::inception, |name| Network::named(&name)))
}

/// A short text, u8 in UTF-8.
fn words(file: &ArrayFile, array: &str) -> Result<Option<String>, EvaluateError> {
    if !file.contains(array) {
        return Ok(None);
    }
    let short = file.info(array)?.shape.iter().all(|n| *n <= LONGEST_NAME);
    let bytes = if short { file.u8(array, &[None])?.into_raw_vec_and_offset().0 } else { Vec::new() };
    match String::from_utf8(bytes) {
        Ok(name)
            if !name.trim().is_empty() && name.len() <= LONGEST_NAME && !name.contains(char::is_control) =>
        {
            Ok(Some(name.trim().to_owned()))
        }
        _ => {
            let message =
                format!("{}: `{array}` is no name in UTF-8 of 1 to {LONGEST_NAME} bytes", file.path());
            Err(EvaluateError::input(InputKind::Activations, message, None))
        }
    }
}
