//! `cargo run -p dpar-export-metrics --example sequential`: how often the sequential comparison is wrong, how many images it takes, and how many
//! decide a given change; the tables of docs/metrics.md. It fails where it is wrong more often than is claimed.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use dpar_export_metrics::{
    Compute, Frechet, FrechetInfluence, Moments, MomentsAccumulator, Rows, Verdict, Z90, equivalence_at,
    frechet_distance, paired_standard_error, random, sequential_boundaries,
};

const RUNS: u64 = 2000;
const LOOKS: usize = 10;

fn main() {
    let critical: Vec<String> = plan().iter().map(|c| format!("{c:.3}")).collect();
    println!("Critical values of {LOOKS} looks, in standard errors: {}\n", critical.join(", "));
    let mut wrong = [means(), distances(), biased()].concat();
    wrong.retain(|rate| !rate.holds());
    power();
    let told: Vec<String> = wrong.iter().map(ErrorRate::to_string).collect();
    assert!(told.is_empty(), "more often wrong than is claimed: {}", told.join("; "));
}

/// How often a run may pass in truth at the margin or beyond it, and fail within it or at it.
const CLAIMED: f64 = 0.05;

/// How often runs were wrong, and how often they may be.
#[derive(Clone)]
struct ErrorRate {
    what: String,
    wrong: f64,
    claimed: f64,
    /// Standard error of the share that was counted.
    error: f64,
}

impl ErrorRate {
    /// Of `runs` with a true difference of so many margins.
    fn of(name: &str, margins: f64, ended: &[SimulatedRun]) -> Vec<Self> {
        let runs = ended.len() as f64;
        let error = (CLAIMED * (1.0 - CLAIMED) / runs).sqrt();
        let rate = |verdict, word: &str| Self {
            what: format!("{name}, difference {margins}: {word}"),
            wrong: share(ended, verdict),
            claimed: CLAIMED,
            error,
        };
        let passes = (margins.abs() >= 1.0).then(|| rate(Verdict::Pass, "passes"));
        let fails = (margins.abs() <= 1.0).then(|| rate(Verdict::Fail, "fails"));
        passes.into_iter().chain(fails).collect()
    }

    /// Whether what was counted can come from the rate that is claimed: three standard errors, once in 740 by chance.
    fn holds(&self) -> bool {
        self.wrong <= self.claimed + 3.0 * self.error
    }
}

impl std::fmt::Display for ErrorRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, wrong, claimed, error } = self;
        write!(f, "{what} in {:.1} %, claimed {:.1} ± {:.1} %", 100.0 * wrong, 100.0 * claimed, 100.0 * error)
    }
}

fn share(ended: &[SimulatedRun], verdict: Verdict) -> f64 {
    ended.iter().filter(|e| e.verdict == verdict).count() as f64 / ended.len() as f64
}

