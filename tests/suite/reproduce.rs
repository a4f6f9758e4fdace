//! Reference results made again: the trained systems pass on every engine, changed ones do not.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::arrays::{ArrayFile, ArrayRef, write_npz};
use dpar_export::bundle::{ExtractorSpec, write_extractor};
use dpar_export::features::{ExtractorOptions, FeatureExtractor};
use dpar_export::generate::DecodeOptions;
use dpar_export::reproduce::paper::{Paper, gate};
use dpar_export::reproduce::{ReferenceFolder, ReproduceOptions, SystemReport, reproduce, run_seed};
use dpar_export_checkpoint::{LoadOptions, load_extractor};
use dpar_export_metrics::Verdict;
use dpar_export_spec::{ComponentKind, Precision};

use crate::cli::{json, run};
use crate::common::{Temp, change_weights, export, export_as, fixture, llamagen, on};
use crate::extractor::{efficientnet_weights, open};

/// Fewest images that tell the trained system from the changed ones by every gate that must.
const IMAGES: usize = 32;
/// Engines in these tests; `streams` holds the others against the same reference.
const ENGINES: [&str; 2] = ["tract", "ort"];
/// Real images of the distances in these tests.
const REAL: usize = 64;
/// Input side of the extractor in these tests, for speed; the network is the same.
const SIDE: usize = 96;

fn options(num: usize) -> ReproduceOptions {
    ReproduceOptions { num: Some(num), batch: 32, threads: 2 }
}

/// EfficientNet-Lite0 at [`SIDE`] pixels.
fn small_extractor(temp: &Temp) -> Utf8PathBuf {
    let kind = ComponentKind::EfficientnetLite0;
    let loaded = load_extractor(&efficientnet_weights(), kind, Some(SIDE), None).unwrap();
    let spec = ExtractorSpec::of(&loaded, None, None).unwrap();
    let out = temp.path("extractor");
    write_extractor(&loaded, &spec, &out, false, &mut |_| true).unwrap();
    out
}

fn emoji32() -> ReferenceFolder {
    ReferenceFolder::open(&fixture("emoji32"), None, Some(REAL)).unwrap()
}

fn verdict(report: &SystemReport, gate: &str) -> Verdict {
    let found = report.gates.iter().find(|g| g.name == gate);
    found.unwrap_or_else(|| panic!("no gate {gate}: {:#?}", report.gates)).verdict
}

/// The DPAR fixture with another configuration and weights that `change` may alter.
fn changed_dpar(temp: &Temp, threshold: &str, change: fn(&str, &mut [f32])) -> Utf8PathBuf {
    let from = fixture("emoji32/dpar");
    let folder = temp.path("changed/dpar");
    let weights = "checkpoints/final/model.safetensors";
    fs_err::create_dir_all(folder.join("checkpoints/final")).unwrap();
    let config = fs_err::read_to_string(from.join("config.yaml")).unwrap();
    assert!(config.contains("threshold: 4.35"));
    fs_err::write(folder.join("config.yaml"), config.replace("threshold: 4.35", threshold)).unwrap();
    change_weights(&from.join(weights), &folder.join(weights), change);
    let bundle = temp.path("changed/b");
    let parts = LoadOptions {
        entropy: Some(fixture("emoji32/entropy")),
        vq: Some(fixture("emoji32/vq.pt")),
        ..LoadOptions::default()
    };
    export(folder.as_str(), &parts, &bundle);
    bundle
}

fn again(bundle: &Utf8Path, extractor: Option<&mut FeatureExtractor>, num: usize) -> SystemReport {
    let bundle = dpar_export::bundle::Bundle::open(bundle).unwrap();
    reproduce(&on(&bundle, "ort"), &mut emoji32(), extractor, options(num), &mut |_, _, _| true).unwrap()
}

