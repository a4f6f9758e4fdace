//! Exit codes: what is wrong with a bundle or a setting is never "not available", and a graph that runs wrong fails a
//! comparison. The table of all error kinds has its tests beside it, in `harness/args/src/cause.rs`.

use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::arrays::{Array, ArrayRef, write_npz};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_onnx::proto::{INT64, NodeProto, TensorProto};
use serde_json::Value;

use crate::attest::{key, private_key};
use crate::cli::{Run, json, run};
use crate::common::{ENGINES, Temp, export, fixture};
use crate::faults::{copy, graph, rehash};
use crate::reference::change;

/// A change of a bundle.
type Edit<'a> = &'a dyn Fn(&Utf8Path);

/// A bundle whose steps look up a position far beyond the table: every engine loads it, and none runs it.
fn fails_while_it_runs(bundle: &Utf8Path) {
    graph(bundle, "decoder_step", |model| {
        let graph = model.graph.as_mut().unwrap();
        graph.initializer.push(TensorProto {
            name: Some("f/far".to_owned()),
            dims: vec![1, 1],
            data_type: Some(INT64),
            raw_data: Some(1_000_000_i64.to_le_bytes().to_vec()),
            ..TensorProto::default()
        });
        for node in graph.node.iter_mut().filter(|n| n.input.iter().any(|i| i == "positions")) {
            assert_eq!(node.op_type.as_deref(), Some("Gather"));
            node.input[1] = "f/positions".to_owned();
        }
        let add = NodeProto {
            input: vec!["positions".to_owned(), "f/far".to_owned()],
            output: vec!["f/positions".to_owned()],
            name: Some("f/Add".to_owned()),
            op_type: Some("Add".to_owned()),
            attribute: Vec::new(),
            ..NodeProto::default()
        };
        graph.node.insert(0, add);
    });
    rehash(bundle);
}

/// A bundle with an operator that no engine has.
fn is_refused(bundle: &Utf8Path) {
    graph(bundle, "decoder_step", |model| {
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let softmax = nodes.iter_mut().find(|n| n.op_type.as_deref() == Some("Softmax")).unwrap();
        softmax.op_type = Some("Softmix".to_owned());
    });
    rehash(bundle);
}

/// A good bundle of `checkpoint` as `good`, and a changed copy as `bad`.
fn pair(temp: &Temp, checkpoint: &str, edit: fn(&Utf8Path)) -> (Utf8PathBuf, Utf8PathBuf) {
    let (good, bad) = (temp.path("good"), temp.path("bad"));
    export(checkpoint, &LoadOptions::default(), &good);
    copy(&good, &bad);
    edit(&bad);
    (good, bad)
}

fn ends(out: &Run, code: i32, text: &str, what: &str) {
    let said = format!("{}{}", out.stdout, out.stderr);
    assert!(out.code == code && said.contains(text), "{what}: {} {said}", out.code);
    assert!(!said.contains("panicked"), "{what}: {said}");
}

#[test]
fn a_graph_that_fails_while_it_runs_fails_a_comparison_and_is_bad_input_elsewhere() {
    let temp = Temp::new();
    let (good, bad) = pair(&temp, "variants/combined/dpar", fails_while_it_runs);
    let golden = fixture("variants/combined");
    let out = temp.path("out");
    for engine in ENGINES {
        let generate = ["generate", bad.as_str(), "--num", "1", "-o", out.as_str(), "--engine", engine];
        ends(&run(&generate), 2, &format!("{engine}: graph `decoder_step`"), engine);
        assert!(!out.exists(), "{engine}");
        let recorded = ["reference", bad.as_str(), "--num", "1", "-o", out.as_str(), "--engine", engine];
        ends(&run(&recorded), 2, "decoder_step", engine);
        let verify =
            ["verify", bad.as_str(), "--reference", golden.as_str(), "--no-probes", "--engine", engine];
        let report = run(&[&verify[..], &["--json"]].concat());
        ends(&report, 1, "decoder_step", engine);
        let report = json(&report);
        let failed = |name: &str| {
            report["checks"].as_array().unwrap().iter().any(|c| c["name"] == name && c["status"] == "fail")
        };
        assert!(failed("greedy tokens"), "{report:#}");
        // What does not depend on that graph is still compared.
        assert!(!failed("logits") && !failed("images"), "{report:#}");
        let bisect =
            ["bisect", bad.as_str(), "--reference", good.as_str(), "--images", "1", "--engines", engine];
        ends(&run(&bisect), 1, "decoder_step", engine);
    }
    for engines in
        [&["--engines", "tract,ort"][..], &["--engines", "ort", "--reference", golden.as_str()], &[]]
    {
        let parity = [&["parity", bad.as_str(), "--images", "1", "--no-probes", "--json"], engines].concat();
        let out = run(&parity);
        ends(&out, 1, "decoder_step", &engines.join(" "));
        let report = json(&out);
        assert_eq!(report["verdict"], "fail");
        let ran = report["engines"].as_array().unwrap().iter().filter(|e| e["engine"] != "tensorrt");
        assert!(ran.clone().all(|e| e["status"] == "failed" && e["absent"] == false), "{report:#}");
    }
}

