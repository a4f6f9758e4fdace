//! What `golden.json` and `reference.json` say of how tokens were drawn, and how both are read.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_bundle::unique_keys;
use dpar_export_decode::generate::DecodeOptions;
use dpar_export_decode::generate::sampler::{Method, SampleError, SamplerOptions};
use dpar_export_spec::{PatchRule, RuleChange, text};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{CompareError, ReferenceError};

/// How tokens were drawn, under the names that both files have for it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Drawing {
    /// Seed of classes and draws.
    pub seed: u64,
    /// Guidance.
    pub cfg_scale: f32,
    /// The last decode index with guidance; null = all have it.
    pub cfg_interval: Option<usize>,
    /// How a random number picked a token.
    pub sampler: Method,
    /// What the logits were divided by.
    pub temperature: f32,
    /// Of the largest logits so many were kept; 0 = all.
    pub top_k: usize,
    /// The most likely tokens were kept up to this probability; 1 = all.
    pub top_p: f64,
}

impl From<&DecodeOptions> for Drawing {
    fn from(options: &DecodeOptions) -> Self {
        let DecodeOptions { cfg_scale, cfg_interval, sampler, seed } = *options;
        let SamplerOptions { method, temperature, top_k, top_p, greedy: _ } = sampler;
        Self { seed, cfg_scale, cfg_interval, sampler: method, temperature, top_k, top_p }
    }
}

impl From<Drawing> for DecodeOptions {
    fn from(drawing: Drawing) -> Self {
        let Drawing { seed, cfg_scale, cfg_interval, sampler: method, temperature, top_k, top_p } = drawing;
        let sampler = SamplerOptions { method, temperature, top_k, top_p, greedy: false };
        Self { cfg_scale, cfg_interval, sampler, seed }
    }
}

/// A file of settings, read key by key: what is wrong with one is said with its name.
pub(super) struct SettingKeys {
    path: Utf8PathBuf,
    map: Map<String, Value>,
}

impl SettingKeys {
    /// Reads a file of at most `most` bytes, with keys that `known` has; keys of other names are for people, unless they are
    /// nearly one of these.
    pub(super) fn read(path: &Utf8Path, most: u64, known: &[&str]) -> Result<Self, CompareError> {
        let text = dpar_export_inputs::read_to_string(path, most).map_err(CompareError::io(path))?;
        let map: Map<String, Value> = serde_json::from_str(&text).map_err(CompareError::json(path))?;
        if let Err(e) = unique_keys(text.as_bytes()) {
            return Err(ReferenceError::Repeated { path: path.to_owned(), why: e.to_string() }.into());
        }
        let keys = Self { path: path.to_owned(), map };
        let absent: Vec<&str> = known.iter().copied().filter(|k| !keys.map.contains_key(*k)).collect();
        for key in keys.map.keys().filter(|k| !known.contains(&k.as_str())) {
            if let Some(meant) = text::misspelt(key, &absent) {
                return Err(
                    keys.refuse(key, format_args!("no key of this name is read; is `{meant}` meant?"))
                );
            }
        }
        Ok(keys)
    }

    /// The refusal of a key's value.
    fn refuse(&self, key: &str, why: impl std::fmt::Display) -> CompareError {
        let (path, key) = (self.path.clone(), text::cut(key, text::LONGEST_NAME).into_owned());
        ReferenceError::Key { path, key, why: why.to_string() }.into()
    }

    /// The value of a key; `None` where it is absent or null.
    pub(super) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CompareError> {
        let Some(value) = self.map.get(key) else { return Ok(None) };
        serde_json::from_value(value.clone()).map_err(|e| self.refuse(key, e))
    }

    /// The guidance scale, if the file says one that the loop can run.
    pub(super) fn cfg_scale(&self) -> Result<Option<f32>, CompareError> {
        let scale = self.get::<f32>("cfg_scale")?;
        let alone = |cfg_scale| Self::undrawn(cfg_scale, None).validate();
        scale.map_or(Ok(()), alone).map_err(|e| self.refuse("cfg_scale", e))?;
        Ok(scale)
    }

    /// The end of guidance at this scale: −1 means that there is none, as in LlamaGen.
    pub(super) fn cfg_interval(&self, cfg_scale: f32) -> Result<Option<usize>, CompareError> {
        let key = "cfg_interval";
        let interval = match self.get::<i64>(key)? {
            None | Some(-1) => return Ok(None),
            Some(i) => {
                usize::try_from(i).map_err(|_| self.refuse(key, "a decode index, or -1, is wanted"))?
            }
        };
        let options = Self::undrawn(cfg_scale, Some(interval));
        options.validate().map_err(|e| self.refuse(key, e))?;
        Ok(Some(interval))
    }

    /// Guidance of tokens that nothing draws.
    fn undrawn(cfg_scale: f32, cfg_interval: Option<usize>) -> DecodeOptions {
        DecodeOptions { cfg_scale, cfg_interval, sampler: SamplerOptions::default(), seed: 0 }
    }

    /// How a random number picks a token: `method` where no word says it.
    pub(super) fn sampler(&self, method: Method) -> Result<SamplerOptions, CompareError> {
        let usual = SamplerOptions::default();
        let sampler = SamplerOptions {
            method: self.get("sampler")?.unwrap_or(method),
            temperature: self.get("temperature")?.unwrap_or(usual.temperature),
            top_k: self.get("top_k")?.unwrap_or(usual.top_k),
            top_p: self.get("top_p")?.unwrap_or(usual.top_p),
            greedy: false,
        };
        let key = |e: &SampleError| if matches!(e, SampleError::TopP(_)) { "top_p" } else { "temperature" };
        sampler.validate().map_err(|e| self.refuse(key(&e), &e))?;
        Ok(sampler)
    }

    /// The numbers of the patch rule that the file says.
    pub(super) fn rule(&self) -> Result<RuleChange, CompareError> {
        Ok(RuleChange {
            threshold: self.get("threshold")?,
            max_patch_length: self.get("max_patch_length")?,
            patch_size: self.get("patch_size")?,
        })
    }

    /// How tokens were drawn.
    pub(super) fn drawing(&self, method: Method) -> Result<Drawing, CompareError> {
        let needed = |key| self.refuse(key, "it is missing, and drawn tokens depend on it");
        let cfg_scale = self.cfg_scale()?.ok_or_else(|| needed("cfg_scale"))?;
        let options = DecodeOptions {
            cfg_scale,
            cfg_interval: self.cfg_interval(cfg_scale)?,
            sampler: self.sampler(method)?,
            seed: self.get("seed")?.ok_or_else(|| needed("seed"))?,
        };
        Ok(Drawing::from(&options))
    }
}

/// What a reference says of a rule whose numbers are not its own.
pub(super) fn unlike(rule: &PatchRule, said: &RuleChange) -> Option<String> {
    let what = rule.unlike(said)?;
    Some(format!(
        "the reference was made with another rule: {what}; options of these names run it with those numbers"
    ))
}

#[cfg(test)]
mod tests;
