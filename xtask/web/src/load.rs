//! `cargo xtask load`: what the service bears, and what it costs beside the command line on the same engine.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use crate::served::{Client, Served, run_quietly};

/// Where everything is written, ignored by git.
const OUT: &str = "out/load";
/// Images that the command line draws, and that are asked for again and again.
const IMAGES: usize = 256;
const SEED: u64 = 11;
/// Throughput beside `generate --batch` at least, latency beside `--batch 1` at most.
const LEAST_THROUGHPUT: f64 = 0.9;
const MOST_LATENCY: f64 = 1.15;
/// Who was refused waits so long.
const AGAIN: Duration = Duration::from_millis(50);

/// What is measured.
#[derive(Debug)]
pub struct LoadPlan {
    /// The program.
    pub program: Utf8PathBuf,
    /// The engine, where it is not the program's own choice.
    pub engine: Option<String>,
    /// Images that are decoded together.
    pub rows: usize,
    /// Clients at a time.
    pub clients: usize,
    /// How long they ask.
    pub seconds: u64,
    /// Turns of service and command line.
    pub rounds: usize,
}

/// Answers to many clients.
#[derive(Default)]
struct Answers {
    /// When each right one came, and how long it took.
    right: Vec<(Instant, Duration)>,
    wrong: usize,
    /// Connections that ended, or answers that nobody expects.
    lost: Vec<String>,
    /// How long it took to say that there is no room.
    refused: Vec<Duration>,
}

/// What there is to ask for.
struct LoadGround {
    program: Utf8PathBuf,
    bundle: Utf8PathBuf,
    /// Which engine, as arguments.
    engine: Vec<String>,
    rows: usize,
    /// PNG of each image, as `generate --batch 1` writes it.
    reference: Vec<Vec<u8>>,
}

