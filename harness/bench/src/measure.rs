//! One case: a bundle on an engine at one batch size.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dpar_engine_api::device::Device;
use dpar_engine_api::{CacheForm, Engine, EngineInfo, graph_bytes};
use dpar_export_bundle::Bundle;
use dpar_export_decode::generate::sampler::SamplerOptions;
use dpar_export_decode::generate::{Batching, DecodeOptions, GraphCalls, Request, Schedule, Stream};
use dpar_export_decode::loaded::{LoadedBundle, RunError};
use serde::{Deserialize, Serialize};

use crate::memory::{Memory, resident};

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Images that are decoded together.
    pub batch: usize,
    /// Which of them advance together.
    pub schedule: Schedule,
    /// Images of a round, of which `batch` are under way at a time.
    pub images: usize,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// Seed of the images; all rounds decode the same ones.
    pub seed: u64,
    /// Rounds before the first that counts.
    pub warmup: usize,
    /// Rounds that count.
    pub rounds: usize,
}

/// Where a measurement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Graphs are loaded.
    Opening,
    /// Rounds that do not count.
    Warmup,
    /// This round of so many.
    Round(usize),
}

/// The images of a case, decoded once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Wall time in seconds.
    pub seconds: f64,
    /// Until the first token of the first images was drawn, in seconds.
    pub first_token: f64,
    /// What each graph cost.
    pub graphs: BTreeMap<String, GraphCost>,
}

/// What one graph cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct GraphCost {
    /// Calls.
    pub calls: u64,
    /// Rows of all calls together.
    pub rows: u64,
    /// Wall time in the engine, in seconds.
    pub seconds: f64,
}

impl GraphCost {
    /// Of the calls that came after an earlier count.
    fn since(now: GraphCalls, earlier: &GraphCalls) -> Self {
        Self {
            calls: now.calls - earlier.calls,
            rows: now.rows - earlier.rows,
            seconds: (now.time - earlier.time).as_secs_f64(),
        }
    }
}

/// The median and two high quantiles.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Half of the values are below.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
}

impl Quantiles {
    /// By the nearest rank; `None` without values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |p: f64| {
            let at = (p * sorted.len() as f64).ceil() as usize;
            sorted.get(at.saturating_sub(1)).copied()
        };
        Some(Self { p50: rank(0.5)?, p90: rank(0.9)?, p99: rank(0.99)? })
    }
}

/// What one graph took of the whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphShare {
    /// Of all rounds.
    pub cost: GraphCost,
    /// Part of the time of all rounds, in percent.
    pub percent: f64,
    /// Bytes of weights that one call reads: all initializers but tables that rows are picked from.
    pub weight_bytes: u64,
    /// How its cache reaches a call, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caches: Option<CacheForm>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Name of the system.
    pub system: String,
    /// SHA-256 of the bundle's manifest.
    pub bundle: String,
    /// Precision of the graphs, and bits of quantized weights.
    pub precision: String,
    /// Name of the engine.
    pub engine: String,
    /// Version of the library that runs the graphs.
    pub engine_version: String,
    /// Device.
    pub device: String,
    /// What runs the graphs there.
    pub provider: String,
    /// Threads of one run; `None` = the engine's choice.
    pub threads: Option<usize>,
    /// How it was told to keep caches; `None` = its choice, which `graphs` say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caches: Option<CacheForm>,
    /// Images that are decoded together.
    pub batch: usize,
    /// Which of them advance together.
    pub schedule: Schedule,
    /// Images of a round.
    pub images: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// Threshold of the patch rule that ran, in nats, where it has one: the decimal number that was given, so that every writer of JSON writes the same.
    pub threshold: Option<f64>,
    /// Seed of the images.
    pub seed: u64,
    /// Mean number of patches of an image: steps of the large transformer.
    pub mean_steps: f64,
    /// Loading of all graphs, in seconds.
    pub opening: f64,
    /// Images per second, over all rounds.
    pub images_per_second: f64,
    /// Milliseconds of a step of the loop, over all rounds.
    pub step_ms: Quantiles,
    /// Every graph by name.
    pub graphs: BTreeMap<String, GraphShare>,
    /// What is not in a graph: the loop, sampling, the books of the caches, in percent.
    pub loop_percent: f64,
    /// Bytes of weights that all calls read, per second of wall time. Caches and activations are not counted.
    pub weight_bytes_per_second: f64,
    /// The largest seen at the end of a slot, where the system says it.
    pub memory: Option<Memory>,
    /// The rounds.
    pub rounds: Vec<Round>,
}

