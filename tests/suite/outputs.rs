//! Outputs: nothing lost, nothing left, no input eaten; whatever other processes do, and wherever this one is killed.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::bundle::Bundle;
use dpar_export_checkpoint::LoadOptions;

use crate::cli::run;
use crate::common::{Temp, export, fixture};

fn start(args: &[&str]) -> Child {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
    command.args(args).env_remove("RUST_LOG").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Exit code and errors.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn names(folder: &Utf8Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
    names.sort();
    names
}

/// Every file below a folder with its bytes, and where links lead.
fn tree(folder: &Utf8Path) -> BTreeMap<Utf8PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in folder.read_dir_utf8().unwrap().map(Result::unwrap) {
        let path = entry.path().to_owned();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(tree(&path)),
            kind if kind.is_symlink() => {
                found.insert(path.clone(), path.read_link_utf8().unwrap().into_string().into_bytes());
            }
            _ => drop(found.insert(path.clone(), fs_err::read(&path).unwrap())),
        }
    }
    found
}

/// Waits until a run has taken a name in `folder`, and looked at what is there.
fn taken(child: &mut Child, folder: &Utf8Path) {
    let started = Instant::now();
    let has = |n: &String| n.starts_with(".dpar-export-") && folder.join(n).join("new").is_dir();
    while !folder.is_dir() || !names(folder).iter().any(has) {
        assert!(started.elapsed() < Duration::from_secs(60), "the run did not begin");
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        std::thread::sleep(Duration::from_millis(2));
    }
    // The look comes right behind; the work takes seconds.
    std::thread::sleep(Duration::from_millis(300));
}

fn emoji(temp: &Temp) -> Utf8PathBuf {
    let bundle = temp.path("b");
    export("emoji32/dpar", &LoadOptions::default(), &bundle);
    bundle
}

#[test]
fn a_second_run_for_an_output_is_refused_and_a_killed_one_leaves_no_trace() {
    let temp = Temp::new();
    let bundle = emoji(&temp);
    let place = temp.path("place");
    let empty = place.join("empty");
    fs_err::create_dir_all(&empty).unwrap();
    // A folder that is not there yet, and one that is there and empty, as a mount point is.
    for (out, holder) in [(place.join("out"), &place), (empty.clone(), &empty)] {
        let generate = ["generate", bundle.as_str(), "--no-images", "-o", out.as_str()];
        let mut first = start(&[&generate[..], &["--num", "20000"]].concat());
        taken(&mut first, holder);
        for more in [&["--num", "1"][..], &["--num", "1", "--force"]] {
            let second = run(&[&generate[..], more].concat());
            assert!(
                second.code == 2 && second.stderr.contains("another run is writing"),
                "{}",
                second.stderr
            );
        }
        let other = ["--num", "1", "--no-images", "-o"];
        let beside = place.join("beside");
        let out_there = run(&[&["generate", bundle.as_str()][..], &other, &[beside.as_str()]].concat());
        assert_eq!(out_there.code, 0, "{}", out_there.stderr);
        fs_err::remove_dir_all(&beside).unwrap();
        // SIGKILL: no handler runs.
        first.kill().unwrap();
        first.wait().unwrap();
        assert!(names(holder).iter().any(|n| n.starts_with('.')), "the run was killed in the middle");
        let again = run(&[&generate[..], &["--num", "1"]].concat());
        assert_eq!(again.code, 0, "{}", again.stderr);
        assert_eq!(names(&out), ["trace.npz"]);
        fs_err::remove_dir_all(&out).unwrap();
        fs_err::create_dir_all(&empty).unwrap();
        assert_eq!(names(&place), ["empty"]);
    }
}

#[test]
fn of_exports_to_one_folder_at_once_one_writes_it() {
    let temp = Temp::new();
    let (checkpoint, out) = (fixture("variants/token/dpar"), temp.path("place/out"));
    for force in [false, true] {
        let args = [checkpoint.as_str(), "-o", out.as_str(), "--force"];
        let args = &args[..if force { 4 } else { 3 }];
        let runs: Vec<_> = (0..4).map(|_| start(args)).collect();
        let ends: Vec<_> = runs.into_iter().map(end).collect();
        let passed = ends.iter().filter(|e| e.0 == Some(0)).count();
        // With --force, one that begins after another has ended replaces it.
        assert!(passed == 1 || (force && passed > 1), "{ends:?}");
        for (code, stderr) in ends.iter().filter(|e| e.0 != Some(0)) {
            let why = stderr.contains("another run is writing") || stderr.contains("already exists");
            assert!(*code == Some(2) && why, "{code:?} {stderr}");
        }
        Bundle::open(&out).unwrap();
        assert_eq!(names(&temp.path("place")), ["out"]);
    }
}

