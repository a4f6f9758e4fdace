//! What is hashed is what runs: a bundle that is swapped or written while it is used gives no result under its name.

use std::sync::atomic::{AtomicBool, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::CompareError;
use dpar_export::arrays::ArrayFile;
use dpar_export::bundle::{Bundle, BundleError};
use dpar_export::engines;
use dpar_export::evaluate::EvaluateError;
use dpar_export::features::{ExtractorOptions, FeatureExtractor};
use dpar_export::generate::sampler::SamplerOptions;
use dpar_export::generate::{DecodeOptions, Request};
use dpar_export::loaded::{LoadedBundle, RunError};
use dpar_export::parity::bisect::between;
use dpar_export::replay::ForcedTokens;
use dpar_export::verify::{probe, verify_golden};
use dpar_export_checkpoint::LoadOptions;

use crate::cli::{json, run};
use crate::common::{Temp, export, fixture, on, quiet};

const FIXTURE: &str = "variants/combined";
const WEIGHTS: &str = "onnx/dpar.onnx_data";

/// A bundle, and one of the same system with other weights.
fn two(temp: &Temp) -> [Utf8PathBuf; 2] {
    let [a, b] = ["a", "b"].map(|name| temp.path(name));
    let checkpoint = format!("{FIXTURE}/dpar");
    for bundle in [&a, &b] {
        export(&checkpoint, &LoadOptions::default(), bundle);
    }
    let path = b.join(WEIGHTS);
    let mut bytes = fs_err::read(&path).unwrap();
    for value in bytes.chunks_exact_mut(4) {
        let weight = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        value.copy_from_slice(&(-0.9 * weight).to_le_bytes());
    }
    fs_err::write(&path, bytes).unwrap();
    crate::forged::correct(&b);
    [a, b]
}

/// Writes the same bytes again: no hash tells, but another process could have written others.
fn touch(bundle: &Utf8Path) {
    let path = bundle.join(WEIGHTS);
    fs_err::write(&path, fs_err::read(&path).unwrap()).unwrap();
}

/// Puts each in the other's place.
fn swap(a: &Utf8Path, b: &Utf8Path) {
    let aside = a.with_file_name("aside");
    fs_err::rename(a, &aside).unwrap();
    fs_err::rename(b, a).unwrap();
    fs_err::rename(&aside, b).unwrap();
}

fn greedy() -> DecodeOptions {
    let sampler = SamplerOptions { greedy: true, ..SamplerOptions::default() };
    DecodeOptions { cfg_scale: 1.0, cfg_interval: None, sampler, seed: 0 }
}

#[test]
fn a_graph_that_was_swapped_after_it_was_hashed_is_refused_also_if_it_is_back() {
    let temp = Temp::new();
    let [a, b] = two(&temp);
    let load = |bundle: &Bundle, change: &dyn Fn()| {
        bundle.with_graph("score", &[], |file| {
            change();
            Ok::<_, BundleError>(file.path.to_owned())
        })
    };
    let changes: [(&str, &dyn Fn()); 4] = [
        ("swapped", &|| swap(&a, &b)),
        ("swapped and back", &|| {
            swap(&a, &b);
            swap(&a, &b);
        }),
        ("written", &|| touch(&a)),
        ("removed", &|| fs_err::remove_file(a.join("onnx/score.onnx")).unwrap()),
    ];
    for (what, change) in changes {
        let bundle = Bundle::open(&a).unwrap();
        load(&bundle, &|| {}).unwrap();
        let e = load(&bundle, change).unwrap_err();
        assert!(matches!(e, BundleError::Changed { .. }), "{what}: {e}");
        assert!(e.to_string().contains("changed while it was used"), "{what}: {e}");
        assert!(matches!(bundle.unchanged(), Err(BundleError::Changed { .. })), "{what}: it stays so");
    }
}

#[test]
#[cfg(unix)]
fn a_link_to_a_bundle_that_is_set_elsewhere_does_not_change_what_runs() {
    let temp = Temp::new();
    let [a, b] = two(&temp);
    let link = temp.path("current");
    std::os::unix::fs::symlink(&a, &link).unwrap();
    let bundle = Bundle::open(&link).unwrap();
    fs_err::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&b, &link).unwrap();
    let requests = [Request { index: 0, class: 0 }];
    let streams = on(&bundle, "tract").decode(&requests, &greedy(), 1, &mut quiet).unwrap();
    let own = Bundle::open(&a).unwrap();
    assert_eq!(bundle.manifest_sha256(), own.manifest_sha256());
    let wanted = on(&own, "tract").decode(&requests, &greedy(), 1, &mut quiet).unwrap();
    assert_eq!(streams[0].tokens, wanted[0].tokens);
}