impl Measurement {
    /// What distinguishes it in a report.
    pub fn name(&self) -> String {
        let images = match self.images == self.batch {
            true => String::new(),
            false => format!(", {} images", self.images),
        };
        let device = match self.device == Device::Cpu.to_string() {
            true => String::new(),
            false => format!(" ({})", self.device),
        };
        let caches = self.caches.map_or_else(String::new, |form| format!(", caches {}", form.as_str()));
        let threshold = self.threshold.map_or(String::new(), |nats| format!(", threshold {nats}"));
        format!(
            "{} {} on {}{device}{caches}, batch {}, {}{images}{threshold}",
            self.system,
            self.precision,
            self.engine,
            self.batch,
            self.schedule.as_str()
        )
    }

    /// Images of all rounds.
    pub fn all_images(&self) -> usize {
        self.images * self.rounds.len()
    }

    /// Milliseconds until every image of a batch has its first token: the median round.
    pub fn first_token_ms(&self) -> f64 {
        Quantiles::of(self.rounds.iter().map(|r| 1e3 * r.first_token)).map_or(f64::NAN, |q| q.p50)
    }

    /// Times that a graph was called.
    pub fn calls(&self, graph: &str) -> u64 {
        self.graphs.get(graph).map_or(0, |g| g.cost.calls)
    }
}

/// Measures a case. `progress` is told where it is after every step of the loop, and returns false to stop; no clock runs
/// meanwhile, nor while the system is asked for the memory.
///
/// # Errors
/// When the engine cannot run the bundle or fails; [`RunError::Interrupted`].
pub fn measure(
    bundle: &Bundle,
    engine: Box<dyn Engine>,
    case: &Case,
    progress: &mut dyn FnMut(Phase) -> bool,
) -> Result<Measurement, RunError> {
    let system = bundle.system();
    if !progress(Phase::Opening) {
        return Err(RunError::Interrupted);
    }
    let opening = Instant::now();
    let loaded = LoadedBundle::new(bundle, engine)?;
    let batching = Batching { rows: case.batch.min(case.images).max(1), schedule: case.schedule };
    let mut decoder = loaded.decoder(batching, case.cfg_scale > 1.0)?;
    let opening = opening.elapsed().as_secs_f64();
    let requests = Request::all_seeded(case.seed, case.images as u64, system.num_classes);
    let options = DecodeOptions {
        cfg_scale: case.cfg_scale,
        cfg_interval: None,
        sampler: SamplerOptions::default(),
        seed: case.seed,
    };
    let mut memory = None;
    let mut streams = Vec::new();
    let (mut rounds, mut steps) = (Vec::new(), Vec::new());
    for round in 0..case.warmup + case.rounds {
        let phase = round.checked_sub(case.warmup).map_or(Phase::Warmup, Phase::Round);
        let before = decoder.calls();
        let (mut first_token, mut last, mut paused) = (None, Duration::ZERO, Duration::ZERO);
        let started = Instant::now();
        streams = decoder.run(&requests, &options, &mut |_| {
            let stopped = started.elapsed();
            let end = stopped - paused;
            first_token.get_or_insert(end);
            if phase != Phase::Warmup {
                steps.push(1e3 * (end - last).as_secs_f64());
            }
            last = end;
            memory = memory.into_iter().chain(resident()).reduce(Memory::max);
            let go_on = progress(phase);
            paused += started.elapsed() - stopped;
            go_on
        })?;
        let taken = started.elapsed() - paused;
        if phase == Phase::Warmup {
            continue;
        }
        let graphs = decoder.calls().into_iter().zip(&before);
        rounds.push(Round {
            seconds: taken.as_secs_f64(),
            first_token: first_token.unwrap_or(taken).as_secs_f64(),
            graphs: graphs.map(|(now, was)| (now.graph.to_string(), GraphCost::since(now, was))).collect(),
        });
    }
    bundle.unchanged()?;
    gather(&loaded, case, (opening, memory), &streams, (rounds, steps))
}

