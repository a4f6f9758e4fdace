//! `--sampler`.

use clap::ValueEnum;

use crate::generate::sampler::Method;

/// How a random number picks a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SamplerWord {
    /// One number a slot, against the running sum of probabilities, as references without the word were drawn
    Cdf,
    /// One number a token, as noise on its logit: streams that rounding hardly ever parts
    Gumbel,
}

impl From<SamplerWord> for Method {
    fn from(word: SamplerWord) -> Self {
        match word {
            SamplerWord::Cdf => Self::Cdf,
            SamplerWord::Gumbel => Self::Gumbel,
        }
    }
}