/// Standard normal numbers by their index (G. E. P. Box, M. E. Muller, 1958).
fn normal(seed: u64, index: u64) -> f64 {
    let unit = |i| ((random::nth(seed, i) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    (-2.0 * unit(2 * index).ln()).sqrt() * (std::f64::consts::TAU * unit(2 * index + 1)).cos()
}

/// What became of a run, and after which part of the images.
struct SimulatedRun {
    verdict: Verdict,
    fraction: f64,
}

fn report(name: &str, ended: &[SimulatedRun]) {
    let images = ended.iter().map(|e| e.fraction).sum::<f64>() / ended.len() as f64;
    println!(
        "| {name} | {} | {:.1} % | {:.1} % | {:.1} % | {:.0} % |",
        ended.len(),
        100.0 * share(ended, Verdict::Pass),
        100.0 * share(ended, Verdict::Fail),
        100.0 * share(ended, Verdict::Inconclusive),
        100.0 * images
    );
}

const HEAD: &str =
    "| true difference | runs | pass | fail | inconclusive | images of all |\n|---|---|---|---|---|---|";

/// Looks until one decides.
fn looks(mut at: impl FnMut(usize) -> (f64, f64), margin: f64, critical: &[f64]) -> SimulatedRun {
    for (k, value) in critical.iter().enumerate() {
        let (difference, error) = at(k);
        let verdict = equivalence_at(difference, error, margin, *value).unwrap().verdict;
        if verdict != Verdict::Inconclusive || k + 1 == critical.len() {
            return SimulatedRun { verdict, fraction: (k + 1) as f64 / critical.len() as f64 };
        }
    }
    unreachable!("the last look ends")
}

fn plan() -> Vec<f64> {
    sequential_boundaries(&(1..=LOOKS).map(|k| k as f64 / LOOKS as f64).collect::<Vec<_>>()).unwrap()
}

/// Means of normal values with a margin of four standard errors of all images.
fn means() -> Vec<ErrorRate> {
    println!(
        "Means of 2,000 normal values, {LOOKS} looks, margin 4 standard errors of all; differences in margins"
    );
    println!("{HEAD}");
    let (critical, n, margin) = (plan(), 2000_u64, 4.0 / (2000_f64).sqrt());
    let mut rates = Vec::new();
    for (name, true_difference) in
        [("0", 0.0), ("0.5", 0.5), ("1", 1.0), ("-1", -1.0), ("1.5", 1.5), ("2", 2.0)]
    {
        let run = |seed: u64| {
            let (mut sum, mut squares, mut seen) = (0.0, 0.0, 0);
            let at = |k: usize| {
                let to = n * (k as u64 + 1) / LOOKS as u64;
                for i in seen..to {
                    let x = normal(seed, i) + true_difference * margin;
                    (sum, squares) = (sum + x, squares + x * x);
                }
                seen = to;
                let count = to as f64;
                let mean = sum / count;
                (mean, ((squares / count - mean * mean) / (count - 1.0)).sqrt())
            };
            looks(at, margin, &critical)
        };
        let ended: Vec<_> = (0..5 * RUNS).map(run).collect();
        report(name, &ended);
        rates.extend(ErrorRate::of("means", true_difference, &ended));
    }
    rates
}

const WIDTH: usize = 4;

fn moments(rows: &[f32], width: usize, compute: &Compute) -> Moments {
    let mut all = MomentsAccumulator::new(width).unwrap();
    all.push(Rows::new("rows", rows, width).unwrap(), compute).unwrap();
    all.finish(compute).unwrap()
}

/// Fréchet distances of paired samples to one reference, with the standard error from their influence functions.
fn distances() -> Vec<ErrorRate> {
    const IMAGES: usize = 2000;
    let compute = Compute::new(1).unwrap();
    let reference = Moments::from_parts(vec![0.0; WIDTH], unit(WIDTH), None).unwrap();
    // Both are moved away from the reference by 1 in the first feature; one also in the second, by `shift`.
    let margin = 0.05_f64;
    println!(
        "\nFréchet distances (about 1) of {IMAGES} pairs of {WIDTH} features, {LOOKS} looks, margin {margin}"
    );
    println!("{HEAD}");
    let critical = plan();
    let mut rates = Vec::new();
    for (name, excess) in [("0", 0.0), ("1", 1.0), ("2", 2.0)] {
        // A shift s at right angles to the first adds s² to the distance.
        let shift = (excess * margin).sqrt();
        let run = |seed: u64| {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            let at = |k: usize| {
                let to = IMAGES * (k + 1) / LOOKS;
                for i in a.len() / WIDTH..to {
                    for j in 0..WIDTH {
                        // A part of both is common, as of two systems with one seed.
                        let at = ((i * WIDTH + j) * 3) as u64;
                        let common = 0.95_f64.sqrt() * normal(seed, at);
                        let [own, other] = [1, 2].map(|n| common + 0.05_f64.sqrt() * normal(seed, at + n));
                        let moved = if j == 0 { 1.0 } else { 0.0 };
                        a.push((own + moved + if j == 1 { shift } else { 0.0 }) as f32);
                        b.push((other + moved) as f32);
                    }
                }
                let (ma, mb) = (moments(&a, WIDTH, &compute), moments(&b, WIDTH, &compute));
                let distance = |m: &Moments| -> f64 {
                    let Frechet { distance, .. } = frechet_distance(m, &reference, &compute).unwrap();
                    distance
                };
                let influence = |m: &Moments, rows: &[f32]| {
                    let function = FrechetInfluence::new(m, &reference, &compute).unwrap();
                    function.rows(Rows::new("rows", rows, WIDTH).unwrap(), &compute).unwrap()
                };
                let error = paired_standard_error(&influence(&ma, &a), &influence(&mb, &b)).unwrap();
                (distance(&ma) - distance(&mb), error)
            };
            looks(at, margin, &critical)
        };
        let ended: Vec<_> = (0..RUNS).map(run).collect();
        report(name, &ended);
        rates.extend(ErrorRate::of("distances", excess, &ended));
    }
    rates
}

fn unit(width: usize) -> Vec<f64> {
    (0..width * width).map(|i| if i % (width + 1) == 0 { 1.0 } else { 0.0 }).collect()
}

/// Two sides at the same distance whose biases differ: one is moved away from the reference, the other one is spread wider. Looks correct the
/// bias of their fewer images from the distances of every other one, as `evaluate --until` does; the last look is the plain one.
fn biased() -> Vec<ErrorRate> {
    const D: usize = 64;
    const IMAGES: usize = 1600;
    let compute = Compute::new(1).unwrap();
    let reference = Moments::from_parts(vec![0.0; D], unit(D), None).unwrap();
    let (spread, margin) = (1.3_f64, 0.0576);
    let moved = (D as f64).sqrt() * (spread - 1.0);
    println!(
        "\nUnlike biases: {IMAGES} pairs of {D} features, distances {:.2}, margin {margin}",
        moved * moved
    );
    println!("{}", HEAD.replace("true difference", "looks"));
    let distance =
        |rows: &[f32]| frechet_distance(&moments(rows, D, &compute), &reference, &compute).unwrap().distance;
    let plan = plan();
    let mut found = Vec::new();
    for (name, critical, corrects) in
        [("1", vec![Z90], false), ("10, corrected", plan.clone(), true), ("10, not corrected", plan, false)]
    {
        let run = |seed: u64| {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            let looks_of = critical.len();
            let at = |k: usize| {
                let to = IMAGES * (k + 1) / looks_of;
                for i in a.len() / D..to {
                    for j in 0..D {
                        let [own, other] = [0, 1].map(|n| normal(seed, ((i * D + j) * 2 + n) as u64));
                        a.push((own + if j == 0 { moved } else { 0.0 }) as f32);
                        b.push((other * spread) as f32);
                    }
                }
                let side = |rows: &[f32]| {
                    let all = distance(rows);
                    let half = |odd: usize| {
                        let own = rows.chunks_exact(D).enumerate().filter(|(i, _)| i % 2 == odd);
                        distance(&own.flat_map(|(_, row)| row).copied().collect::<Vec<_>>())
                    };
                    let missing = if corrects { 1.0 - to as f64 / IMAGES as f64 } else { 0.0 };
                    let (m, missed) =
                        (moments(rows, D, &compute), (0.5 * (half(0) + half(1)) - all) * missing);
                    let function = FrechetInfluence::new(&m, &reference, &compute).unwrap();
                    (all - missed, function.rows(Rows::new("rows", rows, D).unwrap(), &compute).unwrap())
                };
                let ((da, ia), (db, ib)) = (side(&a), side(&b));
                (da - db, paired_standard_error(&ia, &ib).unwrap())
            };
            looks(at, margin, &critical)
        };
        let ended: Vec<_> = (0..RUNS / 20).map(run).collect();
        report(name, &ended);
        found.push(share(&ended, Verdict::Fail));
    }
    // Looks find what one look does, and not more: the standard error is that of a difference of two shares.
    let [once, corrected, ..] = found[..] else { unreachable!("three were looked at") };
    let error = (2.0 * once * (1.0 - once) / (RUNS / 20) as f64).sqrt();
    let what = "unlike biases: corrected looks find a difference".to_owned();
    vec![ErrorRate { what, wrong: corrected, claimed: once, error }]
}

/// Images that one look needs to show equivalence with a power of 90 % where there is no difference: (z₉₅ + z₉₅)²·s²/m², with s the
/// standard deviation of the pairs' influence values and m the margin. (Both tests must pass: each with 95 %.)
fn power() {
    println!("\nImages that decide a change of 1 % with a power of 90 %, by s over the distance");
    println!("| s / distance | images |\n|---|---|");
    for ratio in [0.25, 0.5, 1.0, 2.0, 4.0] {
        let images = (2.0 * Z90 * ratio / 0.01_f64).powi(2);
        println!("| {ratio} | {images:.0} |");
    }
}