/// Measures, and prints what comes of it.
///
/// # Errors
/// When an answer was wrong or lost, or the service is too far behind the command line.
pub fn run(root: &Utf8Path, options: &LoadPlan) -> Result<()> {
    let ground = LoadGround::make(root, options)?;
    let LoadPlan { rows, clients, seconds, .. } = *options;
    println!("{} {}, {rows} rows, {IMAGES} images of emoji32", ground.program, ground.engine.join(" "));
    let mut problems = Vec::new();

    let server = ground.serve(&["--max-queue", &(2 * clients).to_string()])?;
    let began = Instant::now();
    let answers = ground.ask(&server, clients, &|_| began.elapsed().as_secs() < seconds);
    let rate = answers.right.len() as f64 / began.elapsed().as_secs_f64();
    println!(
        "| {clients} clients for {seconds} s | {} right | {} wrong | {} lost | {} refused | {rate:.1} images/s | {} | {:.0} MB at most |",
        answers.right.len(),
        answers.wrong,
        answers.lost.len(),
        answers.refused.len(),
        spread(answers.right.iter().map(|(_, took)| *took)),
        server.peak()? as f64 / 1e6,
    );
    if answers.wrong + answers.lost.len() + answers.refused.len() > 0 {
        problems.push(format!("answers were wrong, lost or refused: {:?}", answers.lost.first()));
    }
    drop(server);

    let server = ground.serve(&["--max-queue", &rows.to_string()])?;
    let began = Instant::now();
    let answers = ground.ask(&server, clients, &|_| began.elapsed().as_secs() < seconds.div_ceil(6));
    println!(
        "| {clients} clients, a queue of {rows} | {} right | {} wrong | {} lost | {} refused | refused after {} |",
        answers.right.len(),
        answers.wrong,
        answers.lost.len(),
        answers.refused.len(),
        spread(answers.refused.iter().copied()),
    );
    if answers.wrong + answers.lost.len() > 0 || answers.refused.is_empty() {
        problems.push(format!("overload was not answered as it should be: {:?}", answers.lost.first()));
    }
    drop(server);

    let (mut throughput, mut latency) = (Vec::new(), Vec::new());
    let server = ground.serve(&[])?;
    for round in 0..options.rounds {
        // In turns, and each first every other time.
        let measure = |serve: bool| -> Result<(f64, f64)> {
            if serve {
                return Ok((ground.saturated(&server)?, ground.alone(&server)?));
            }
            Ok((
                ground.generate("lockstep", rows, IMAGES)?,
                1.0 / ground.generate("lockstep", 1, IMAGES / 8)?,
            ))
        };
        let first = measure(round % 2 == 0)?;
        let second = measure(round % 2 == 1)?;
        let (served, drawn) = if round % 2 == 0 { (first, second) } else { (second, first) };
        println!(
            "| round {round} | {:.1} images/s served | {:.1} drawn | {:.1} ms served | {:.1} ms drawn |",
            served.0,
            drawn.0,
            served.1 * 1e3,
            drawn.1 * 1e3
        );
        throughput.push(served.0 / drawn.0);
        latency.push(served.1 / drawn.1);
    }
    let (fast, slow) = (middle(&mut throughput), middle(&mut latency));
    println!("| throughput at saturation / `generate --batch {rows}` | {fast} |");
    println!("| latency alone / `generate --batch 1` | {slow} |");
    if fast.median < LEAST_THROUGHPUT {
        problems
            .push(format!("the throughput is {fast} of the command line's, {LEAST_THROUGHPUT} is wanted"));
    }
    if slow.median > MOST_LATENCY {
        problems.push(format!("the latency is {slow} of the command line's, {MOST_LATENCY} is allowed"));
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

impl LoadGround {
    fn make(root: &Utf8Path, options: &LoadPlan) -> Result<Self> {
        let program = options.program.clone();
        let out = root.join(OUT);
        fs_err::create_dir_all(&out)?;
        let (bundle, drawn) = (out.join("emoji32"), out.join("drawn"));
        let fixture = root.join("fixtures/emoji32/dpar");
        run_quietly(&program, &[fixture.as_str(), "-o", bundle.as_str(), "--force"])?;
        let mut ground = Self {
            program,
            bundle,
            engine: options.engine.iter().flat_map(|e| ["--engine".to_owned(), e.clone()]).collect(),
            rows: options.rows,
            reference: Vec::new(),
        };
        ground.draw(&drawn, "lockstep", 1, IMAGES)?;
        let image = |i: usize| fs_err::read(drawn.join(format!("{i:06}.png")));
        ground.reference = (0..IMAGES).map(image).collect::<std::io::Result<_>>()?;
        Ok(ground)
    }

    fn draw(&self, out: &Utf8Path, schedule: &str, rows: usize, images: usize) -> Result<Value> {
        let (rows, images, seed) = (rows.to_string(), images.to_string(), SEED.to_string());
        let what = ["generate", self.bundle.as_str(), "-o", out.as_str(), "--force", "--json"];
        let how = ["--schedule", schedule, "--batch", &rows];
        let which = ["--num", &images, "--seed", &seed];
        let said = run_quietly(&self.program, &[&what[..], &how, &which, &self.engine()].concat())?;
        serde_json::from_slice(&said).context("generate --json")
    }

    /// Images per second of the command line, as it times itself.
    fn generate(&self, schedule: &str, rows: usize, images: usize) -> Result<f64> {
        let out = self.bundle.with_file_name("timed");
        let said = self.draw(&out, schedule, rows, images)?;
        let seconds = said["seconds"].as_f64().context("generate says no seconds")?;
        Ok(images as f64 / seconds)
    }

    fn serve(&self, more: &[&str]) -> Result<Served> {
        let rows = self.rows.to_string();
        let own = ["--batch", &rows];
        Served::start(&self.program, &self.bundle, &[&own, more, &self.engine()].concat())
    }

    fn engine(&self) -> Vec<&str> {
        self.engine.iter().map(String::as_str).collect()
    }

    /// Lets many clients ask one image after another, while `more` of what was asked so far.
    fn ask(&self, server: &Served, clients: usize, more: &(dyn Fn(usize) -> bool + Sync)) -> Answers {
        let (next, all) = (AtomicUsize::new(0), Mutex::new(Answers::default()));
        let given_up = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..clients {
                scope.spawn(|| {
                    let mut own = Answers::default();
                    let ended = self.ask_alone(server, &next, more, &given_up, &mut own);
                    if let Err(e) = ended {
                        own.lost.push(format!("{e:#}"));
                        given_up.store(true, Ordering::Relaxed);
                    }
                    let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    all.right.append(&mut own.right);
                    all.refused.append(&mut own.refused);
                    all.lost.append(&mut own.lost);
                    all.wrong += own.wrong;
                });
            }
        });
        all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn ask_alone(
        &self,
        server: &Served,
        next: &AtomicUsize,
        more: &(dyn Fn(usize) -> bool + Sync),
        given_up: &AtomicBool,
        own: &mut Answers,
    ) -> Result<()> {
        let mut client = Client::connect(server.address)?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if !more(number) || given_up.load(Ordering::Relaxed) {
                return Ok(());
            }
            let image = number % IMAGES;
            let ask = json!({ "seed": SEED, "first": image, "format": "png" }).to_string();
            let asked = Instant::now();
            match client.post("/v1/images", &ask)? {
                (200, png) if png == self.reference[image] => {
                    own.right.push((Instant::now(), asked.elapsed()))
                }
                (200, _) => own.wrong += 1,
                (429 | 503, _) => {
                    own.refused.push(asked.elapsed());
                    std::thread::sleep(AGAIN);
                }
                (status, said) => bail!("{status}: {}", String::from_utf8_lossy(&said)),
            }
        }
    }

    /// Images per second while rows are full: neither the first nor the last of them count.
    fn saturated(&self, server: &Served) -> Result<f64> {
        let edge = 2 * self.rows;
        let mut times: Vec<Instant> =
            right(self.ask(server, edge, &|n| n < IMAGES + 2 * edge))?.iter().map(|(at, _)| *at).collect();
        times.sort();
        let counted = &times[edge..times.len() - edge];
        let (Some(first), Some(last)) = (counted.first(), counted.last()) else { bail!("no images") };
        Ok((counted.len() - 1) as f64 / (*last - *first).as_secs_f64())
    }

    /// Seconds of an image for which nobody else asks at the time: the mean, as the command line's is one.
    fn alone(&self, server: &Served) -> Result<f64> {
        let took = right(self.ask(server, 1, &|n| n < IMAGES / 8))?;
        Ok(took.iter().map(|(_, took)| took.as_secs_f64()).sum::<f64>() / took.len() as f64)
    }
}