/// A job on a runtime; it calls `change` after its first step.
type Job<'a> = (&'a str, &'a dyn Fn(&LoadedBundle<'_>, &dyn Fn()) -> Result<(), CompareError>);

#[test]
fn no_job_gives_a_result_of_a_bundle_that_was_written_while_it_ran() {
    let temp = Temp::new();
    let [a, _] = two(&temp);
    let golden = fixture(FIXTURE);
    let ids = [0_i64; 16];
    let pixels = [0.0_f32; 3 * 8 * 8];
    let requests = [Request { index: 0, class: 0 }];
    let jobs: &[Job<'_>] = &[
        ("decode", &|r, change| {
            r.decode(&requests, &greedy(), 1, &mut |_, _| {
                change();
                true
            })
            .map(drop)
            .map_err(CompareError::from)
        }),
        ("score", &|r, change| {
            r.score(&ids, &[0], None, 1, &mut |_, _| {
                change();
                true
            })
            .map(drop)
            .map_err(CompareError::from)
        }),
        ("images", &|r, change| {
            r.images(&ids, 1, &mut |_, _| {
                change();
                true
            })
            .map(drop)
            .map_err(CompareError::from)
        }),
        ("codes", &|r, change| {
            r.codes(&pixels, 1, &mut |_, _| {
                change();
                true
            })
            .map(drop)
            .map_err(CompareError::from)
        }),
        ("probe", &|r, change| {
            probe(r, 1, &mut |_, _| {
                change();
                true
            })
            .map(drop)
        }),
        ("verify", &|r, change| {
            verify_golden(r, &golden, 1, &mut |_, _| {
                change();
                true
            })
            .map(drop)
        }),
        ("bisect", &|r, change| {
            let forced = ForcedTokens { tokens: vec![0; 16], labels: vec![0] };
            let other = on(r.bundle(), "ort");
            between(["tract", "ort"], r, &other, &forced, 1.0, &mut |_, _| {
                change();
                true
            })
            .map(drop)
        }),
    ];
    for (name, job) in jobs {
        let bundle = Bundle::open(&a).unwrap();
        let runtime = on(&bundle, "tract");
        job(&runtime, &|| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
        let once = AtomicBool::new(false);
        let change = || {
            if !once.swap(true, Ordering::Relaxed) {
                touch(&a);
            }
        };
        let e = job(&runtime, &change).expect_err(name);
        let changed = matches!(e, CompareError::Run(RunError::Bundle(BundleError::Changed { .. })));
        assert!(changed, "{name}: {e}");
    }
}

#[test]
fn no_activations_come_from_a_network_that_was_written_while_it_ran() {
    let temp = Temp::new();
    let (file, bundle) = (temp.path("tiny.onnx"), temp.path("b"));
    fs_err::copy(fixture("features/tiny.onnx"), &file).unwrap();
    let made = run(&["--component", "features", file.as_str(), "-o", bundle.as_str(), "--input-size", "16"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let pixels = [0_u8; 2 * 16 * 16 * 3];
    let options = ExtractorOptions { input_size: Some(16), ..ExtractorOptions::default() };
    for (path, written) in [(&file, file.clone()), (&bundle, bundle.join("onnx/features.onnx"))] {
        let engine = engines::create("tract", &crate::common::engine_options("tract")).unwrap();
        let mut extractor = FeatureExtractor::open(path, engine, &options).unwrap();
        extractor.run(&pixels, (16, 16), &mut quiet).unwrap();
        fs_err::write(&written, fs_err::read(&written).unwrap()).unwrap();
        let e = extractor.run(&pixels, (16, 16), &mut quiet).unwrap_err();
        let EvaluateError::Extractor(e) = e else { panic!("{path}: {e}") };
        assert!(matches!(e, RunError::Bundle(BundleError::Changed { .. })), "{path}: {e}");
    }
}

#[test]
fn a_copy_for_bisection_is_what_was_hashed_and_goes_nowhere_else() {
    let temp = Temp::new();
    let [a, b] = two(&temp);
    let folder = |name: &str| {
        let folder = temp.path(name);
        fs_err::create_dir(&folder).unwrap();
        folder
    };
    let bundle = Bundle::open(&a).unwrap();
    let first = folder("first");
    let (spec, _, bytes) = bundle.copy_graph("score", &[], &first).unwrap();
    assert_eq!((spec.name.as_str(), bytes), ("score", fs_err::read(a.join("onnx/score.onnx")).unwrap()));
    let names: Vec<String> =
        first.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
    assert_eq!(names, ["dpar.onnx_data"]);
    assert_eq!(fs_err::read(first.join("dpar.onnx_data")).unwrap(), fs_err::read(a.join(WEIGHTS)).unwrap());
    // A file that is there already is not written over.
    assert!(bundle.copy_graph("score", &[], &first).is_err());
    // Other weights in their place; then a graph in its place that names a file outside.
    fs_err::copy(b.join(WEIGHTS), a.join(WEIGHTS)).unwrap();
    let e = bundle.copy_graph("score", &[], &folder("second")).unwrap_err();
    assert!(matches!(e, BundleError::Changed { .. }), "{e}");
    let graph = a.join("onnx/score.onnx");
    let mut bytes = fs_err::read(&graph).unwrap();
    let name = b"dpar.onnx_data";
    while let Some(at) = bytes.windows(name.len()).position(|w| w == name) {
        bytes[at..at + name.len()].copy_from_slice(b"../victim_data");
    }
    fs_err::write(&graph, bytes).unwrap();
    fs_err::write(temp.path("victim_data"), "precious").unwrap();
    let e = bundle.copy_graph("score", &[], &folder("third")).unwrap_err();
    assert!(matches!(e, BundleError::Changed { .. }), "{e}");
    assert_eq!(fs_err::read_to_string(temp.path("victim_data")).unwrap(), "precious");
}

/// Runs that are made while two bundles change places.
const RUNS: usize = 24;

/// Ends the swaps, also where a run panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls `f` so often while `a` and `b` change places, after shorter and longer times.
fn while_swapping(a: &Utf8Path, b: &Utf8Path, mut f: impl FnMut()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                swap(a, b);
                std::thread::sleep(std::time::Duration::from_millis(turn % 8 * 60));
            }
        });
        let _stop = Stop(&stop);
        (0..RUNS).for_each(|_| f());
    });
}