fn gather(
    loaded: &LoadedBundle<'_>,
    case: &Case,
    (opening, memory): (f64, Option<Memory>),
    streams: &[Stream],
    (rounds, steps): (Vec<Round>, Vec<f64>),
) -> Result<Measurement, RunError> {
    let (bundle, forms) = (loaded.bundle(), loaded.caches());
    let total: f64 = rounds.iter().map(|r| r.seconds).sum();
    let mut graphs: BTreeMap<String, GraphShare> = BTreeMap::new();
    for (name, cost) in rounds.iter().flat_map(|r| &r.graphs) {
        let share = match graphs.get_mut(name) {
            Some(share) => share,
            None => {
                let weight_bytes = bundle
                    .with_graph(name, loaded.dialects(), |file| Ok::<_, RunError>(graph_bytes(file)?))?;
                let (cost, caches) = (GraphCost::default(), forms.get(name).copied());
                let none = GraphShare { cost, percent: 0.0, weight_bytes, caches };
                graphs.entry(name.clone()).or_insert(none)
            }
        };
        share.cost.calls += cost.calls;
        share.cost.rows += cost.rows;
        share.cost.seconds += cost.seconds;
    }
    for share in graphs.values_mut() {
        share.percent = 100.0 * share.cost.seconds / total;
    }
    let in_graphs: f64 = graphs.values().map(|g| g.percent).sum();
    let read: f64 = graphs.values().map(|g| g.cost.calls as f64 * g.weight_bytes as f64).sum();
    let EngineInfo { engine, version, device, provider, threads, caches, .. } = loaded.info().clone();
    Ok(Measurement {
        system: bundle.system().name.clone(),
        bundle: bundle.manifest_sha256().to_owned(),
        precision: bundle.manifest().numbers().to_string(),
        engine,
        engine_version: version,
        device,
        provider,
        threads,
        caches,
        batch: case.batch,
        schedule: case.schedule,
        images: case.images,
        tokens: bundle.system().tokens(),
        cfg_scale: case.cfg_scale,
        threshold: bundle.patch_rule().numbers().threshold.and_then(|nats| nats.to_string().parse().ok()),
        seed: case.seed,
        mean_steps: streams.iter().map(|s| s.steps() as f64).sum::<f64>() / streams.len().max(1) as f64,
        opening,
        images_per_second: (case.images * rounds.len()) as f64 / total,
        step_ms: Quantiles::of(steps).unwrap_or(Quantiles { p50: f64::NAN, p90: f64::NAN, p99: f64::NAN }),
        graphs,
        loop_percent: 100.0 - in_graphs,
        weight_bytes_per_second: read / total,
        memory,
        rounds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let q = Quantiles::of((1..=200).rev().map(f64::from)).unwrap();
        assert_eq!(q, Quantiles { p50: 100.0, p90: 180.0, p99: 198.0 });
        let one = Quantiles::of([3.0]).unwrap();
        assert_eq!(one, Quantiles { p50: 3.0, p90: 3.0, p99: 3.0 });
        assert_eq!(Quantiles::of([]), None);
    }
}