fn right(answers: Answers) -> Result<Vec<(Instant, Duration)>> {
    if answers.wrong + answers.lost.len() + answers.refused.len() > 0 {
        bail!("answers were wrong, lost or refused: {:?}", answers.lost.first());
    }
    Ok(answers.right)
}

/// Median, nine of ten, 99 of 100, and the longest.
fn spread(durations: impl Iterator<Item = Duration>) -> String {
    let mut all: Vec<f64> = durations.map(|d| d.as_secs_f64() * 1e3).collect();
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all.get(((all.len() as f64 * share) as usize).min(all.len().saturating_sub(1)));
    let [half, ninety, most, last] =
        [0.5, 0.9, 0.99, 1.0].map(|share| at(share).copied().unwrap_or(f64::NAN));
    format!("p50 {half:.1} p90 {ninety:.1} p99 {most:.1} max {last:.1} ms")
}

/// The middle of some numbers, and their ends.
struct Middle {
    median: f64,
    least: f64,
    most: f64,
}

impl std::fmt::Display for Middle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ({:.3} to {:.3})", self.median, self.least, self.most)
    }
}

fn middle(values: &mut [f64]) -> Middle {
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
    let (low, high) = (at(values.len().saturating_sub(1) / 2), at(values.len() / 2));
    Middle { median: f64::midpoint(low, high), least: at(0), most: at(values.len().saturating_sub(1)) }
}