#[test]
fn a_graph_that_fails_while_a_run_is_reproduced_is_a_failed_gate() {
    let temp = Temp::new();
    let (_, bad) = pair(&temp, "emoji32/dpar", fails_while_it_runs);
    let reference = fixture("emoji32");
    let args =
        ["reproduce", bad.as_str(), "--reference", reference.as_str(), "--num", "2", "--engine", "ort"];
    ends(&run(&args), 1, "decoder_step", "reproduce");
}

#[test]
fn a_graph_that_engines_refuse_is_the_bundles_fault() {
    let temp = Temp::new();
    let (_, bad) = pair(&temp, "dpar-small/dpar", is_refused);
    let golden = fixture("dpar-small");
    let out = temp.path("out");
    for engine in ENGINES {
        let generate = ["generate", bad.as_str(), "--num", "1", "-o", out.as_str(), "--engine", engine];
        ends(&run(&generate), 2, "Softmix", engine);
        let verify =
            ["verify", bad.as_str(), "--reference", golden.as_str(), "--no-probes", "--engine", engine];
        ends(&run(&verify), 2, "Softmix", engine);
    }
    for engines in [&["--engines", "tract,ort"][..], &["--reference", golden.as_str()], &[]] {
        let parity = [&["parity", bad.as_str(), "--images", "1", "--no-probes"], engines].concat();
        ends(&run(&parity), 1, "Softmix", &engines.join(" "));
    }
}

/// Attributes on which engines' libraries assert: refused in words, whoever notices first, and no trace of a panic.
#[test]
fn graphs_that_no_engine_can_take_are_errors_and_nothing_else_is_printed() {
    let temp = Temp::new();
    let good = temp.path("good");
    export("variants/token/dpar", &LoadOptions::default(), &good);
    for op in ["ReduceMean", "Transpose", "Split", "Gather"] {
        let bad = temp.path(op);
        copy(&good, &bad);
        let mut changed = false;
        graph(&bad, "decoder_step", |model| {
            for node in &mut model.graph.as_mut().unwrap().node {
                if node.op_type.as_deref() == Some(op) {
                    for attribute in
                        node.attribute.iter_mut().filter(|a| a.name.as_deref() != Some("keepdims"))
                    {
                        changed = true;
                        attribute.i = attribute.i.map(|_| 99);
                        attribute.ints.iter_mut().for_each(|i| *i = 99);
                    }
                }
            }
        });
        assert!(changed, "{op}");
        rehash(&bad);
        let out = temp.path("out");
        for engine in ENGINES {
            let args = [
                "generate",
                bad.as_str(),
                "--num",
                "1",
                "--no-images",
                "-o",
                out.as_str(),
                "--engine",
                engine,
            ];
            let run = run(&args);
            ends(&run, 2, "decoder_step", &format!("{op} on {engine}"));
            assert_eq!(run.stderr.matches("error:").count(), 1, "{op} on {engine}: {}", run.stderr);
            assert!(!run.stderr.contains("backtrace"), "{op} on {engine}: {}", run.stderr);
        }
    }
}

/// A number in both configurations, and a table that has not its rows: no export wrote that.
#[test]
fn classes_without_a_row_in_the_table_are_exit_5() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    let classes = config["num_classes"].as_u64().unwrap() + 3;
    config["num_classes"] = classes.into();
    fs_err::write(&path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    rehash(&bundle);
    let out = temp.path("out");
    let class = (classes - 1).to_string();
    for args in [
        &["inspect", bundle.as_str()][..],
        &["generate", bundle.as_str(), "--classes", &class, "--no-images", "-o", out.as_str()],
    ] {
        ends(&run(args), 5, "cls_embedding.embedding_table.weight", &args.join(" "));
    }
}

