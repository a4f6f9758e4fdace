//! What requests ask for, whichever protocol they speak.

use std::num::NonZeroUsize;
use std::sync::Arc;

use dpar_export_decode::generate::sampler::{Method, SamplerOptions};
use dpar_export_decode::generate::{DecodeOptions, Request};
use dpar_export_spec::RuleChange;
use serde::Deserialize;

use super::problem::Problem;
use super::service::{ServedModel, Service};
use crate::job::{ImageJob, RunningJob};
use crate::scheduler::Scheduler;

/// A class, by its number or its name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum ClassWord {
    Number(i64),
    Name(String),
}

impl ClassWord {
    /// The number.
    fn resolve(&self, model: &ServedModel) -> Result<i64, Problem> {
        let name = match self {
            Self::Number(class) => return Ok(*class),
            Self::Name(name) => name.trim(),
        };
        if let Ok(class) = name.parse() {
            return Ok(class);
        }
        let Some(names) = model.class_names() else {
            let message = format!("`{name}` is no number, and {} has no names of classes", model.name());
            return Err(Problem::refused(message));
        };
        match names.iter().position(|known| known.eq_ignore_ascii_case(name)) {
            Some(class) => Ok(class as i64),
            None => Err(Problem::refused(format!("{} has no class `{name}`", model.name()))),
        }
    }
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AnswerFormat {
    #[default]
    Json,
    Png,
    Npz,
}

/// The body of `POST /v1/images`. Numbers that are not there are those of the command line's `generate`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ImageQuery {
    pub(crate) model: Option<String>,
    /// One class for all images.
    pub(crate) class: Option<ClassWord>,
    /// One class for each.
    pub(crate) classes: Option<Vec<ClassWord>>,
    pub(crate) n: Option<usize>,
    pub(crate) seed: u64,
    /// Index of the first image in its run.
    pub(crate) first: u64,
    pub(crate) cfg_scale: Option<f32>,
    pub(crate) cfg_interval: Option<usize>,
    pub(crate) sampler: Option<Method>,
    pub(crate) greedy: bool,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f64>,
    pub(crate) threshold: Option<f32>,
    pub(crate) max_patch_length: Option<usize>,
    pub(crate) patch_size: Option<f64>,
    pub(crate) format: AnswerFormat,
    /// Tokens, patch lengths, entropies and margins too.
    pub(crate) trace: bool,
    pub(crate) stream: bool,
    /// In a stream: every token as it is drawn.
    pub(crate) tokens: bool,
    /// In a stream: a picture of what is drawn after so many patches.
    pub(crate) preview_every: Option<NonZeroUsize>,
}

/// A job under way, and on what.
pub(crate) struct Submitted<'s> {
    pub(crate) model: &'s ServedModel,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) running: RunningJob,
}

impl ImageQuery {
    /// Asks for it.
    pub(crate) fn submit<'s>(&self, service: &'s Service) -> Result<Submitted<'s>, Problem> {
        let Some(model) = service.model(self.model.as_deref()) else {
            let name = self.model.as_deref().unwrap_or_default();
            return Err(Problem::nowhere(format!("there is no model `{name}`")));
        };
        let scheduler = model.current();
        let job = self.job(model, &scheduler)?;
        let running = scheduler.submit(job)?;
        Ok(Submitted { model, scheduler, running })
    }

    fn job(&self, model: &ServedModel, scheduler: &Scheduler) -> Result<ImageJob, Problem> {
        if !self.stream && (self.tokens || self.preview_every.is_some()) {
            return Err(Problem::refused(
                "`tokens` and `preview_every` are of streams: `stream` is not true",
            ));
        }
        if self.stream && self.format != AnswerFormat::Json {
            return Err(Problem::refused("the events of a stream are JSON: leave out `format`"));
        }
        if self.format == AnswerFormat::Png && self.trace {
            return Err(Problem::refused("a PNG has no trace: ask for `npz` or `json`"));
        }
        let drawn = SamplerOptions::default();
        let sampler = SamplerOptions {
            method: self.sampler.unwrap_or(drawn.method),
            temperature: self.temperature.unwrap_or(drawn.temperature),
            top_k: self.top_k.unwrap_or(drawn.top_k),
            top_p: self.top_p.unwrap_or(drawn.top_p),
            greedy: self.greedy,
        };
        let said = self.sampler.is_some()
            || self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some();
        if self.greedy && said {
            let message = "`greedy` takes the most likely token: `sampler`, `temperature`, `top_k` and `top_p` have no effect";
            return Err(Problem::refused(message));
        }
        let options = DecodeOptions {
            cfg_scale: self.cfg_scale.unwrap_or(1.0),
            cfg_interval: self.cfg_interval,
            sampler,
            seed: self.seed,
        };
        let mut job = ImageJob::new(self.images(model, scheduler)?, options);
        if self.format == AnswerFormat::Png && job.images.len() > 1 {
            let message = format!("a PNG is one image, not {}: ask for `npz` or `json`", job.images.len());
            return Err(Problem::refused(message));
        }
        job.rule = RuleChange {
            threshold: self.threshold,
            max_patch_length: self.max_patch_length,
            patch_size: self.patch_size,
        };
        (job.tokens, job.preview) = (self.tokens, self.preview_every);
        Ok(job)
    }

    /// Index and class of each image.
    fn images(&self, model: &ServedModel, scheduler: &Scheduler) -> Result<Vec<Request>, Problem> {
        let number = self.n.unwrap_or(1);
        let most = scheduler.limits().images;
        let count = match &self.classes {
            Some(_) if self.class.is_some() => {
                return Err(Problem::refused(
                    "`class` is for all images, `classes` one for each: give one of them",
                ));
            }
            Some(classes) if self.n.is_some_and(|n| n != classes.len()) => {
                return Err(Problem::refused(format!(
                    "`n` is {number}, and there are {} classes",
                    classes.len()
                )));
            }
            Some(classes) => classes.len(),
            None => number,
        };
        if count > most {
            return Err(crate::job::JobError::TooMany { images: count, most }.into());
        }
        let end =
            self.first.checked_add(count as u64).ok_or_else(|| Problem::refused("`first` is too large"))?;
        let classes = scheduler.bundle().system().num_classes;
        let request = |(at, index): (usize, u64)| {
            let word = self.classes.as_ref().map(|all| &all[at]).or(self.class.as_ref());
            Ok(match word {
                Some(word) => Request { index, class: word.resolve(model)? },
                None => Request::seeded(self.seed, index, classes),
            })
        };
        (self.first..end).enumerate().map(|(at, index)| request((at, index))).collect()
    }
}