#[test]
fn the_trained_dpar_passes() {
    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let mut extractor = open(&small_extractor(&temp), "ort", &ExtractorOptions::default());
    let mut reference = emoji32();
    for engine in ENGINES {
        let report = reproduce(
            &on(&bundle, engine),
            &mut reference,
            Some(&mut extractor),
            options(IMAGES),
            &mut |_, _, _| true,
        )
        .unwrap();
        assert_eq!(report.verdict, Verdict::Pass, "{engine}: {:#?}", report.gates);
        let names: Vec<&str> = report.gates.iter().map(|g| g.name.as_str()).collect();
        let distance = "Fréchet distance on efficientnet-lite0";
        assert_eq!(names, ["classes", "streams", "mean steps", distance, "KID"], "{engine}");
        assert!(report.flips.len() <= 3, "{engine}: {:#?}", report.flips);
        assert_eq!(report.steps.histogram.iter().map(|(_, n)| n).sum::<usize>(), IMAGES);
        let metrics = report.metrics.unwrap();
        assert!(metrics.distance.unwrap() > 0.0 && metrics.score.unwrap() > 1.0, "{metrics:?}");
        assert!((0.0..=1.0).contains(&metrics.precision.unwrap()), "{metrics:?}");
    }
}

/// Streams of quantized weights part nearly always: their decisions are counted on the reference's tokens, and whether the images
/// are as good is for the distances to say.
#[test]
fn a_quantized_dpar_is_judged_by_its_decisions() {
    let temp = Temp::new();
    crate::quantize::export_quantized("emoji32/dpar", "int8", &temp.path("b"));
    let report = again(&temp.path("b"), None, 192);
    let names: Vec<&str> = report.gates.iter().map(|g| g.name.as_str()).collect();
    let given =
        ["stream entropy", "stream patch lengths", "stream mean steps"].map(|g| format!("{g}, given tokens"));
    assert_eq!(names[..2], ["classes", "streams"]);
    assert_eq!(names[2..], given);
    for gate in &given {
        assert_eq!(verdict(&report, gate), Verdict::Pass, "{:#?}", report.gates);
    }
    assert!(report.flips.len() > 100, "{}", report.flips.len());
    assert_eq!((verdict(&report, "streams"), report.verdict), (Verdict::Inconclusive, Verdict::Inconclusive));
}

#[test]
fn the_baseline_passes() {
    let temp = Temp::new();
    let (file, parts) = llamagen("emoji32");
    let bundle = export(file, &parts, &temp.path("b"));
    for engine in ENGINES {
        let runtime = on(&bundle, engine);
        let report = reproduce(&runtime, &mut emoji32(), None, options(IMAGES), &mut |_, _, _| true).unwrap();
        assert_eq!(report.verdict, Verdict::Pass, "{engine}: {:#?}", report.gates);
        assert_eq!((report.steps.mean, report.steps.std), (64.0, 0.0));
        assert_eq!((report.metrics.is_none(), report.parameters > 3_000_000), (true, true));
    }
}

#[test]
fn a_threshold_ten_percent_higher_or_lower_fails_by_streams_and_by_steps() {
    for threshold in ["threshold: 4.785", "threshold: 3.915"] {
        let temp = Temp::new();
        let report = again(&changed_dpar(&temp, threshold, |_, _| {}), None, IMAGES);
        assert_eq!(report.verdict, Verdict::Fail, "{:#?}", report.gates);
        for gate in ["streams", "mean steps"] {
            assert_eq!(verdict(&report, gate), Verdict::Fail, "{threshold} {gate}: {:#?}", report.gates);
        }
    }
}

#[test]
fn perturbed_weights_fail_and_the_distances_say_how_sure_they_are() {
    let temp = Temp::new();
    let bundle = changed_dpar(&temp, "threshold: 4.35", |name, values| {
        if name.contains("feed_forward") {
            values.iter_mut().enumerate().for_each(|(i, v)| *v *= if i % 2 == 0 { 1.02 } else { 0.98 });
        }
    });
    let mut extractor = open(&small_extractor(&temp), "ort", &ExtractorOptions::default());
    let report = again(&bundle, Some(&mut extractor), IMAGES);
    assert_eq!((report.verdict, verdict(&report, "streams")), (Verdict::Fail, Verdict::Fail));
    for gate in report.gates.iter().filter(|g| g.margin.is_some()) {
        assert!(gate.standard_error.unwrap() > 0.0, "{gate:#?}");
        let [low, high] = gate.interval_90.unwrap();
        assert!(low < gate.difference.unwrap() && gate.difference.unwrap() < high, "{gate:#?}");
    }
    // So few images that all differ cannot show that two distances agree.
    assert_ne!(verdict(&report, "KID"), Verdict::Pass);
}