/// Recorded labels that the model has not: the recording does not fit.
#[test]
fn labels_beyond_the_classes_are_bad_input() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let golden = temp.path("golden");
    copy(&fixture("dpar-small"), &golden);
    change(&golden, "class_labels", |array| {
        let Array::I64(a) = array else { panic!("{array:?}") };
        a.fill(99);
    });
    for command in ["verify", "parity", "bisect"] {
        let args = [command, bundle.as_str(), "--reference", golden.as_str()];
        ends(&run(&args), 2, "99", command);
    }
    let inputs = temp.path("in.npz");
    let (tokens, labels) = (vec![0; 64], [-1]);
    write_npz(
        &inputs,
        &[("tokens", ArrayRef::i64(&[1, 64], &tokens)), ("class_labels", ArrayRef::i64(&[1], &labels))],
    )
    .unwrap();
    let scores = temp.path("s.npz");
    let args = ["score", bundle.as_str(), "--inputs", inputs.as_str(), "-o", scores.as_str()];
    ends(&run(&args), 2, "-1", "score");
}

/// A command under a limit of its address space, in KiB.
#[cfg(target_os = "linux")]
fn within(kib: u64, args: &[&str], variables: &[(&str, &str)]) -> Run {
    let script = format!("ulimit -v {kib}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(assert_cmd::cargo::cargo_bin("dpar-export")).args(args);
    // Large stacks and one arena: what is left when a thread is refused is room enough to say so.
    let room = [("RUST_MIN_STACK", "33554432"), ("MALLOC_ARENA_MAX", "1")];
    let output = command.env("NO_COLOR", "1").envs(room).envs(variables.iter().copied()).output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Every thread has a stack: a thousand do not fit 1.5 GB.
#[test]
#[cfg(target_os = "linux")]
fn threads_that_do_not_start_are_a_setting() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let out = temp.path("out");
    let generate = ["generate", bundle.as_str(), "--num", "1", "--no-images", "-o", out.as_str()];
    for engine in ENGINES {
        let mut args = [&generate[..], &["--engine", engine]].concat();
        let variables: &[(&str, &str)] = match engine {
            "candle" => &[("RAYON_NUM_THREADS", "1024")],
            _ => {
                args.extend(["--threads", "1024"]);
                &[]
            }
        };
        let run = within(1_500_000, &args, variables);
        ends(&run, 2, "threads", engine);
        assert!(run.stderr.contains("hint:"), "{engine}: {}", run.stderr);
        assert!(!out.exists(), "{engine}");
    }
    let numbers = fixture("metrics/numpy");
    let (saved, reference) = (numbers.join("saved.npz"), numbers.join("reference.npz"));
    let metrics =
        ["metrics", "--activations", saved.as_str(), "--reference", reference.as_str(), "--threads", "1024"];
    ends(&within(1_500_000, &metrics, &[]), 2, "could not start 1024 computing threads", "metrics");
}

/// More threads than processors are what was asked for, and said to be slower.
#[test]
fn threads_beyond_the_processors_are_warned_of() {
    let out = run(&["--help"]);
    assert_eq!(out.code, 0);
    let numbers = fixture("metrics/numpy");
    let (saved, reference) = (numbers.join("saved.npz"), numbers.join("reference.npz"));
    let metrics = [
        "metrics",
        "--activations",
        saved.as_str(),
        "--reference",
        reference.as_str(),
        "--kid-subset-size",
        "20",
    ];
    let few = run(&[&metrics[..], &["--threads", "1"]].concat());
    assert!(few.code == 0 && few.stderr.is_empty(), "{}", few.stderr);
    let many = run(&[&metrics[..], &["--threads", "1024"]].concat());
    assert!(many.code == 0 && many.stderr.contains("1024 threads on "), "{}", many.stderr);
    assert_eq!(many.stdout, few.stdout);
}

/// A setting that a named engine cannot honour is bad input, also among others; what nobody named is left out.
#[test]
fn a_setting_that_an_engine_of_a_comparison_has_not_is_bad_input() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let parity = ["parity", bundle.as_str(), "--images", "1", "--no-probes", "--threads", "2"];
    for engine in ENGINES.iter().filter(|e| **e == "candle") {
        let named = format!("tract,{engine}");
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
        command.args(parity).args(["--engines", &named]).env("RAYON_NUM_THREADS", "1");
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains("RAYON_NUM_THREADS=2"), "{stderr}");
    }
    let out = run(&[&parity[..], &["--json"]].concat());
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
}