#[test]
fn generate_reports_the_bundle_whose_tokens_it_wrote() {
    let temp = Temp::new();
    let [a, b] = two(&temp);
    let out = temp.path("out");
    let generate = || {
        let args = ["--num", "2", "--greedy", "--no-images", "--force", "--json", "-o", out.as_str()];
        run(&[&["generate", a.as_str()], &args[..]].concat())
    };
    let tokens = || ArrayFile::open(out.join("trace.npz")).unwrap().i64("tokens", &[None, None]).unwrap();
    let mut known = Vec::new();
    for _ in 0..2 {
        let done = generate();
        assert_eq!(done.code, 0, "{}", done.stderr);
        known.push((json(&done)["bundle"].as_str().unwrap().to_owned(), tokens()));
        swap(&a, &b);
    }
    assert!(known[0].0 != known[1].0 && known[0].1 != known[1].1, "two bundles that can be told apart");
    let mut refused = 0;
    while_swapping(&a, &b, || {
        let _ = fs_err::remove_dir_all(&out);
        let done = generate();
        match done.code {
            0 => {
                let bundle = json(&done)["bundle"].as_str().unwrap().to_owned();
                assert!(known.contains(&(bundle, tokens())), "the tokens are those of the other bundle");
            }
            // Between two renames nothing is there.
            2 => assert!(done.stderr.contains("is not a bundle"), "{}", done.stderr),
            code => {
                refused += 1;
                assert_eq!(code, 5, "{}", done.stderr);
                assert!(done.stdout.is_empty() && !out.exists(), "a refused run leaves nothing");
            }
        }
    });
    assert!(refused > 0, "no run met a swap");
}

#[test]
fn verify_never_vouches_for_one_bundle_and_runs_the_other() {
    let temp = Temp::new();
    let [a, b] = two(&temp);
    let (golden, attestation) = (temp.path("golden"), temp.path("a.intoto.jsonl"));
    // Outputs of the one, a signature for the other: nothing passes both.
    let made = run(&["reference", b.as_str(), "--num", "1", "-o", golden.as_str()]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let key = crate::attest::private_key(&temp);
    let signed = run(&["attest", a.as_str(), "--key", key.as_str(), "-o", attestation.as_str()]);
    assert_eq!(signed.code, 0, "{}", signed.stderr);
    let public = crate::attest::key("test-only-public.pem");
    let own = ["--reference", golden.as_str(), "--no-probes"];
    let attested = ["--key", public.as_str(), "--attestation", attestation.as_str()];
    let verify = |bundle: &Utf8Path, more: &[&str]| run(&[&["verify", bundle.as_str()], more].concat());
    assert_eq!(verify(&b, &own).code, 0);
    assert_eq!(verify(&a, &attested).code, 0);
    let both = [&own[..], &attested].concat();
    assert_eq!((verify(&a, &both).code, verify(&b, &both).code), (1, 5));
    let mut refused = 0;
    while_swapping(&a, &b, || {
        let done = verify(&a, &both);
        assert!([1, 2, 5].contains(&done.code), "{}: {}{}", done.code, done.stdout, done.stderr);
        assert!(done.code != 2 || done.stderr.contains("is not a bundle"), "{}", done.stderr);
        refused += usize::from(done.stderr.contains("changed while it was used"));
    });
    assert!(refused > 0, "no run met a swap");
}
