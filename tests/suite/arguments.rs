//! Arguments that commands share: the same everywhere, honoured by each, and refused where they would have no effect.

use dpar_export_checkpoint::LoadOptions;

use crate::cli::{json, run};
use crate::common::{ENGINES, Temp, export, fixture, llamagen};
use crate::evaluate::images;

/// Of several engines those run on a device that can, and a device that none of them has is refused.
#[test]
fn comparisons_take_a_device() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    let (file, options) = llamagen("llamagen-small");
    export(file, &options, &bundle);
    let golden = fixture("llamagen-small");
    let parity = ["parity", bundle.as_str(), "--no-probes", "--num", "1", "--engines", "tract,ort", "--json"];
    let with = |more: &[&str]| run(&[&parity[..], more].concat());
    let plain = with(&[]);
    let cpu = with(&["--device", "cpu"]);
    assert_eq!((plain.code, cpu.code), (0, 0), "{}{}", plain.stderr, cpu.stderr);
    assert_eq!(json(&plain)["engines"][1]["info"], json(&cpu)["engines"][1]["info"]);
    // The processor's ONNX Runtime has no GPU provider; the embedded engine stays where it is.
    let gpu = with(&["--device", "cuda"]);
    assert_eq!(gpu.code, 3, "{}{}", gpu.stdout, gpu.stderr);
    let report = json(&gpu);
    assert_eq!(report["engines"][0]["status"], "ran");
    assert_eq!(report["engines"][0]["info"]["device"], "cpu");
    assert_eq!(report["engines"][1]["status"], "not_run");
    assert!(report["engines"][1]["reason"].as_str().unwrap().contains("CUDAExecutionProvider"));
    // Nobody named it, and it is asked for all the same.
    let unnamed = run(&["parity", bundle.as_str(), "--no-probes", "--num", "1", "--device", "nvrtx"]);
    assert!(unnamed.code == 3 && unnamed.stdout.contains("NvTensorRTRTX"), "{}", unnamed.stdout);

    let alone = ["parity", bundle.as_str(), "--engines", "tract", "--reference", golden.as_str()];
    for (option, value) in [("--device", "cuda"), ("--runtime-cache", "c")] {
        let refused = run(&[&alone[..], &[option, value]].concat());
        let why = "is for an engine that is not in the run";
        assert!(refused.code == 2 && refused.stderr.contains(why), "{option}: {}", refused.stderr);
    }

    let bisect = ["bisect", bundle.as_str(), "--num", "1", "--engines", "tract,ort"];
    let same = run(&[&bisect[..], &["--device", "cpu"]].concat());
    assert_eq!(same.code, 0, "{}{}", same.stdout, same.stderr);
    let gpu = run(&[&bisect[..], &["--device", "cuda"]].concat());
    assert!(gpu.code == 3 && gpu.stderr.contains("CUDAExecutionProvider"), "{}", gpu.stderr);
    // A library of one of the two is not refused for the other.
    let library = run(&[&bisect[..], &["--ort-lib", "no/such/lib.so"]].concat());
    assert!(library.code == 3 && library.stderr.contains("no/such/lib.so"), "{}", library.stderr);
}

/// `--images` of `parity` and `bisect` is `--num`, as everywhere.
#[test]
fn the_old_word_for_a_number_of_images_still_serves() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    let (file, options) = llamagen("llamagen-small");
    export(file, &options, &bundle);
    for word in ["--num", "--images"] {
        let args = ["--engines", "tract,ort", word, "1", "--json"];
        let out = run(&[&["parity", bundle.as_str(), "--no-probes"], &args[..]].concat());
        assert_eq!(json(&out)["engines"][0]["free_running"].as_array().unwrap().len(), 1, "{}", out.stderr);
        let out = run(&[&["bisect", bundle.as_str()], &args[..]].concat());
        assert_eq!(out.code, 0, "{word}: {}{}", out.stdout, out.stderr);
        let many = run(&["bisect", bundle.as_str(), "--engines", "tract,ort", word, "257"]);
        assert!(many.code == 2 && many.stderr.contains("--num"), "{}", many.stderr);
    }
}