/// The baseline with a weight of every layer one per cent off.
fn changed_baseline(temp: &Temp) -> (Utf8PathBuf, LoadOptions) {
    let (file, parts) = llamagen("emoji32");
    let changed = temp.path("c2i.safetensors");
    change_weights(&fixture(file), &changed, |name, values| {
        if name.contains("wo") {
            values.iter_mut().for_each(|v| *v *= 1.01);
        }
    });
    (changed, parts)
}

#[test]
fn perturbed_weights_of_the_baseline_fail_by_their_streams() {
    let temp = Temp::new();
    let (changed, parts) = changed_baseline(&temp);
    export(changed.as_str(), &parts, &temp.path("b"));
    let report = again(&temp.path("b"), None, IMAGES);
    assert_eq!((report.verdict, verdict(&report, "streams")), (Verdict::Fail, Verdict::Fail));
    assert_eq!(verdict(&report, "mean steps"), Verdict::Pass, "a baseline always takes a step a token");
}

/// Near-ties of fp16 are so wide that they tell no good bundle from a damaged one, and a baseline has no steps that could differ:
/// without distances nothing says that the images are as good.
#[test]
fn perturbed_weights_of_an_fp16_baseline_do_not_pass_without_distances() {
    let temp = Temp::new();
    let (file, parts) = llamagen("emoji32");
    export_as(file, Precision::Fp16, &parts, &temp.path("good"));
    let good = again(&temp.path("good"), None, IMAGES);
    assert_ne!(verdict(&good, "streams"), Verdict::Fail, "{:#?}", good.gates);
    assert_eq!(verdict(&good, "mean steps"), Verdict::Pass);
    let (changed, parts) = changed_baseline(&temp);
    export_as(changed.as_str(), Precision::Fp16, &parts, &temp.path("bad"));
    let bad = again(&temp.path("bad"), None, IMAGES);
    let found = (bad.verdict, verdict(&bad, "streams"));
    assert_eq!(found, (Verdict::Inconclusive, Verdict::Inconclusive), "{:#?}", bad.gates);
}

#[test]
fn the_command_prints_the_posters_table_and_its_exit_code_is_the_verdict() {
    let temp = Temp::new();
    let (dpar, baseline) = (temp.path("dpar"), temp.path("llamagen"));
    export("emoji32/dpar", &LoadOptions::default(), &dpar);
    let (file, parts) = llamagen("emoji32");
    export(file, &parts, &baseline);
    let extractor = small_extractor(&temp);
    let reference = fixture("emoji32");
    let base = ["reproduce", dpar.as_str(), "--reference", reference.as_str()];
    let with = |more: &[&str]| run(&[&base[..], more].concat());
    let both = with(&[
        "--baseline",
        baseline.as_str(),
        "--extractor",
        extractor.as_str(),
        "--extractor-engine",
        "ort",
        "--engine",
        "ort",
        "--num",
        "8",
        "--real",
        "16",
    ]);
    assert_eq!(both.code, 0, "{}{}", both.stdout, both.stderr);
    for text in
        ["Fréchet distance on efficientnet-lite0", "emoji32 (dpar)", "(llamagen)", "3.7M", "KID·10³", "64.00"]
    {
        assert!(both.stdout.contains(text), "{text}: {}", both.stdout);
    }
    assert!(!both.stdout.contains("FID"), "another network's distance is no FID: {}", both.stdout);
    let few = json(&with(&["--num", "4", "--engine", "ort", "--json"]));
    assert_eq!((&few["verdict"], &few["systems"][0]["images"]), (&"pass".into(), &4.into()));
    assert_eq!(few["schema_version"], 2);

    let many = with(&["--num", "5000"]);
    assert!(many.code == 2 && many.stderr.contains("the reference has 1024"), "{}", many.stderr);
    let nowhere = run(&["reproduce", dpar.as_str(), "--reference", "nowhere"]);
    assert!(nowhere.code == 2 && nowhere.stderr.contains("reference.json"), "{}", nowhere.stderr);
    let system = with(&["--extractor", dpar.as_str(), "--num", "4"]);
    assert!(system.code == 2 && system.stderr.contains("not a feature extractor"), "{}", system.stderr);
    let wrong = run(&["reproduce", extractor.as_str(), "--reference", reference.as_str()]);
    assert!(wrong.code == 2 && wrong.stderr.contains("is a feature extractor"), "{}", wrong.stderr);
}