#[test]
fn what_comes_to_the_place_meanwhile_stays_and_the_result_is_kept() {
    let temp = Temp::new();
    let bundle = emoji(&temp);
    let place = temp.path("place");
    let out = place.join("out");
    let mut child =
        start(&["generate", bundle.as_str(), "--num", "16", "--no-images", "--force", "-o", out.as_str()]);
    taken(&mut child, &place);
    fs_err::create_dir(&out).unwrap();
    fs_err::write(out.join("precious"), "1").unwrap();
    let (code, stderr) = end(child);
    let kept = place.join("out.1");
    assert!(
        code == Some(2) && stderr.contains(kept.as_str()) && stderr.contains("hint:"),
        "{code:?} {stderr}"
    );
    assert_eq!((names(&out), names(&kept)), (vec!["precious".into()], vec!["trace.npz".into()]));
    assert_eq!(names(&place), ["out", "out.1"]);

    let tokens = kept.join("trace.npz");
    let (scores, again) = (place.join("s.npz"), place.join("s.1.npz"));
    let mut child = start(&[
        "score",
        bundle.as_str(),
        "--inputs",
        tokens.as_str(),
        "-o",
        scores.as_str(),
        "--batch",
        "1",
    ]);
    taken(&mut child, &place);
    fs_err::write(&scores, "precious").unwrap();
    let (code, stderr) = end(child);
    assert!(code == Some(2) && stderr.contains(again.as_str()), "{code:?} {stderr}");
    assert_eq!(fs_err::read(&scores).unwrap(), b"precious");
    assert_eq!(names(&place), ["out", "out.1", "s.1.npz", "s.npz"]);
}

#[test]
fn killed_at_any_time_a_bundle_that_is_replaced_stays_whole() {
    let temp = Temp::new();
    let (checkpoint, place) = (fixture("variants/token/dpar"), temp.path("place"));
    let out = place.join("out");
    let args = [checkpoint.as_str(), "-o", out.as_str(), "--force"];
    let started = Instant::now();
    assert_eq!(run(&args).code, 0);
    let whole = started.elapsed();
    let mut killed = 0;
    for step in 0..16 {
        let mut child = start(&args);
        std::thread::sleep(whole * step / 14);
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        Bundle::open(&out).unwrap();
    }
    assert!(killed > 0, "no export was killed");
    let last = run(&args);
    assert_eq!(last.code, 0, "{}", last.stderr);
    assert_eq!(names(&place), ["out"]);
}

#[test]
fn an_evaluation_that_another_run_holds_is_refused() {
    let temp = Temp::new();
    let (images, out, network) = (temp.path("x.npz"), temp.path("out"), fixture("features/tiny.onnx"));
    crate::evaluate::images(&images, 4, 1, 100);
    fs_err::create_dir(&out).unwrap();
    let lock = fs_err::File::create(out.join("lock")).unwrap();
    lock.file().try_lock().unwrap();
    let mut args = vec!["evaluate", "--samples", images.as_str(), "--reference", images.as_str(), "--resume"];
    args.extend(["--extractor", network.as_str(), "--input-size", "16", "-o", out.as_str()]);
    let refused = run(&args);
    assert!(refused.code == 2 && refused.stderr.contains("another run is writing"), "{}", refused.stderr);
    assert_eq!(names(&out), ["lock"]);
    drop(lock);
    // A folder that a run has only begun is as good as an empty one.
    args.retain(|a| *a != "--resume");
    let whole = run(&args);
    assert_eq!(whole.code, 0, "{}", whole.stderr);
}