/// The network has an engine of its own, beside that of a bundle.
#[test]
fn extractors_run_on_their_own_engine() {
    let temp = Temp::new();
    let (bundle, reference) = (temp.path("b"), temp.path("reference.npz"));
    export("emoji32/dpar", &LoadOptions::default(), &bundle);
    images(&reference, 40, 2, 100);
    let network = fixture("features/tiny.onnx");
    let common = ["--reference", reference.as_str(), "--extractor", network.as_str(), "--input-size", "16"];
    let evaluate = |out: &str, more: &[&str]| {
        let out = temp.path(out);
        run(&[&["evaluate", "-o", out.as_str(), "--json"], &common[..], more].concat())
    };
    let samples = ["--samples", reference.as_str()];
    let draw = ["--bundle", bundle.as_str(), "--num", "3"];
    let engine = |out: &crate::cli::Run| {
        assert_eq!(out.code, 0, "{}", out.stderr);
        json(out)["protocol"]["extractor"]["engine"].as_str().unwrap().to_owned()
    };
    for name in ENGINES.iter().filter(|e| **e != "candle") {
        let out = evaluate(&format!("s-{name}"), &[&samples[..], &["--extractor-engine", name]].concat());
        assert!(engine(&out).starts_with(name), "{name}: {}", out.stdout);
        // Alone, --engine says it.
        let out = evaluate(&format!("e-{name}"), &[&samples[..], &["--engine", name]].concat());
        assert!(engine(&out).starts_with(name), "{name}: {}", out.stdout);
        let out = evaluate(&format!("d-{name}"), &[&draw[..], &["--extractor-engine", name]].concat());
        assert!(engine(&out).starts_with(name), "{name}: {}", out.stdout);
        assert_eq!(json(&out)["samples"]["generated"]["engine"]["engine"], "tract");
    }
    // The library is the network's, and the bundle's engine is not asked about it.
    let library = ["--extractor-engine", "ort", "--ort-lib", "no/such/lib.so"];
    let out = evaluate("library", &[&draw[..], &library].concat());
    assert!(out.code == 3 && out.stderr.contains("no/such/lib.so"), "{}", out.stderr);
    let trained = fixture("emoji32");
    let base = ["reproduce", bundle.as_str(), "--reference", trained.as_str(), "--num", "2"];
    let extractor = temp.path("extractor");
    let made = ["--component", "features", network.as_str(), "--input-size", "16", "-o", extractor.as_str()];
    assert_eq!(run(&made).code, 0);
    let out = run(&[&base[..], &["--extractor", extractor.as_str()], &library].concat());
    assert!(out.code == 3 && out.stderr.contains("no/such/lib.so"), "{}", out.stderr);
    // But without the network it is nobody's.
    let out = run(&[&base[..], &["--ort-lib", "x"]].concat());
    assert!(out.code == 2 && out.stderr.contains("it has no --ort-lib"), "{}", out.stderr);
    // A device is the bundle's, also where it cannot run there and the network could.
    let out = evaluate("device", &[&draw[..], &["--extractor-engine", "ort", "--device", "cuda"]].concat());
    assert!(out.code == 2 && out.stderr.contains("tract: it does not run on"), "{}", out.stderr);
}

/// What would have no effect is refused, also where the parser drops a requirement because its option conflicts.
#[test]
fn what_would_have_no_effect_is_refused() {
    let temp = Temp::new();
    let (bundle, samples, out) = (temp.path("b"), temp.path("s.npz"), temp.path("out"));
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    images(&samples, 4, 2, 100);
    let network = fixture("features/tiny.onnx");
    let evaluate = [
        "evaluate",
        "--reference",
        samples.as_str(),
        "--extractor",
        network.as_str(),
        "--input-size",
        "16",
        "-o",
        out.as_str(),
    ];
    let there = ["--samples", samples.as_str()];
    for more in [
        &["--num", "3"][..],
        &["--cfg-scale", "2"],
        &["--cfg-interval", "3"],
        &["--seed", "1"],
        &["--greedy"],
        &["--sampler", "cdf"],
        &["--temperature", "2"],
        &["--top-k", "3"],
        &["--top-p", "0.5"],
        &["--engine", "ort", "--extractor-engine", "tract"],
    ] {
        let refused = run(&[&evaluate[..], &there, more].concat());
        assert!(refused.code == 2 && refused.stderr.contains(more[0]), "{more:?}: {}", refused.stderr);
    }
    let draw = ["--bundle", bundle.as_str(), "--num", "2"];
    for more in [&["--limit", "1"][..], &["--cfg-interval", "3"]] {
        let refused = run(&[&evaluate[..], &draw, more].concat());
        assert!(refused.code == 2 && refused.stderr.contains(more[0]), "{more:?}: {}", refused.stderr);
    }
    let reproduce = ["reproduce", bundle.as_str(), "--reference", "x", "--baseline", "y", "--seeds", "1,2,3"];
    let refused = run(&reproduce);
    assert!(refused.code == 2 && refused.stderr.contains("--seeds"), "{}", refused.stderr);
    assert!(!out.exists());
}

