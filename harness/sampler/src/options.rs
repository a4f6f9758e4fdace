//! How tokens are drawn, and why none could be.

use serde::{Deserialize, Serialize};

/// How a random number picks a token. Both draw from the same distribution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// One number a slot, held against the running sum of probabilities. Its boundaries are V numbers, of which one lies
    /// next to the random number often enough that rounding parts streams. References that name no sampler have it.
    Cdf,
    /// One number a token, as noise on its logit; the largest sum wins. Rounding parts streams where the two best tie.
    #[default]
    Gumbel,
}

/// No temperature is less: LlamaGen's sampler divides by max(temperature, 10⁻⁵).
pub const LEAST_TEMPERATURE: f32 = 1e-5;

/// How a token is drawn from logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// How a random number picks a token; not used when greedy.
    pub method: Method,
    /// Logits are divided by this (f32) before anything else, as by 10⁻⁵ where it is less ([`LEAST_TEMPERATURE`]).
    pub temperature: f32,
    /// Keep every logit ≥ the k-th largest; 0 = off.
    pub top_k: usize,
    /// Of what top-k kept, keep the most probable tokens up to and including the one whose cumulative
    /// probability first exceeds this: 0 keeps one, 1 and more is off.
    pub top_p: f64,
    /// Take the largest logit, the lowest index on ties; the other options are then not used.
    pub greedy: bool,
}

impl Default for SamplerOptions {
    /// The protocol of the published FIDs: temperature 1, no top-k, no top-p.
    fn default() -> Self {
        Self { method: Method::default(), temperature: 1.0, top_k: 0, top_p: 1.0, greedy: false }
    }
}

impl SamplerOptions {
    /// Checks that a token can be drawn with these options.
    ///
    /// # Errors
    /// When the temperature or top-p is no finite number of at least 0.
    pub fn validate(&self) -> Result<(), SampleError> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(SampleError::Temperature(self.temperature));
        }
        if !(self.top_p.is_finite() && self.top_p >= 0.0) {
            return Err(SampleError::TopP(self.top_p));
        }
        Ok(())
    }

    /// What is done otherwise than these say, in words: a temperature that is too small.
    pub fn note(&self) -> Option<String> {
        (self.divisor() != self.temperature).then(|| {
            format!(
                "the temperature is {}: logits are divided by {}, as in the research code",
                self.temperature,
                self.divisor()
            )
        })
    }

    /// What logits are divided by.
    pub fn divisor(&self) -> f32 {
        self.temperature.max(LEAST_TEMPERATURE)
    }
}

/// Why no token could be drawn.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A temperature that is no number of at least 0.
    #[error("the temperature must be a finite number of at least 0, not {0}")]
    Temperature(f32),
    /// A top-p that is no number of at least 0.
    #[error("top-p must be a finite number of at least 0, not {0}")]
    TopP(f64),
    /// A guidance scale that is no number of at least 0.
    #[error("the guidance scale must be a finite number of at least 0, not {0}")]
    Guidance(f32),
    /// An end of guidance where there is none.
    #[error("a guidance interval has no effect without guidance, which runs at a scale above 1")]
    Interval,
    /// A uniform number outside [0, 1).
    #[error("the uniform number of a draw must be in [0, 1), not {0}")]
    Uniform(f64),
    /// No logits.
    #[error("there are no logits to draw from")]
    Empty,
    /// A logit that is not a number.
    #[error("logit {0} is not a number (NaN)")]
    Nan(usize),
    /// A logit that is +∞, as it is or after the division by the temperature.
    #[error("logit {0} is infinite at this temperature")]
    Infinite(usize),
    /// Every logit is −∞.
    #[error("every logit is minus infinity at this temperature")]
    NothingLeft,
}

impl SampleError {
    /// Whether the logits are to blame, and not the options of the draw.
    pub fn is_of_logits(&self) -> bool {
        match self {
            Self::Empty | Self::Nan(_) | Self::Infinite(_) | Self::NothingLeft => true,
            Self::Temperature(_) | Self::TopP(_) | Self::Guidance(_) | Self::Interval | Self::Uniform(_) => {
                false
            }
        }
    }
}
