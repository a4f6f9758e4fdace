//! `cargo xtask load`: what the service bears, and what it costs beside the command line on the same engine.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use crate::served::{Client, Computed, Served, emoji32, run_quietly};

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
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// The program [default: a release build]
    #[arg(long)]
    pub program: Option<Utf8PathBuf>,
    /// Engine [default: the program's]
    #[arg(long)]
    engine: Option<String>,
    /// Images that are decoded together
    #[arg(long = "batch", value_name = "ROWS", default_value = "16")]
    rows: usize,
    /// Clients at a time
    #[arg(long, value_name = "N", default_value = "200")]
    clients: usize,
    /// How long they ask
    #[arg(long, value_name = "N", default_value = "60")]
    seconds: u64,
    /// Turns of service and command line
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: usize,
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
pub fn run(root: &Utf8Path, program: &Utf8Path, options: &LoadArgs) -> Result<()> {
    let ground = LoadGround::make(root, program, options)?;
    let LoadArgs { rows, clients, seconds, .. } = *options;
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

    let (mut throughput, mut decoding, mut latency) = (Vec::new(), Vec::new(), Vec::new());
    let server = ground.serve(&[])?;
    let mut shares = Shares::default();
    for round in 0..options.rounds {
        // In turns, and each first every other time.
        let mut sides = [None, None];
        for serve in [round % 2 == 0, round % 2 == 1] {
            sides[usize::from(!serve)] =
                Some(if serve { ground.served(&server, &mut shares)? } else { ground.drawn()? });
        }
        let [Some(served), Some(drawn)] = sides else { bail!("a side was left out") };
        println!("| round {round} | served: {served} | drawn: {drawn} |");
        throughput.push(served.images / drawn.images);
        decoding.push(served.images / drawn.decoded);
        latency.push(served.alone / drawn.alone);
    }
    println!("{shares}");
    let (fast, tokens, slow) = (middle(&mut throughput), middle(&mut decoding), middle(&mut latency));
    println!("| throughput at saturation / `generate --batch {rows}` | {fast} |");
    println!("| the same, beside its decoding without pixels and files | {tokens} |");
    println!("| latency alone / `generate --batch 1` without pixels and files | {slow} |");
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
    fn make(root: &Utf8Path, program: &Utf8Path, options: &LoadArgs) -> Result<Self> {
        let out = root.join(OUT);
        let (bundle, drawn) = (emoji32(root, program, &out)?, out.join("drawn"));
        let mut ground = Self {
            program: program.to_owned(),
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

    /// The command line's side of a round, as it times itself.
    fn drawn(&self) -> Result<RoundSide> {
        let out = self.bundle.with_file_name("timed");
        let seconds = |rows, images: usize| -> Result<[f64; 2]> {
            let said = self.draw(&out, "lockstep", rows, images)?;
            let number = |key| said[key].as_f64().with_context(|| format!("generate says no {key}"));
            let decoding = number("seconds")?;
            Ok([decoding, decoding + number("written_seconds")?].map(|seconds| seconds / images as f64))
        };
        let before = Computed::of("self")?.children;
        let [decoding, all] = seconds(self.rows, IMAGES)?;
        let computed = (Computed::of("self")?.children - before) / IMAGES as f64;
        let [alone, _] = seconds(1, IMAGES / 8)?;
        Ok(RoundSide { images: 1.0 / all, decoded: 1.0 / decoding, alone, computed, clients: 0.0 })
    }

    /// The service's side.
    fn served(&self, server: &Served, shares: &mut Shares) -> Result<RoundSide> {
        let before = (Computed::of("self")?.own, server.computed()?, server.metrics()?, Instant::now());
        let images = self.saturated(server)?;
        let asked = (IMAGES + 4 * self.rows) as f64;
        shares.add(&before.2, &server.metrics()?, before.3.elapsed());
        let clients = (Computed::of("self")?.own - before.0) / asked;
        let computed = (server.computed()? - before.1) / asked;
        Ok(RoundSide { images, decoded: images, alone: self.alone(server)?, computed, clients })
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

/// What one side of a round came to.
struct RoundSide {
    /// Images a second, as their files.
    images: f64,
    /// Images a second, as tokens.
    decoded: f64,
    /// Seconds of an image for which nobody else asks; of the command line, without its pixels.
    alone: f64,
    /// Seconds that an image of many takes on all cores, with its share of what is done once.
    computed: f64,
    /// Of the clients.
    clients: f64,
}

impl std::fmt::Display for RoundSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { images, decoded, alone, computed, clients } = self;
        write!(f, "{images:.1} images/s")?;
        if decoded > images {
            write!(f, " ({decoded:.1} without pixels and files)")?;
        }
        write!(f, ", {:.1} ms alone, {:.1} ms of all cores an image", alone * 1e3, computed * 1e3)?;
        if *clients > 0.0 {
            write!(f, " and {:.2} in the clients", clients * 1e3)?;
        }
        Ok(())
    }
}

/// Where the time of a full service goes.
#[derive(Default)]
struct Shares {
    /// Calls, rows and seconds of each graph.
    graphs: BTreeMap<String, [f64; 3]>,
    images: f64,
    wall: f64,
}

impl Shares {
    /// What two looks at `/metrics` have between them.
    fn add(&mut self, before: &str, after: &str, took: Duration) {
        const COLUMNS: [&str; 3] =
            ["dpar_graph_calls_total", "dpar_graph_rows_total", "dpar_graph_seconds_total"];
        for (text, sign) in [(before, -1.0), (after, 1.0)] {
            for line in text.lines() {
                let Some((sample, value)) = line.rsplit_once(' ') else { continue };
                let value = sign * value.parse().unwrap_or(0.0);
                let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
                if name == "dpar_images_done_total" {
                    self.images += value;
                }
                let graph = labels.split_once("graph=\"").and_then(|(_, rest)| rest.split('"').next());
                let column = COLUMNS.iter().position(|column| *column == name);
                if let (Some(graph), Some(column)) = (graph, column) {
                    self.graphs.entry(graph.to_owned()).or_default()[column] += value;
                }
            }
        }
        self.wall += took.as_secs_f64();
    }
}

impl std::fmt::Display for Shares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |seconds: f64| seconds * 1e3 / self.images;
        for (graph, [calls, rows, seconds]) in &self.graphs {
            writeln!(f, "| {graph} | {:.1} rows a call | {:.2} ms an image |", rows / calls, ms(*seconds))?;
        }
        let engine: f64 = self.graphs.values().map(|[_, _, seconds]| seconds).sum();
        write!(
            f,
            "| beside these graphs: pixels, and the loop itself | {:.2} ms an image |",
            ms(self.wall - engine)
        )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_what_came_between_two_looks() {
        let look = |calls: u32, done: u32| {
            format!(
                "# HELP dpar_graph_calls_total Calls of each graph.\n\
                 dpar_graph_calls_total{{model=\"m\",graph=\"decoder_step\"}} {calls}\n\
                 dpar_graph_rows_total{{model=\"m\",graph=\"decoder_step\"}} {}\n\
                 dpar_graph_seconds_total{{model=\"m\",graph=\"decoder_step\"}} {}\n\
                 dpar_images_done_total{{model=\"m\"}} {done}\n",
                16 * calls,
                f64::from(calls) / 1000.0
            )
        };
        let mut shares = Shares::default();
        shares.add(&look(100, 10), &look(740, 170), Duration::from_millis(1600));
        let said = shares.to_string();
        assert!(said.contains("| decoder_step | 16.0 rows a call | 4.00 ms an image |"), "{said}");
        // 10 ms an image, of which the graphs take 4.
        assert!(said.ends_with("| 6.00 ms an image |"), "{said}");
    }
}