/// Help is data: when it cannot be written, that is said.
#[test]
#[cfg(target_os = "linux")]
fn a_full_device_is_exit_2_for_everything_on_stdout() {
    for args in
        [&["--help"][..], &["--version"], &["generate", "--help"], &["completions", "bash"], &["doctor"]]
    {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
        let output = command.args(args).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains("No space left"), "{args:?}: {stderr}");
        // A reader that has seen enough is no error.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
        let output = command.args(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(run(&["--no-such-option"]).code, 2);
}

/// The GitLab snippet of the documentation, as GitLab runs it: the lines of its script, and whether the job's end is allowed.
struct Snippet {
    script: String,
    allowed: Vec<i32>,
}

impl Snippet {
    fn read() -> Self {
        let path = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ci.md");
        let text = fs_err::read_to_string(path).unwrap();
        let yaml = text.split("## GitLab CI").nth(1).unwrap().split("```").nth(1).unwrap();
        let (script, rest) = yaml.split_once("  script:\n").unwrap().1.split_once("  artifacts:\n").unwrap();
        let mut lines: Vec<String> = Vec::new();
        for line in script.lines() {
            match line.trim().strip_prefix("- ") {
                Some(command) => lines.push(command.to_owned()),
                // A plain scalar goes on: the line break is a space.
                None => *lines.last_mut().unwrap() += &format!(" {}", line.trim()),
            }
        }
        let codes = rest.split("exit_codes: [").nth(1).unwrap().split(']').next().unwrap();
        // As little work as leaves the logic alone.
        let quick = "dpar-export parity bundle --no-probes --images 1 --report-images 1";
        Self {
            script: lines.join("\n").replace("dpar-export parity bundle", quick),
            allowed: codes.split(',').map(|c| c.trim().parse().unwrap()).collect(),
        }
    }

    /// Runs it; the exit code, whether the pipeline goes on, and what was said.
    fn run(&self, place: &Utf8Path, variables: &[(&str, &str)]) -> (i32, bool, String) {
        let program = assert_cmd::cargo::cargo_bin("dpar-export");
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", program.parent().unwrap().display());
        let mut command = Command::new("sh");
        command.args(["-e", "-c", &self.script]).current_dir(place).env("PATH", path);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let code = output.status.code().unwrap();
        (code, code == 0 || self.allowed.contains(&code), String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
#[cfg(unix)]
fn the_gitlab_snippet_lets_a_missing_engine_pass_and_stops_at_every_broken_bundle() {
    let snippet = Snippet::read();
    assert!(snippet.script.contains("parity bundle") && snippet.allowed == [3], "{}", snippet.script);
    let temp = Temp::new();
    let place = temp.path("job");
    let bundle = place.join("bundle");
    let attest = |edit: Edit<'_>| {
        let _ = fs_err::remove_dir_all(&place);
        fs_err::create_dir_all(place.join("keys")).unwrap();
        export("variants/combined/dpar", &LoadOptions::default(), &bundle);
        edit(&bundle);
        copy(&fixture("variants/combined"), &place.join("golden"));
        fs_err::copy(key("test-only-public.pem"), place.join("keys/public.pem")).unwrap();
        let private = private_key(&temp);
        let out = run(&["attest", bundle.as_str(), "--key", private.as_str()]);
        assert_eq!(out.code, 0, "{}", out.stderr);
    };
    attest(&|_| {});
    let (code, goes_on, said) = snippet.run(&place, &[]);
    assert!(code == 0 && goes_on, "{code} {said}");
    assert!(place.join("reports/parity.html").is_file() && place.join("reports/parity.xml").is_file());

    // This runner has no ONNX Runtime.
    let nowhere = temp.path("no.so");
    let (code, goes_on, said) = snippet.run(&place, &[("ORT_DYLIB_PATH", nowhere.as_str())]);
    assert!(code == 3 && goes_on, "{code} {said}");

    let broken: [(&str, Edit<'_>); 3] = [
        ("fails while it runs", &fails_while_it_runs),
        ("is refused", &is_refused),
        ("computes something else", &|bundle| {
            graph(bundle, "decoder_step", |model| {
                let nodes = &mut model.graph.as_mut().unwrap().node;
                let softmax = nodes.iter_mut().find(|n| n.op_type.as_deref() == Some("Softmax")).unwrap();
                softmax.op_type = Some("Identity".to_owned());
                softmax.attribute.clear();
            });
            rehash(bundle);
        }),
    ];
    for (what, edit) in broken {
        attest(edit);
        let (code, goes_on, said) = snippet.run(&place, &[]);
        assert!(code == 1 && !goes_on, "{what}: {code} {said}");
        // Where an engine is missing as well, the other one's findings still count.
        let (code, goes_on, said) = snippet.run(&place, &[("ORT_DYLIB_PATH", nowhere.as_str())]);
        assert!(code == 1 && !goes_on, "{what}, without ort: {code} {said}");
    }
    // Changed after it was signed.
    fs_err::write(bundle.join("onnx/start.onnx"), "x").unwrap();
    let (code, goes_on, said) = snippet.run(&place, &[]);
    assert!(code == 5 && !goes_on, "{code} {said}");
}
