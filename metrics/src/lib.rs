//! FID, sFID, Inception Score, Precision, Recall and KID equal to guided-diffusion's evaluator, with the
//! statistics to compare them, and the image resize that comes before the feature network. Pure computation:
//! no I/O, no printing.
//!
//! - Activations are f32, row-major [N, width] ([`Rows`]); all sums are f64.
//! - Every parallel function takes a [`Compute`] with a pinned number of threads, and gives the same bits for
//!   any number of them on one machine.
//! - Where tools differ, the difference is a named [`Variant`] or mode, never a silent default.
//! - Accumulators stream, state their memory, and save and restore their exact state.
//!
//! ```
//! use dpar_export_metrics::{Compute, MomentsAccumulator, Rows, frechet_distance};
//!
//! # fn main() -> Result<(), dpar_export_metrics::MetricError> {
//! let compute = Compute::new(2)?;
//! let mut samples = MomentsAccumulator::new(2)?;
//! samples.push(Rows::new("samples", &[0.0, 0.0, 2.0, 0.0, 0.0, 2.0, 2.0, 2.0], 2)?, &compute)?;
//! let samples = samples.finish(&compute)?;
//! assert!(frechet_distance(&samples, &samples, &compute)?.distance.abs() < 1e-12);
//! # Ok(())
//! # }
//! ```

mod adm;
mod codec;
mod compute;
mod error;
mod frechet;
mod inception_score;
mod kid;
mod linalg;
mod manifold;
mod moments;
mod numpy_random;
mod precision_recall;
pub mod random;
mod resize;
mod screen;
mod sequential;
mod singular;
mod stats;
mod variant;

pub use compute::{Compute, Rows};
pub use error::MetricError;
pub use frechet::{Frechet, FrechetInfluence, frechet_distance};
pub use inception_score::{
    ADM_CHUNK, InceptionScore, InceptionScoreAccumulator, inception_score_torch_fidelity,
};
pub use kid::{Kid, KidProtocol, KidSubsets, kid, kid_influence, kid_subsets};
pub use moments::{Moments, MomentsAccumulator, working_memory};
pub use numpy_random::NumpyRandom;
pub use precision_recall::{PrMode, PrecisionRecall, precision_recall};
pub use resize::{INCEPTION_SIZE, Resize, Resizer};
pub use sequential::sequential_boundaries;
pub use stats::{
    Bootstrap, BootstrapResult, Equivalence, MARGIN_FRACTION, PRINTED_SEEDS, PrintedComparison, Verdict, Z90,
    compare_with_printed, equivalence, equivalence_at, equivalence_margin, fraction_interval, kid_margin,
    mean_and_standard_error, paired_standard_error, relative_margin,
};
pub use variant::{InceptionScoreSplits, Variant};
