//! How images are drawn.

use clap::{Args, ValueEnum};

use crate::failure::Failure;
use crate::generate::DecodeOptions;
use crate::generate::sampler::{Method, SamplerOptions};

/// More images than this in one run are a typing error.
pub const MAX_IMAGES: u64 = 10_000_000;

/// Guidance and seed, for all that draws.
#[derive(Debug, Clone, Args)]
pub struct DrawArgs {
    /// Guidance scale; guidance runs above 1
    #[arg(long, value_name = "S", default_value = "1.0", value_parser = guidance, allow_negative_numbers = true, help_heading = "Sampling")]
    pub cfg_scale: f32,
    /// Seed; image i depends on (seed, i) alone
    #[arg(long, value_name = "K", default_value = "0", help_heading = "Sampling")]
    pub seed: u64,
}

/// How a random number picks a token.
#[derive(Debug, Clone, Args)]
pub struct SamplerArgs {
    /// How a random number picks a token
    #[arg(long, value_enum, value_name = "METHOD", default_value = "gumbel", help_heading = "Sampling")]
    sampler: SamplerWord,
}

/// All that can be said of a draw.
#[derive(Debug, Clone, Args)]
#[command(mut_arg("sampler", |a| a.conflicts_with("greedy")))]
pub struct SamplingArgs {
    #[command(flatten)]
    draw: DrawArgs,
    /// Guide only up to this decode index (LlamaGen's cfg_interval; slot t has index t − 1; -1 = always)
    #[arg(long, value_name = "I", allow_negative_numbers = true, value_parser = interval, help_heading = "Sampling")]
    cfg_interval: Option<Interval>,
    /// Take the most likely token instead of drawing
    #[arg(long, help_heading = "Sampling")]
    greedy: bool,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Divide the logits by this, or by 1e-5 where it is less
    #[arg(long, value_name = "X", default_value = "1.0", value_parser = temperature, conflicts_with = "greedy", help_heading = "Sampling")]
    temperature: f32,
    /// Keep the K largest logits; 0 = all
    #[arg(long, value_name = "K", default_value = "0", conflicts_with = "greedy", help_heading = "Sampling")]
    top_k: usize,
    /// Keep the most likely tokens up to this cumulative probability; 0 = one, 1 and more = all
    #[arg(
        long,
        value_name = "P",
        default_value = "1.0",
        conflicts_with = "greedy",
        help_heading = "Sampling"
    )]
    top_p: f64,
}

/// The options of [`SamplingArgs`], by their names in the parser.
pub const SAMPLING: [&str; 8] =
    ["cfg_scale", "seed", "cfg_interval", "greedy", "sampler", "temperature", "top_k", "top_p"];

/// A method of sampling, as `--sampler` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SamplerWord {
    /// One number a slot, against the running sum of probabilities, as references without the word were drawn
    Cdf,
    /// One number a token, as noise on its logit: streams that rounding hardly ever parts
    Gumbel,
}

/// `cfg_interval`: `None` = always.
type Interval = Option<usize>;

impl SamplerArgs {
    /// As the decoding loop has it.
    pub fn method(&self) -> Method {
        match self.sampler {
            SamplerWord::Cdf => Method::Cdf,
            SamplerWord::Gumbel => Method::Gumbel,
        }
    }
}

impl SamplingArgs {
    /// As the decoding loop has it.
    pub fn resolve(&self) -> Result<DecodeOptions, Failure> {
        let sampler = SamplerOptions {
            method: self.sampler.method(),
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            greedy: self.greedy,
        };
        sampler.validate().map_err(|e| Failure::usage(e.to_string(), None))?;
        if let Some(note) = sampler.note() {
            tracing::warn!("{note}");
        }
        let (cfg_scale, cfg_interval) = (self.draw.cfg_scale, self.cfg_interval.flatten());
        if cfg_interval.is_some() && cfg_scale <= 1.0 {
            return Err(Failure::usage(
                "--cfg-interval without guidance has no effect",
                Some("set --cfg-scale above 1"),
            ));
        }
        Ok(DecodeOptions { cfg_scale, cfg_interval, sampler, seed: self.draw.seed })
    }
}

fn interval(text: &str) -> Result<Interval, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(i) => usize::try_from(i).map(Some).map_err(|_| "expected a decode index, or -1".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// A number in a range.
fn number(text: &str, range: std::ops::RangeInclusive<f32>) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(v) if range.contains(&v) => Ok(v),
        _ => Err(format!("expected a finite number from {} to {}", range.start(), range.end())),
    }
}

fn guidance(text: &str) -> Result<f32, String> {
    number(text, 0.0..=1e3)
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, 0.0..=1e4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_options_is_whole() {
        let command = SamplingArgs::augment_args(clap::Command::new("x"));
        let mut names: Vec<&str> = command.get_arguments().map(|a| a.get_id().as_str()).collect();
        let mut list = SAMPLING.to_vec();
        names.sort_unstable();
        list.sort_unstable();
        assert_eq!(names, list);
    }
}
