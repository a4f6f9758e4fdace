//! `evaluate`: interrupted, in shards, from a bundle, compared; hostile images.
//!
//! The feature network is `features/tiny.onnx`, the mean of each channel: three features an image.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::arrays::{ArrayFile, ArrayRef, write_npz};
use dpar_export::picture::write_png;
use dpar_export_checkpoint::LoadOptions;
use serde_json::Value;

use crate::cli::{Run, json, run};
use crate::common::{Temp, export, fixture};

const SIDE: usize = 32;

/// Noise of a seed as `arr_0`; `spread` moves each image's colour.
pub(crate) fn images(path: &Utf8Path, n: usize, seed: u64, spread: u64) {
    let word = |i: u64| (i.wrapping_add(seed << 32).wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mix = |i: u64| (word(i) ^ (word(i) >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40;
    let size = SIDE * SIDE * 3;
    let pixel = |i: usize| {
        let colour = mix((i / size * 3 + i % 3) as u64) % spread.max(1);
        (64 + colour + mix(i as u64 + (1 << 31)) % 64) as u8
    };
    let pixels: Vec<u8> = (0..n * size).map(pixel).collect();
    write_npz(path, &[("arr_0", ArrayRef::u8(&[n, SIDE, SIDE, 3], &pixels))]).unwrap();
}

pub(crate) struct Case {
    pub(crate) temp: Temp,
    pub(crate) samples: Utf8PathBuf,
    pub(crate) reference: Utf8PathBuf,
}

impl Case {
    pub(crate) fn new(n: usize) -> Self {
        let temp = Temp::new();
        let (samples, reference) = (temp.path("samples.npz"), temp.path("reference.npz"));
        images(&samples, n, 1, 100);
        images(&reference, 150, 2, 100);
        Self { temp, samples, reference }
    }

    pub(crate) fn args(&self, out: &str, more: &[&str]) -> Vec<String> {
        let out = self.temp.path(out);
        let network = fixture("features/tiny.onnx");
        let mut args =
            vec!["evaluate", "--samples", self.samples.as_str(), "--reference", self.reference.as_str()];
        args.extend([
            "--extractor",
            network.as_str(),
            "--input-size",
            "16",
            "--chunk",
            "16",
            "-o",
            out.as_str(),
        ]);
        args.extend(["--threads", "1", "--kid-subset-size", "100", "--json"]);
        args.extend(more);
        args.into_iter().map(str::to_owned).collect()
    }

    pub(crate) fn run(&self, out: &str, more: &[&str]) -> Run {
        run(&self.args(out, more))
    }

    pub(crate) fn metrics(&self, out: &str) -> Vec<u8> {
        fs_err::read(self.temp.path(out).join("metrics.json")).unwrap()
    }

    fn start(&self, out: &str, more: &[&str]) -> Child {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
        command.args(self.args(out, more)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Images that a running evaluation has looked at.
    fn done(&self, out: &str) -> u64 {
        let file = self.temp.path(out).join("samples/pool_3.f32");
        fs_err::metadata(&file).map_or(0, |m| m.len()) / 12
    }

    /// Waits until more than `images` were looked at; false when the process ended before.
    fn wait(&self, child: &mut Child, out: &str, images: u64) -> bool {
        let started = Instant::now();
        while self.done(out) <= images {
            assert!(started.elapsed() < Duration::from_secs(60), "no progress");
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

#[test]
fn killed_and_resumed_it_writes_the_same_bytes() {
    let case = Case::new(2000);
    let whole = case.run("whole", &[]);
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    let mut interrupted = 0;
    for after in [0, 300, 900, 1500] {
        let mut child = case.start("killed", &["--resume"]);
        let running = case.wait(&mut child, "killed", after);
        // SIGKILL: no handler runs.
        child.kill().unwrap();
        child.wait().unwrap();
        let done = case.done("killed");
        interrupted += usize::from(running && done > 0 && done < 2000);
        assert!(!running || !case.temp.path("killed/metrics.json").exists());
    }
    assert!(interrupted > 0, "no evaluation was killed in the middle");
    let end = case.run("killed", &["--resume"]);
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert!(case.metrics("killed") == case.metrics("whole"), "{} {}", end.stdout, whole.stdout);
    assert_eq!(end.stdout, whole.stdout);
    assert_eq!(json(&end)["protocol"]["images"], 2000);

    // Interrupted politely: the exit code and the way to go on.
    let mut child = case.start("ctrl-c", &[]);
    assert!(case.wait(&mut child, "ctrl-c", 100));
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(130) && stderr.contains("--resume"), "{stderr}");
    assert_eq!(case.run("ctrl-c", &["--resume"]).code, 0);
    assert!(case.metrics("ctrl-c") == case.metrics("whole"));

    // A run goes on only with the same images and options, and only when asked.
    let again = case.run("whole", &[]);
    assert!(again.code == 2 && again.stderr.contains("--resume"), "{}", again.stderr);
    let other = case.run("whole", &["--resume", "--limit", "100"]);
    assert!(other.code == 2 && other.stderr.contains("other options"), "{}", other.stderr);
    let foreign = case.temp.path("foreign");
    fs_err::create_dir(&foreign).unwrap();
    fs_err::write(foreign.join("precious"), b"1").unwrap();
    let refused = case.run("foreign", &["--resume"]);
    assert!(refused.code == 2 && refused.stderr.contains("already exists"), "{}", refused.stderr);
}

#[test]
fn shards_give_the_numbers_of_the_whole() {
    let case = Case::new(200);
    assert_eq!(case.run("whole", &[]).code, 0);
    for shard in ["1/3", "2/3", "3/3"] {
        let out = case.run(&format!("s{}", &shard[..1]), &["--shard", shard]);
        assert_eq!(out.code, 0, "{}", out.stderr);
        assert_eq!(json(&out)["of"], 200);
    }
    let folders: Vec<String> = ["s3", "s1", "s2"].map(|s| case.temp.path(s).to_string()).into();
    let merge: Vec<&str> = ["--merge"].into_iter().chain(folders.iter().map(String::as_str)).collect();
    let merged = case.run("merged", &merge);
    assert_eq!(merged.code, 0, "{}", merged.stderr);
    assert!(case.metrics("merged") == case.metrics("whole"));
    let short = case.run("short", &merge[..3]);
    assert!(short.code == 2 && short.stderr.contains("comes next"), "{}", short.stderr);
    let unlike = case.run("unlike", &[&merge[..], &["--batch", "3"]].concat());
    assert!(unlike.code == 2 && unlike.stderr.contains("other options"), "{}", unlike.stderr);
}

#[test]
fn comparisons_have_three_verdicts_and_refuse_other_protocols() {
    let mut case = Case::new(300);
    assert_eq!(case.run("a", &[]).code, 0);
    let a = case.temp.path("a/metrics.json");
    let compare = ["--compare", a.as_str()];
    let same = case.run("same", &compare);
    assert_eq!(same.code, 0, "{}", same.stderr);
    let found = &json(&same)["comparison"];
    assert_eq!((&found["difference"], &found["same_images"]), (&Value::from(0.0), &Value::from(true)));
    // Distances on these features are some thousandths: a margin in units of FID would let anything pass.
    assert_eq!(found["margin"].as_f64().unwrap(), 0.01 * found["there"].as_f64().unwrap());
    assert!(case.temp.path("same/comparison.json").is_file());

    let first = case.samples.clone();
    for (name, spread, code, verdict) in [("flat", 5, 1, "fail"), ("near", 100, 4, "inconclusive")] {
        case.samples = case.temp.path(&format!("{name}.npz"));
        images(&case.samples, 300, 3, spread);
        let out = case.run(name, &compare);
        assert_eq!(out.code, code, "{}{}", out.stdout, out.stderr);
        let found = &json(&out)["comparison"];
        assert_eq!(found["verdict"], verdict);
        // The bootstrap agrees with the influence function.
        let width = |key: &str| found[key][1].as_f64().unwrap() - found[key][0].as_f64().unwrap();
        assert!((width("bootstrap_90") / width("interval_90") - 1.0).abs() < 0.15, "{found}");
    }
    case.samples = first;
    for (name, more) in [("protocol", ["--pr-mode", "adm"]), ("number", ["--limit", "200"])] {
        let out = case.run(name, &[&compare[..], &more].concat());
        assert!(out.code == 2 && out.stderr.contains("another protocol"), "{}", out.stderr);
        assert!(out.stderr.contains("here") && !case.temp.path(name).join("metrics.json").exists());
    }
    case.reference = case.temp.path("other.npz");
    images(&case.reference, 150, 9, 100);
    let out = case.run("reference", &compare);
    assert!(out.code == 2 && out.stderr.contains("reference.sha256"), "{}", out.stderr);
}

#[test]
fn statistics_are_written_in_the_layout_of_reference_files() {
    let mut case = Case::new(120);
    assert_eq!(case.run("a", &[]).code, 0);
    let statistics = case.temp.path("a/statistics.npz");
    let file = ArrayFile::open(&statistics).unwrap();
    file.f64("mu", &[Some(3)]).unwrap();
    file.f64("sigma", &[Some(3), Some(3)]).unwrap();
    case.reference = statistics;
    let out = case.run("b", &[]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let report = json(&out);
    assert!(report["metrics"]["frechet_distance"]["value"].as_f64().unwrap().abs() < 1e-12, "{report}");
    assert_eq!(report["protocol"]["reference"]["stored_statistics"], true);
    assert!(!out.stdout.contains("\"fid\"") && report["metrics"]["precision"].is_null());
    // With images, which serve Precision, Recall and KID: those of an evaluation against the images alone.
    let plain = json(&case.run("plain", &[]));
    assert!(plain["metrics"]["precision"].is_null());
    let (mu, sigma) = (file.f64("mu", &[Some(3)]).unwrap(), file.f64("sigma", &[Some(3), Some(3)]).unwrap());
    let both = case.temp.path("both.npz");
    let source = case.temp.path("reference.npz");
    let pixels = ArrayFile::open(&source).unwrap().u8("arr_0", &[None; 4]).unwrap();
    let shape = pixels.shape().to_vec();
    let name = b"tiny.onnx";
    write_npz(
        &both,
        &[
            ("mu", ArrayRef::f64(&[3], mu.as_slice().unwrap())),
            ("sigma", ArrayRef::f64(&[3, 3], sigma.as_slice().unwrap())),
            ("arr_0", ArrayRef::u8(&shape, pixels.as_slice().unwrap())),
            ("extractor", ArrayRef::u8(&[name.len()], name)),
        ],
    )
    .unwrap();
    case.reference = both;
    let served = json(&case.run("both", &[]));
    case.reference = source;
    let images = json(&case.run("images", &[]));
    for metric in ["precision", "recall", "kid", "kid_subsets"] {
        assert!(images["metrics"][metric].is_object());
        assert_eq!(served["metrics"][metric], images["metrics"][metric], "{metric}");
    }
    assert_eq!(served["metrics"]["frechet_distance"], report["metrics"]["frechet_distance"]);
    // Statistics that name no network are FID-Inception's.
    case.reference = fixture("metrics/numpy/reference.npz");
    let out = case.run("c", &[]);
    assert!(out.code == 2 && out.stderr.contains("features of inception"), "{}", out.stderr);
}

#[test]
fn a_bundle_draws_the_images_that_generate_writes() {
    let case = Case::new(40);
    let (bundle, folder) = (case.temp.path("bundle"), case.temp.path("images"));
    export("emoji32/dpar", &LoadOptions::default(), &bundle);
    let draw = ["--num", "6", "--cfg-scale", "2", "--seed", "5", "--batch", "3"];
    let made = run(&[&["generate", bundle.as_str(), "-o", folder.as_str()], &draw[..]].concat());
    assert_eq!(made.code, 0, "{}", made.stderr);
    let network = fixture("features/tiny.onnx");
    let common = [
        "--reference",
        case.reference.as_str(),
        "--extractor",
        network.as_str(),
        "--input-size",
        "16",
        "--json",
    ];
    let evaluate = |out: &str, more: &[&str]| {
        let out = case.temp.path(out);
        let out = run(&[&["evaluate", "-o", out.as_str(), "--chunk", "4"], &common[..], more].concat());
        assert_eq!(out.code, 0, "{}", out.stderr);
        json(&out)
    };
    let drawn = evaluate("drawn", &[&["--bundle", bundle.as_str()], &draw[..]].concat());
    let folder_of_files = evaluate("read", &["--samples", folder.as_str(), "--batch", "3"]);
    let archive = evaluate("npz", &["--samples", folder.join("samples.npz").as_str(), "--batch", "3"]);
    assert_eq!(drawn["samples"]["generated"]["seed"], 5);
    let trace = dpar_export::arrays::ArrayFile::open(folder.join("trace.npz")).unwrap();
    let steps = trace.i64("steps", &[None]).unwrap();
    let mean = steps.iter().sum::<i64>() as f64 / steps.len() as f64;
    assert_eq!(drawn["samples"]["mean_steps"], mean);
    assert!(archive["samples"].get("mean_steps").is_none());
    for other in [&folder_of_files, &archive] {
        assert_eq!(drawn["samples"]["pixels_sha256"], other["samples"]["pixels_sha256"]);
        assert_eq!(drawn["metrics"], other["metrics"]);
    }
    let classes = |v: &Value| v["protocol"]["sampling"]["classes_sha256"].clone();
    assert!(classes(&drawn).is_string() && classes(&drawn) == classes(&folder_of_files));
    let inside = bundle.join("evaluation");
    let refused =
        run(&[&["evaluate", "-o", inside.as_str(), "--bundle", bundle.as_str()], &common[..], &draw[..]]
            .concat());
    assert!(refused.code == 2 && refused.stderr.contains("lies in the bundle"), "{}", refused.stderr);
}

#[test]
fn hostile_images_are_refused_and_leave_nothing() {
    let mut case = Case::new(20);
    let good = fs_err::read(&case.samples).unwrap();
    let refused = |case: &Case, why: &str| {
        let out = case.run("out", &[]);
        assert_eq!(out.code, 2, "{why}: {}", out.stderr);
        assert!(out.stderr.contains(why) && out.stdout.is_empty(), "{why}: {}", out.stderr);
        assert!(!case.temp.path("out").exists(), "{why}");
    };
    case.samples = case.temp.path("bad.npz");
    for end in [0, 100, good.len() / 2, good.len() - 30] {
        fs_err::write(&case.samples, &good[..end]).unwrap();
        refused(&case, "bad.npz");
    }
    // A header that promises more images than there are bytes.
    let mut more = good.clone();
    let at = more.windows(4).position(|w| w == b"(20,").unwrap();
    more[at..at + 4].copy_from_slice(b"(90,");
    fs_err::write(&case.samples, &more).unwrap();
    refused(&case, "truncated");
    write_npz(&case.samples, &[("arr_0", ArrayRef::f32(&[1, 2, 2, 3], &[0.0; 12]))]).unwrap();
    refused(&case, "float32");
    write_npz(&case.samples, &[("images", ArrayRef::u8(&[1, 2, 2, 3], &[0; 12]))]).unwrap();
    refused(&case, "the file holds `images`");
    write_npz(&case.samples, &[("arr_0", ArrayRef::u8(&[0, 2, 2, 3], &[]))]).unwrap();
    refused(&case, "no images");
    case.samples = fixture("metrics/numpy/object.npz");
    refused(&case, "no such array");
    case.samples = case.temp.path("empty");
    fs_err::create_dir(&case.samples).unwrap();
    refused(&case, "holds no .png");
    fs_err::write(case.samples.join("000000.png"), b"\x89PNG no picture").unwrap();
    refused(&case, "000000.png");
    case.samples = case.temp.path("missing.npz");
    refused(&case, "missing.npz");
}

#[test]
fn a_flipped_byte_in_the_images_is_found_before_numbers_are_written() {
    let mut case = Case::new(40);
    let stored = fs_err::read(&case.samples).unwrap();
    let start = stored.windows(6).position(|w| w == b"\x93NUMPY").unwrap();
    let npy = &stored[start..start + 128 + 40 * SIDE * SIDE * 3];
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("arr_0.npy", zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut zip, npy).unwrap();
    let deflated = zip.finish().unwrap().into_inner();
    for (name, good) in [("stored", stored), ("deflated", deflated)] {
        case.samples = case.temp.path(&format!("{name}.npz"));
        fs_err::write(&case.samples, &good).unwrap();
        let out = case.run(name, &["--limit", "20"]);
        assert_eq!(out.code, 0, "{}", out.stderr);
        for (i, at) in [good.len() / 3, good.len() * 4 / 5].into_iter().enumerate() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs_err::write(&case.samples, &bad).unwrap();
            // Behind the images that are looked at, too, and not only the first time.
            let out = format!("{name}{i}");
            for more in [&["--limit", "20"][..], &["--limit", "20", "--resume"]] {
                let refused = case.run(&out, more);
                assert_eq!(refused.code, 2, "{name} {at}: {}", refused.stderr);
                assert!(refused.stderr.contains("the file is damaged"), "{}", refused.stderr);
                assert!(!case.temp.path(&out).join("metrics.json").exists());
            }
        }
    }
}

#[test]
fn what_can_be_known_before_is_said_before() {
    let mut case = Case::new(20);
    let refused = |case: &Case, more: &[&str], why: &str| {
        let out = case.run("out", more);
        assert!(out.code == 2 && out.stderr.contains(why), "{why}: {}", out.stderr);
        assert!(!case.temp.path("out").exists(), "{why}");
    };
    refused(&case, &["--limit", "0"], "--limit");
    refused(&case, &["--limit", "1"], "at least 2");
    let good = std::mem::replace(&mut case.reference, case.temp.path("none.npz"));
    refused(&case, &[], "none.npz");
    case.reference = fixture("metrics/numpy/reference.npz");
    refused(&case, &[], "features of inception");
    case.reference = good;
    // Labels that are none.
    let (samples, shape) = (case.temp.path("labelled.npz"), [20, SIDE, SIDE, 3]);
    let pixels = ArrayFile::open(&case.samples).unwrap().u8("arr_0", &[None; 4]).unwrap();
    let images = ("arr_0", ArrayRef::u8(&shape, pixels.as_slice().unwrap()));
    write_npz(&samples, &[images, ("arr_1", ArrayRef::f32(&[1], &[0.5]))]).unwrap();
    case.samples = samples;
    refused(&case, &[], "arr_1");
}

#[test]
fn too_few_images_for_one_metric_leave_the_others() {
    let case = Case::new(20);
    let out = case.run("few", &["--limit", "3"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let report = json(&out);
    assert!(report["metrics"]["frechet_distance"].is_object() && report["metrics"]["kid"].is_object());
    for metric in ["precision", "recall"] {
        let reason = report["not_computed"][metric].as_str().unwrap();
        assert!(reason.contains("3 rows, at least 4"), "{report}");
    }
}

#[test]
fn a_changed_store_is_an_integrity_error() {
    let case = Case::new(40);
    assert_eq!(case.run("a", &[]).code, 0);
    for file in ["state.bin", "pool_3.f32"] {
        let path = case.temp.path("a/samples").join(file);
        let good = fs_err::read(&path).unwrap();
        let mut bad = good.clone();
        bad[40] ^= 1;
        fs_err::write(&path, bad).unwrap();
        let out = case.run("a", &["--resume"]);
        assert!(out.code == 5 && out.stderr.contains(file), "{}", out.stderr);
        fs_err::write(&path, good).unwrap();
    }
    assert_eq!(case.run("a", &["--resume"]).code, 0);
}

#[test]
fn shards_of_machines_with_other_threads_and_copies_are_joined() {
    let mut case = Case::new(64);
    let first = case.run("s1", &["--shard", "1/2"]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let copy = case.temp.path("copy.npz");
    // Another name and another time.
    fs_err::write(&copy, fs_err::read(&case.samples).unwrap()).unwrap();
    case.samples = copy;
    let mut args = case.args("s2", &["--shard", "2/2"]);
    let threads = args.iter().position(|a| a == "--threads").unwrap();
    args[threads + 1] = "2".to_owned();
    assert_eq!(run(&args).code, 0);
    let folders = ["s1", "s2"].map(|s| case.temp.path(s).to_string());
    let merged = case.run("merged", &["--merge", folders[0].as_str(), folders[1].as_str()]);
    assert_eq!(merged.code, 0, "{}", merged.stderr);
    // Other pixels are other images.
    images(&case.samples, 64, 7, 100);
    let unlike = case.run("unlike", &["--merge", folders[0].as_str(), folders[1].as_str()]);
    assert!(unlike.code == 2 && unlike.stderr.contains("other images"), "{}", unlike.stderr);
}

#[test]
fn another_network_called_inception_has_no_fid_and_a_bundle_its_own_preparation() {
    let case = Case::new(20);
    let (file, bundle) = (case.temp.path("inception"), case.temp.path("network"));
    fs_err::copy(fixture("features/tiny.onnx"), &file).unwrap();
    let made = run(&["--component", "features", file.as_str(), "-o", bundle.as_str(), "--input-size", "16"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let with = |out: &str, more: &[&str]| {
        let mut args = case.args(out, more);
        let at = args.iter().position(|a| a == "--extractor").unwrap();
        args[at + 1] = bundle.to_string();
        run(&args)
    };
    let out = with("a", &[]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let report = json(&out);
    assert!(report["metrics"]["fid"].is_null(), "{report}");
    let name = &report["metrics"]["frechet_distance"]["name"];
    assert_eq!(name, "Fréchet distance on inception (another network)");
    let out = with("b", &["--variant", "clean-fid"]);
    assert!(out.code == 2 && out.stderr.contains("--resize pil-bicubic"), "{}", out.stderr);
    assert!(!case.temp.path("b").exists());
}

/// `tiny.onnx` whose means are multiplied by a weight.
pub(crate) fn weighted(path: &Utf8Path, weight: f32) {
    let part = |tag: u8, data: &[u8]| [&[tag, u8::try_from(data.len()).unwrap()], data].concat();
    let mut model = fs_err::read(fixture("features/tiny.onnx")).unwrap();
    // The node's output, which comes before the graph's.
    let mean = part(0x12, b"mean");
    let at = model.windows(mean.len()).position(|w| w == mean).unwrap();
    model[at..at + mean.len()].copy_from_slice(&part(0x12, b"mid_"));
    let words = [part(0x0A, b"mid_"), part(0x0A, b"w"), mean, part(0x22, b"Mul")].concat();
    let tensor = [vec![0x08, 1, 0x10, 1], part(0x42, b"w"), part(0x4A, &weight.to_le_bytes())].concat();
    // A second graph field is joined with the first.
    model.extend(part(0x3A, &[part(0x0A, &words), part(0x2A, &tensor)].concat()));
    fs_err::write(path, model).unwrap();
}

#[test]
fn a_network_that_gives_nan_is_bad_input_whatever_is_compared() {
    let case = Case::new(20);
    let (two, broken) = (case.temp.path("two.onnx"), case.temp.path("nan.onnx"));
    weighted(&two, 2.0);
    weighted(&broken, f32::NAN);
    let with = |network: &Utf8Path, out: &str, more: &[&str]| {
        let mut args = case.args(out, more);
        let at = args.iter().position(|a| a == "--extractor").unwrap();
        args[at + 1] = network.to_string();
        run(&args)
    };
    let good = with(&two, "two", &[]);
    assert_eq!(good.code, 0, "{}", good.stderr);
    let other = case.temp.path("two/metrics.json");
    for network in [&two, &broken] {
        let out = with(network, &format!("{}-alone", network.file_stem().unwrap()), &[]);
        assert_eq!(out.code, if network == &two { 0 } else { 2 }, "{}", out.stderr);
    }
    // The protocols differ in the digest, so a copy of the report says that it is the same network.
    let digest = |path: &Utf8Path| dpar_export::bundle::digest(path).unwrap().1;
    let text = fs_err::read_to_string(&other).unwrap().replace(&digest(&two), &digest(&broken));
    fs_err::write(&other, text.replace("two.onnx", "nan.onnx")).unwrap();
    let compared = with(&broken, "compared", &["--compare", other.as_str()]);
    assert!(compared.code == 2 && compared.stderr.contains("holds NaN"), "{}", compared.stderr);
    assert!(compared.stderr.contains("look at its weights"), "{}", compared.stderr);
}

#[test]
fn ctrl_c_does_not_wait_for_a_metric() {
    let case = Case::new(1100);
    // Minutes of subsets.
    let subsets = ["--kid-subsets", "100000", "--resume"];
    let mut child = case.start("long", &subsets);
    let reference = case.temp.path("long/reference/pool_3.f32");
    let started = Instant::now();
    while fs_err::metadata(&reference).map_or(0, |m| m.len()) < 150 * 12 {
        assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    // Fréchet distance, Precision and Recall of so few features are done by then.
    std::thread::sleep(Duration::from_secs(1));
    assert!(child.try_wait().unwrap().is_none(), "KID was too fast to be interrupted");
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(130) && stderr.contains("--resume"), "{stderr}");
    assert!(!case.temp.path("long/metrics.json").exists());
    // It goes on with the features that are there.
    let done = case.run("long", &["--resume"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
}

/// Writes the images of an archive as files, in order.
fn write_files(archive: &Utf8Path, folder: &Utf8Path, names: &[&str]) {
    let pixels = ArrayFile::open(archive).unwrap().u8("arr_0", &[None; 4]).unwrap();
    let pixels = pixels.as_slice().unwrap();
    for (image, name) in pixels.chunks(SIDE * SIDE * 3).zip(names) {
        fs_err::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        write_png(&folder.join(name), image, SIDE, SIDE).unwrap();
    }
}

#[test]
fn every_image_of_a_folder_counts_or_the_command_stops() {
    let mut case = Case::new(6);
    let archive = case.samples.clone();
    let evaluate = |case: &Case, out: &str, more: &[&str]| {
        let out = case.run(out, more);
        assert_eq!(out.code, 0, "{}", out.stderr);
        (json(&out)["samples"]["pixels_sha256"].clone(), json(&out), out.stderr)
    };
    let (all, ..) = evaluate(&case, "npz", &[]);
    // In this order: numbers, one of them beyond u64, then words.
    case.samples = case.temp.path("mixed");
    let names = ["2.png", "10.PNG", "99999999999999999999999.png", "a.png", "b.PNG", "word.png"];
    write_files(&archive, &case.samples, &names);
    fs_err::write(case.samples.join("notes.txt"), b"").unwrap();
    let (mixed, report, said) = evaluate(&case, "mixed-out", &[]);
    assert_eq!((mixed, &report["protocol"]["images"]), (all.clone(), &6.into()));
    assert_eq!(said.matches("notes.txt").count(), 1, "{said}");
    assert!(report["samples"].get("converted").is_none());
    // Class folders.
    let classes = case.temp.path("classes");
    write_files(
        &archive,
        &classes,
        &["n01/1.png", "n01/2.png", "n02/1.png", "n02/a.png", "n10/0.png", "n10/1.png"],
    );
    case.samples = classes;
    let flat = case.run("flat", &[]);
    assert!(flat.code == 2 && flat.stderr.contains("--recursive"), "{}", flat.stderr);
    assert_eq!(evaluate(&case, "recursive", &["--recursive"]).0, all);
    // A picture of another kind beside them.
    case.samples = case.temp.path("mixed");
    fs_err::rename(case.samples.join("word.png"), case.samples.join("word.jpg")).unwrap();
    let stopped = case.run("jpg", &[]);
    assert!(stopped.code == 2 && stopped.stderr.contains("word.jpg"), "{}", stopped.stderr);
    assert!(
        stopped.stderr.contains("--convert rgb") && !case.temp.path("jpg").exists(),
        "{}",
        stopped.stderr
    );
    // The file's bytes say what it is.
    let (converted, report, said) = evaluate(&case, "converted", &["--convert", "rgb"]);
    assert_eq!((converted, &report["samples"]["converted"]), (all, &"rgb".into()));
    assert_eq!(said.matches("alpha is dropped").count(), 1, "{said}");
    case.samples = archive;
    let nothing = case.run("nothing", &["--convert", "rgb"]);
    assert!(nothing.code == 2 && nothing.stderr.contains("folders of images"), "{}", nothing.stderr);
}