/// What nothing would read is refused with the option that has no effect.
#[test]
fn options_of_a_run_are_refused_where_nothing_runs() {
    let temp = Temp::new();
    let (bundle, out) = (temp.path("b"), temp.path("out.npz"));
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let attested = ["verify", bundle.as_str(), "--key", "k.pem", "--attestation", "a.jsonl"];
    let runs = ["reproduce", "--paper", "DPAR-B", "--runs", "a.json", "b.json"];
    for more in [
        &["--engine", "ort"][..],
        &["--threads", "1"],
        &["--device", "cpu"],
        &["--batch", "2"],
        &["--caches", "joined"],
        &["--threshold", "4"],
        &["--max-patch-length", "2"],
    ] {
        for command in [&attested[..], &runs] {
            let refused = run(&[command, more].concat());
            let named = refused.stderr.contains(more[0]) || refused.stderr.contains("--reference <DIR>");
            assert!(refused.code == 2 && named, "{} {more:?}: {}", command[0], refused.stderr);
            assert!(
                !refused.stderr.contains("k.pem") && !refused.stderr.contains("a.json"),
                "{}",
                refused.stderr
            );
        }
    }
    let refused = run(&[&attested[..], &["--no-probes"]].concat());
    assert!(refused.code == 2 && refused.stderr.contains("--reference <DIR>"), "{}", refused.stderr);
    let refused =
        run(&["reproduce", bundle.as_str(), "--reference", "r", "--extractor-engine", "ort", "--num", "2"]);
    assert!(refused.code == 2 && refused.stderr.contains("--extractor <PATH>"), "{}", refused.stderr);
    // Patches that are given follow no rule.
    let golden = fixture("dpar-small/golden.safetensors");
    let score =
        ["score", bundle.as_str(), "--inputs", golden.as_str(), "-o", out.as_str(), "--threshold", "4"];
    let refused = run(&score);
    assert!(refused.code == 2 && refused.stderr.contains("has patch_lengths"), "{}", refused.stderr);
    // Recorded outputs say what was drawn, and how; a bundle that is known to be good is asked for that.
    let golden_folder = fixture("dpar-small");
    for more in [&["--num", "2"][..], &["--images", "3"], &["--seed", "0"], &["--cfg-scale", "2"]] {
        let bisect =
            |reference: &str| run(&[&["bisect", bundle.as_str(), "--reference", reference], more].concat());
        let refused = bisect(golden_folder.as_str());
        let option = if more[0] == "--images" { "--num" } else { more[0] };
        let said = format!("{option} has no effect");
        assert!(refused.code == 2 && refused.stderr.contains(&said), "{more:?}: {}", refused.stderr);
        let drawn = bisect(bundle.as_str());
        assert_eq!(drawn.code, 0, "{more:?}: {}", drawn.stderr);
    }
    // A tokenizer has no caches.
    for (command, input) in [("decode", "--tokens"), ("encode", "--images")] {
        let args =
            [command, bundle.as_str(), input, golden.as_str(), "-o", out.as_str(), "--caches", "joined"];
        let refused = run(&args);
        assert!(refused.code == 2 && refused.stderr.contains("--caches has no effect"), "{}", refused.stderr);
    }
    assert!(!out.exists());
}