#[test]
fn runs_are_held_against_the_published_table() {
    let temp = Temp::new();
    let report = |name: &str, fid: f64, images: u64| {
        let path = temp.path(name);
        let text = format!(
            r#"{{"images": {images}, "mean_steps": 142.3, "metrics": {{"fid": {{"value": {fid}}}, "recall": 0.492}}}}"#
        );
        fs_err::write(&path, text).unwrap();
        path.to_string()
    };
    let paper =
        |files: &[&str]| run(&[&["reproduce", "--paper", "DPAR-B", "--json", "--runs"], files].concat());
    let good = [report("a", 3.97, 50_000), report("b", 4.01, 50_000), report("c", 3.99, 50_000)];
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    let pass = paper(&good);
    assert_eq!((pass.code, &json(&pass)["gates"][0]["name"]), (0, &"FID".into()), "{}", pass.stderr);
    assert_eq!(json(&pass)["schema_version"], 2);
    let source = json(&pass)["source"].as_str().unwrap().to_owned();
    assert!(source.contains("sampled under bf16 autocast with float32 weights"), "{source}");
    assert_eq!(paper(&good[..1]).code, 4, "one run within 1.3 % decides nothing");
    let off = report("d", 4.3, 50_000);
    assert_eq!(paper(&[&off]).code, 1);
    let with = |name: &str, extractor: &str, pixels: &str| {
        let path = temp.path(name);
        let text = format!(
            r#"{{"mean_steps": 142,
                "protocol": {{"images": 50000, "image_size": [256, 256], "settings": {{"variant": "guided-diffusion"}},
                    "extractor": {{"name": "{extractor}", "resize": "tf1-bilinear"}}, "sampling": {{"seed": 1}}}},
                "samples": {{"pixels_sha256": "{pixels}"}}, "metrics": {{"fid": {{"value": 3.98}}}}}}"#
        );
        fs_err::write(&path, text).unwrap();
        path.to_string()
    };
    let [one, two, three] = [with("g", "x", "1"), with("h", "x", "2"), with("k", "x", "4")];
    let other = with("i", "y", "3");
    // Another file about the same samples.
    let twice = temp.path("j").to_string();
    fs_err::write(&twice, fs_err::read_to_string(&one).unwrap() + "\n").unwrap();
    assert_eq!(paper(&[&one, &two, &three]).code, 0);
    let unlike = paper(&[&one, &two, &other]);
    assert!(unlike.code == 2 && unlike.stderr.contains("different protocols"), "{}", unlike.stderr);
    let same = paper(&[&one, &two, &twice]);
    assert!(same.code == 2 && same.stderr.contains("same samples"), "{}", same.stderr);
    let again = paper(&[good[0], good[1], good[2], good[1]]);
    assert!(again.code == 2 && again.stderr.contains("same report"), "{}", again.stderr);
    let copy = temp.path("copy");
    fs_err::copy(good[0], &copy).unwrap();
    let copied = paper(&[good[0], good[1], copy.as_str()]);
    assert!(copied.code == 2 && copied.stderr.contains("same report"), "{}", copied.stderr);
    for (from, to, said) in [
        ("guided-diffusion", "clean-fid", "the variant clean-fid"),
        ("tf1-bilinear", "pil-bicubic", "resized for the network by pil-bicubic"),
        ("[256, 256]", "[384, 384]", "[384,384] px; every row of the table is evaluated at 256 px"),
        (r#""image_size": [256, 256], "#, "", "evaluated at 256 px"),
        (r#""mean_steps": 142,"#, r#""mean_steps": 142, "schema": 2,"#, "schema 2, this version reads 1"),
    ] {
        let text = fs_err::read_to_string(&one).unwrap().replace(from, to);
        let path = temp.path("other-protocol");
        fs_err::write(&path, text).unwrap();
        let refused = paper(&[path.as_str()]);
        assert!(refused.code == 2 && refused.stderr.contains(said), "{from}: {}", refused.stderr);
    }
    let looked = run(&["reproduce", "--paper", "DPAR-B", "--extractor", "x.onnx", "--runs", good[0]]);
    assert!(looked.code == 2 && looked.stderr.contains("finished runs have no images"), "{}", looked.stderr);
    let few = report("e", 3.98, 10_000);
    assert_eq!(paper(&[good[0], good[1], &few]).code, 4, "another number of images is not compared");
    let unknown = run(&["reproduce", "--paper", "DPAR-Q", "--runs", good[0]]);
    assert!(unknown.code == 2 && unknown.stderr.contains("DPAR-384-XXL"), "{}", unknown.stderr);
    fs_err::write(temp.path("f"), "{}").unwrap();
    let empty = paper(&[temp.path("f").as_str()]);
    assert!(empty.code == 2 && empty.stderr.contains("metrics.fid"), "{}", empty.stderr);
}

/// Reports that hold the mean steps alone.
fn step_reports(temp: &Temp, steps: &[f64]) -> Vec<String> {
    let report = |(i, steps): (usize, &f64)| {
        let path = temp.path(&format!("steps-{i}.json"));
        fs_err::write(&path, format!(r#"{{"samples": {{"mean_steps": {steps}}}}}"#)).unwrap();
        path.to_string()
    };
    steps.iter().enumerate().map(report).collect()
}

#[test]
fn steps_alone_fail_a_row_but_never_pass_it() {
    let temp = Temp::new();
    let paper = |steps: &[f64]| {
        let files = step_reports(&temp, steps);
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        run(&[&["reproduce", "--paper", "DPAR-B", "--json", "--runs"], &files[..]].concat())
    };
    let right = paper(&[142.1, 141.9, 142.0]);
    let gates = &json(&right)["gates"];
    assert_eq!(
        (right.code, &gates[0]["name"], &gates[0]["verdict"]),
        (4, &"FID".into(), &"inconclusive".into())
    );
    assert_eq!((&gates[1]["name"], &gates[1]["verdict"]), (&"mean steps".into(), &"pass".into()));
    // 36 steps of 64 tokens are not the 142 of 256 that were printed.
    let wrong = paper(&[36.1, 35.9, 36.0]);
    assert_eq!((wrong.code, json(&wrong)["runs"].as_array().unwrap().len()), (1, 3), "{}", wrong.stderr);
}

#[test]
fn several_seeds_of_a_bundle_are_runs() {
    let temp = Temp::new();
    let opened = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let runtime = on(&opened, "ort");
    let recorded = emoji32().streams(opened.system()).unwrap();
    let one = |seed: u64| {
        let decode = DecodeOptions { seed, ..recorded.options() };
        run_seed(&runtime, &decode, 4, None, None, options(4), &mut |_, _, _| true).unwrap()
    };
    let runs = [1, 2, 3].map(one);
    let table = Paper::table().unwrap();
    // 36 steps of 64 tokens are not the 142 of 256 that were printed.
    let gates = gate(&table, table.row("DPAR-B").unwrap(), &runs).unwrap();
    assert_eq!(Verdict::all(gates.iter().map(|g| g.verdict)), Verdict::Fail, "{gates:#?}");
    assert!(runs.iter().all(|r| r.images == Some(4) && r.steps.is_some_and(|s| (17.0..59.0).contains(&s))));

    let bundle = temp.path("b").to_string();
    let reference = fixture("emoji32").to_string();
    let base = [
        "reproduce",
        &bundle,
        "--reference",
        &reference,
        "--paper",
        "DPAR-B",
        "--num",
        "4",
        "--engine",
        "ort",
    ];
    let with = |more: &[&str]| run(&[&base[..], more].concat());
    let other = with(&["--seeds", "1,2,3"]);
    assert!(
        other.code == 2 && other.stderr.contains("64 tokens, the row DPAR-B has 256"),
        "{}",
        other.stderr
    );
    let twice = with(&["--seeds", "1,1,2"]);
    assert!(twice.code == 2 && twice.stderr.contains("twice"), "{}", twice.stderr);
    assert_eq!(with(&[]).code, 2, "no seeds");
}

#[test]
fn what_cannot_be_honoured_is_an_error() {
    let temp = Temp::new();
    let bundle = temp.path("b").to_string();
    export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    // A reference run without real images.
    let folder = temp.path("reference");
    fs_err::create_dir_all(&folder).unwrap();
    for name in ["reference.json", "streams_dpar.safetensors"] {
        fs_err::copy(fixture("emoji32").join(name), folder.join(name)).unwrap();
    }
    let network = fixture("features/tiny.onnx").to_string();
    let base = ["reproduce", &bundle, "--reference", folder.as_str(), "--num", "4", "--engine", "ort"];
    let with = |more: &[&str]| run(&[&base[..], more].concat());
    let nothing = with(&["--extractor", &network]);
    assert!(nothing.code == 2 && nothing.stderr.contains("--images DIR|X.npz"), "{}", nothing.stderr);
    // A network whose features are no numbers is an input, whatever it was to be compared with.
    let (nan, extractor) = (temp.path("nan.onnx"), temp.path("nan").to_string());
    crate::evaluate::weighted(&nan, f32::NAN);
    let made = ["--component", "features", nan.as_str(), "--input-size", "16", "-o", &extractor];
    assert_eq!(run(&made).code, 0);
    let real = fixture("emoji32/real_images.npz").to_string();
    let broken = with(&["--extractor", &extractor, "--images", &real, "--real", "4"]);
    assert!(broken.code == 2 && broken.stderr.contains("holds NaN"), "{}{}", broken.stdout, broken.stderr);
    assert!(broken.stderr.contains("look at its weights") && broken.stdout.is_empty(), "{}", broken.stderr);
    let same = with(&["--baseline", &bundle]);
    assert!(same.code == 2 && same.stderr.contains("both dpar"), "{}", same.stderr);
    assert_eq!(with(&[]).code, 0);
}

#[test]
fn stored_statistics_of_the_real_images_are_used_as_they_are() {
    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let mut extractor = open(&small_extractor(&temp), "ort", &ExtractorOptions::default());
    let width = extractor.widths()[0];
    let pixels: Vec<u8> = {
        let file = ArrayFile::open(fixture("emoji32/real_images.npz")).unwrap();
        let array = file.u8("arr_0", &[None, Some(32), Some(32), Some(3)]).unwrap();
        array.iter().copied().take(8 * 32 * 32 * 3).collect()
    };
    // Statistics that no images have: every mean is 100, beyond what the network gives, and the identity.
    let (mu, mut sigma) = (vec![100.0; width], vec![0.0; width * width]);
    (0..width).for_each(|i| sigma[i * width + i] = 1.0);
    let write = |name: &str, network: &str| {
        let path = temp.path(name);
        let (vector, matrix, length) = ([width], [width, width], [network.len()]);
        let arrays = [
            ("arr_0", ArrayRef::u8(&[8, 32, 32, 3], &pixels)),
            ("mu", ArrayRef::f64(&vector, &mu)),
            ("sigma", ArrayRef::f64(&matrix, &sigma)),
            ("extractor", ArrayRef::u8(&length, network.as_bytes())),
        ];
        write_npz(&path, &arrays).unwrap();
        path
    };
    let mut again = |images: &Utf8Path| {
        let mut reference = ReferenceFolder::open(&fixture("emoji32"), Some(images), None)?;
        let runtime = on(&bundle, "ort");
        reproduce(&runtime, &mut reference, Some(&mut extractor), options(8), &mut |_, _, _| true)
    };
    let stored = again(&write("stored.npz", "efficientnet-lite0")).unwrap();
    let plain = temp.path("plain.npz");
    write_npz(&plain, &[("arr_0", ArrayRef::u8(&[8, 32, 32, 3], &pixels))]).unwrap();
    let plain = again(&plain).unwrap();
    let (stored, plain) = (stored.reference_metrics.unwrap(), plain.reference_metrics.unwrap());
    assert_eq!((stored.kid, stored.recall), (plain.kid, plain.recall), "these see the images");
    let far = 1000.0 * width as f64;
    assert!(stored.distance.unwrap() > far && plain.distance.unwrap() < far, "{stored:?} {plain:?}");
    let other = again(&write("other.npz", "inception")).unwrap_err().to_string();
    assert!(other.contains("features of inception, the extractor is efficientnet-lite0"), "{other}");
}