#[test]
fn names_of_any_length_are_written() {
    let temp = Temp::new();
    let bundle = emoji(&temp);
    let checkpoint = fixture("variants/token/dpar");
    for length in [237, 255] {
        let (out, again) = (temp.path(&"n".repeat(length)), temp.path(&"m".repeat(length)));
        for more in [&[][..], &["--force"]] {
            let made = [
                run(&[&[checkpoint.as_str(), "-o", out.as_str()][..], more].concat()),
                run(&[
                    &["generate", bundle.as_str(), "--num", "1", "--no-images", "-o", again.as_str()],
                    more,
                ]
                .concat()),
            ];
            for out in made {
                assert_eq!(out.code, 0, "{}", out.stderr);
            }
        }
    }
    assert!(!names(&temp.path("")).iter().any(|n| n.starts_with('.')));
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_said_with_the_file_and_leaves_nothing() {
    let temp = Temp::new();
    let bundle = emoji(&temp);
    let place = temp.path("place");
    fs_err::create_dir(&place).unwrap();
    let (golden, reference) = (fixture("emoji32/golden.safetensors"), fixture("emoji32"));
    let (b, checkpoint) = (bundle.as_str(), fixture("variants/token/dpar"));
    // No file may be longer than 4 KiB.
    for (out, command) in [
        ("out", vec![checkpoint.as_str()]),
        ("s.npz", vec!["score", b, "--inputs", golden.as_str()]),
        ("g", vec!["generate", b, "--num", "4", "--no-images"]),
        ("r", vec!["reference", b, "--num", "1"]),
        (
            "v.html",
            vec!["verify", b, "--reference", reference.as_str(), "--no-probes", "--report-images", "0"],
        ),
    ] {
        let path = place.join(out);
        let option = if out == "v.html" { "--report" } else { "-o" };
        let limited = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"])
            .arg(assert_cmd::cargo::cargo_bin("dpar-export"))
            .args(command)
            .args([option, path.as_str()])
            .env_remove("RUST_LOG")
            .output()
            .unwrap();
        let stderr = String::from_utf8(limited.stderr).unwrap();
        assert!(limited.status.code() == Some(2) && stderr.contains("too large"), "{out}: {stderr}");
        assert!(stderr.contains(place.as_str()) && stderr.contains(out), "{out}: {stderr}");
        assert!(stderr.starts_with("error: "), "no library prints on its own: {stderr}");
        assert!(names(&place).is_empty(), "{out}: {:?}", names(&place));
    }
}

#[cfg(unix)]
#[test]
fn copied_files_have_the_mode_of_new_files() {
    use std::os::unix::fs::PermissionsExt;
    let temp = Temp::new();
    let (file, out) = (temp.path("net.onnx"), temp.path("out"));
    fs_err::copy(fixture("features/tiny.onnx"), &file).unwrap();
    for mode in [0o400, 0o777] {
        fs_err::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let args =
            ["--component", "features", file.as_str(), "--input-size", "16", "--force", "-o", out.as_str()];
        let made = run(&args);
        assert_eq!(made.code, 0, "{}", made.stderr);
        let mode = |path: Utf8PathBuf| fs_err::metadata(path).unwrap().permissions().mode();
        let copied = out.join("onnx").join(&names(&out.join("onnx"))[0]);
        assert_eq!(mode(copied), mode(out.join("config.json")));
    }
}

/// A command line without its outputs and inputs, and the options that name them: outputs with the ending that they need,
/// or `/` for folders; inputs with `/` where they are folders. An empty option is the argument without a name.
type Eater = (
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
    &'static [(&'static str, &'static str)],
);

const EATERS: &[Eater] = &[
    (
        &["--dry-run"],
        &[("-o", "/")],
        &[("", "/"), ("--entropy", "/"), ("--vq", ".pt"), ("--map", ".yaml"), ("--config", ".yaml")],
    ),
    (
        &["--target", "trt", "--force"],
        &[("-o", "/"), ("--engine-cache", "/")],
        &[("", "/"), ("--calibrate-from", ".npz"), ("--trt-lib", "/")],
    ),
    (&["--target", "trt", "--emit-trtexec", "--force"], &[("-o", "/")], &[("", "/")]),
    (&["--component", "features", "--force"], &[("-o", "/")], &[("", ".onnx"), ("--map", ".yaml")]),
    (
        &["score", "--force"],
        &[("-o", ".npz"), ("--runtime-cache", "/")],
        &[("", "/"), ("--inputs", ".npz"), ("--ort-lib", ".so"), ("--trt-lib", "/")],
    ),
    (
        &["generate", "--num", "1", "--force"],
        &[("-o", "/"), ("--runtime-cache", "/")],
        &[("", "/"), ("--class-names", ".json"), ("--ort-lib", ".so"), ("--trt-lib", "/")],
    ),
    (&["decode", "--force"], &[("-o", "/"), ("--runtime-cache", "/")], &[("", "/"), ("--tokens", ".npz")]),
    (&["encode", "--force"], &[("-o", ".npz"), ("--runtime-cache", "/")], &[("", "/"), ("--images", ".npz")]),
    (&["reference", "--force"], &[("-o", "/"), ("--runtime-cache", "/")], &[("", "/")]),
    (&["attest", "--force"], &[("-o", ".jsonl")], &[("", "/"), ("--key", ".pem")]),
    (&["attest", "--force"], &[("-o", ".jsonl")], &[("", ".jsonl"), ("--key", ".jsonl")]),
    (
        &["verify"],
        &[("--report", ".html"), ("--junit", ".xml"), ("--runtime-cache", "/")],
        &[
            ("", "/"),
            ("--reference", "/"),
            ("--streams", ".xml"),
            ("--key", ".html"),
            ("--attestation", ".html"),
        ],
    ),
    (
        &["parity"],
        &[("--report", ".html"), ("--junit", ".xml"), ("--runtime-cache", "/")],
        &[("", "/"), ("--reference", "/")],
    ),
    (&["bisect"], &[("--runtime-cache", "/")], &[("", "/"), ("--reference", "/")]),
    (
        &["reproduce"],
        &[("--runtime-cache", "/")],
        &[("", "/"), ("--reference", "/"), ("--baseline", "/"), ("--extractor", "/"), ("--images", ".npz")],
    ),
    (
        &["evaluate", "--resume"],
        &[("-o", "/"), ("--runtime-cache", "/")],
        &[
            ("--samples", "/"),
            ("--reference", ".npz"),
            ("--extractor", "/"),
            ("--compare", ".json"),
            ("--merge", "/"),
        ],
    ),
    (
        &["evaluate", "--num", "2"],
        &[("-o", "/"), ("--runtime-cache", "/")],
        &[("--bundle", "/"), ("--reference", "/"), ("--extractor", ".onnx")],
    ),
];

/// An option with its value, or an argument.
fn with<'a>(option: &'a str, value: &'a str) -> Vec<&'a str> {
    if option.is_empty() { vec![value] } else { vec![option, value] }
}

#[cfg(unix)]
#[test]
fn no_output_of_any_command_eats_an_input() {
    use std::os::unix::fs::symlink;
    let temp = Temp::new();
    let root = temp.path("");
    let mut count = 0;
    for (command, outputs, inputs) in EATERS {
        for (at, (output, ending)) in outputs.iter().enumerate() {
            for (eaten, (_, kind)) in inputs.iter().enumerate() {
                let work = root.join("work");
                fs_err::create_dir(&work).unwrap();
                // Every input in a folder of its own.
                let paths: Vec<Utf8PathBuf> = (0..inputs.len())
                    .map(|i| {
                        let folder = work.join(format!("in{i}"));
                        let ending = inputs[i].1;
                        fs_err::create_dir_all(folder.join("x/y")).unwrap();
                        fs_err::write(folder.join("x/y/z"), "precious").unwrap();
                        let path = folder.join(format!("x{ending}"));
                        if ending != "/" {
                            fs_err::write(&path, "precious").unwrap();
                        }
                        path
                    })
                    .collect();
                let input = &paths[eaten];
                let folder = work.join(format!("in{eaten}"));
                symlink(&folder, work.join("link")).unwrap();
                let linked = work.join("link").join(input.strip_prefix(&folder).unwrap());
                let mut bad = Vec::new();
                if kind.starts_with('/') {
                    bad.extend(
                        [input, &linked].map(|p| p.join(format!("new{}", ending.trim_end_matches('/')))),
                    );
                    bad.push(work.join(format!("none/../in{eaten}/x/y/new{}", ending.trim_end_matches('/'))));
                }
                if *ending == "/" {
                    bad.extend([folder.clone(), work.join("link"), input.clone(), linked.clone()]);
                } else if ending == kind {
                    let hard = work.join(format!("hard{ending}"));
                    fs_err::hard_link(input, &hard).unwrap();
                    let soft = work.join(format!("soft{ending}"));
                    symlink(input, &soft).unwrap();
                    bad.extend([input.clone(), linked.clone(), hard, soft]);
                }
                let before = tree(&work);
                for bad in bad {
                    let mut args: Vec<&str> = command.to_vec();
                    let free: Vec<String> =
                        outputs.iter().enumerate().map(|(i, o)| format!("{work}/free{i}{}", o.1)).collect();
                    for (i, (option, _)) in outputs.iter().enumerate().filter(|(i, _)| *i <= at) {
                        args.extend(with(option, if i == at { bad.as_str() } else { &free[i] }));
                    }
                    // Outputs that a command cannot do without.
                    if at > 0 && outputs[0].0 == "-o" {
                        assert!(args.contains(&free[0].as_str()), "{output}");
                    }
                    for ((option, _), path) in inputs.iter().zip(&paths).filter(|(o, _)| o.0 != "--merge") {
                        args.extend(with(option, path.as_str()));
                    }
                    if let Some(i) = inputs.iter().position(|o| o.0 == "--merge") {
                        args.extend(["--merge", paths[i].as_str()]);
                    }
                    let refused = run(&args);
                    let said =
                        ["is", "holds", "lies in"].iter().any(|w| refused.stderr.contains(&format!(" {w} ")));
                    assert!(
                        refused.code == 2 && said && refused.stderr.contains("write it somewhere else"),
                        "{args:?}: {} {}",
                        refused.code,
                        refused.stderr
                    );
                    assert!(tree(&work) == before, "{args:?}: something was changed");
                    count += 1;
                }
                fs_err::remove_dir_all(&work).unwrap();
            }
        }
    }
    assert!(count > 150, "{count} cases");
}

/// What follows from an option: the default name of an attestation, the samples of the other evaluation, the files that a
/// configuration names; and a bundle that is extended in its own place.
#[test]
fn what_follows_from_an_option_is_not_eaten_either() {
    let temp = Temp::new();
    let other = temp.path("other");
    fs_err::create_dir_all(other.join("samples")).unwrap();
    fs_err::write(other.join("metrics.json"), "{}").unwrap();
    let (into, metrics) = (other.join("samples/new"), other.join("metrics.json"));
    let image = temp.path("x.npz");
    let evaluate =
        ["evaluate", "--samples", image.as_str(), "--reference", image.as_str(), "--extractor", "e"];
    let refused = run(&[&evaluate[..], &["--compare", metrics.as_str(), "-o", into.as_str()]].concat());
    assert!(
        refused.code == 2 && refused.stderr.contains("lies in the other evaluation"),
        "{}",
        refused.stderr
    );

    let key = temp.path("b.intoto.jsonl");
    fs_err::create_dir(temp.path("b")).unwrap();
    fs_err::write(&key, "secret").unwrap();
    let refused = run(&["attest", temp.path("b").as_str(), "--key", key.as_str(), "--force"]);
    assert!(refused.code == 2 && refused.stderr.contains("is the key"), "{}", refused.stderr);
    assert_eq!(fs_err::read(&key).unwrap(), b"secret");

    let bundle = temp.path("bundle");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    for _ in 0..2 {
        let made = run(&["--target", "trt", "--emit-trtexec", bundle.as_str()]);
        assert_eq!(made.code, 0, "{}", made.stderr);
        assert!(Bundle::open(&bundle).unwrap().folder().join("trt/trtexec.sh").is_file());
    }
    let same = run(&["--target", "trt", "--emit-trtexec", bundle.as_str(), "-o", bundle.as_str(), "--force"]);
    assert!(same.code == 2 && same.stderr.contains("is the checkpoint"), "{}", same.stderr);
    assert!(!names(&temp.path("")).iter().any(|n| n.starts_with('.')));
}
