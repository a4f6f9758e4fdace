//! `generate --resume`: a run that is killed leaves the images that are done, and the same command line goes on.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::picture::read_png;
use dpar_export_checkpoint::LoadOptions;

use crate::cli::{json, run};
use crate::common::{Temp, export, fixture};

/// Images of a run that is killed: more than it makes until then.
const IMAGES: usize = 200;

fn names(folder: &Utf8Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
    names.sort_unstable();
    names
}

fn images(folder: &Utf8Path) -> Vec<Utf8PathBuf> {
    let mut found: Vec<Utf8PathBuf> =
        folder.read_dir_utf8().into_iter().flatten().map(|e| e.unwrap().into_path()).collect();
    found.retain(|path| path.extension() == Some("png"));
    found
}

/// A command line with its output.
fn to<'a>(words: &[&'a str], out: &'a Utf8Path, more: &[&'a str]) -> Vec<&'a str> {
    [words, &["-o", out.as_str()], more].concat()
}

/// Kills a run when the folder holds so many images.
fn killed(args: &[&str], folder: &Utf8Path, least: usize) {
    let mut child: Child = Command::new(env!("CARGO_BIN_EXE_dpar-export"))
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(300);
    while images(folder).len() < least {
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < end, "it was not to be whole yet");
        std::thread::sleep(Duration::from_millis(1));
    }
    // SIGKILL: nothing of it runs any more.
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_in_the_middle_a_run_goes_on_to_the_same_bytes() {
    let temp = Temp::new();
    let (bundle, at_once, out) = (temp.path("b"), temp.path("at_once"), temp.path("out"));
    let options = LoadOptions { vq: Some(fixture("emoji32/vq.pt")), ..LoadOptions::default() };
    export("emoji32/dpar", &options, &bundle);
    let num = IMAGES.to_string();
    let words = [
        "generate",
        bundle.as_str(),
        "--num",
        &num,
        "--cfg-scale",
        "2",
        "--overlay",
        "--batch",
        "4",
        "--json",
    ];
    let whole = run(&to(&words, &at_once, &[]));
    assert_eq!(whole.code, 0, "{}", whole.stderr);

    let resumed = to(&words, &out, &["--resume"]);
    let mut seen = 0;
    for least in [5, 30] {
        killed(&resumed, &out, seen + least);
        let found = images(&out);
        assert!(found.len() < IMAGES, "{}", found.len());
        seen = found.len();
        for image in &found {
            assert_eq!(read_png(image).unwrap().width, 32);
            let same = at_once.join(image.file_name().unwrap());
            assert_eq!(fs_err::read(image).unwrap(), fs_err::read(same).unwrap(), "{image}");
        }
        // What is not complete is no set of samples, and nothing takes its place unasked.
        let extractor = fixture("features/tiny.onnx");
        let evaluate = run(&[
            "evaluate",
            "--samples",
            out.as_str(),
            "--reference",
            at_once.as_str(),
            "--extractor",
            extractor.as_str(),
            "--input-size",
            "16",
            "-o",
            temp.path("e").as_str(),
        ]);
        assert!(evaluate.code == 2 && evaluate.stderr.contains("not complete"), "{}", evaluate.stderr);
        let plain = run(&to(&words, &out, &[]));
        assert!(plain.code == 2 && plain.stderr.contains("already exists"), "{}", plain.stderr);
        for (more, key) in [(["--seed", "7"], "`seed`"), (["--top-k", "5"], "`top_k`")] {
            let other = run(&[&resumed[..], &more].concat());
            assert!(other.code == 2 && other.stderr.contains("another run"), "{}", other.stderr);
            assert!(other.stderr.contains(key), "{}", other.stderr);
        }
        assert_eq!(images(&out).len(), seen);
    }
    let end = run(&resumed);
    assert_eq!(end.code, 0, "{}", end.stderr);
    let (whole, end) = (json(&whole), json(&end));
    assert_eq!((&end["steps"], &end["mean_steps"]), (&whole["steps"], &whole["mean_steps"]));
    let drawn = |report: &serde_json::Value| report["calls"][0]["calls"].as_u64().unwrap();
    assert!(drawn(&end) < drawn(&whole), "it has not begun anew");
    // Made at once or not, the samples are the same; what run they are of stays beside them.
    let mut expected = names(&at_once);
    expected.push("run.json".to_owned());
    expected.sort_unstable();
    assert_eq!(names(&out), expected);
    for name in names(&at_once) {
        assert_eq!(
            fs_err::read(out.join(&name)).unwrap(),
            fs_err::read(at_once.join(&name)).unwrap(),
            "{name}"
        );
    }
    // Once more there is nothing to do; replaced is it only with --force, which begins anew.
    let again = run(&resumed);
    assert_eq!((again.code, &json(&again)["steps"]), (0, &whole["steps"]), "{}", again.stderr);
    let both = run(&[&resumed[..], &["--force"]].concat());
    assert!(both.code == 2 && both.stderr.contains("--force"), "{}", both.stderr);
}

#[test]
fn tokens_alone_and_rows_that_are_filled_again_go_on_too() {
    let temp = Temp::new();
    let (bundle, at_once, out) = (temp.path("b"), temp.path("at_once"), temp.path("out"));
    export("emoji32/dpar", &LoadOptions::default(), &bundle);
    let words = [
        "generate",
        bundle.as_str(),
        "--classes",
        "1,5,8,0,3",
        "--batch",
        "2",
        "--schedule",
        "continuous",
        "--no-images",
    ];
    for (folder, more) in [(&at_once, &[][..]), (&out, &["--resume"])] {
        let done = run(&[&words[..], &["-o", folder.as_str()], more].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
    }
    assert_eq!(names(&out), ["run.json", "trace.npz"]);
    assert_eq!(
        fs_err::read(out.join("trace.npz")).unwrap(),
        fs_err::read(at_once.join("trace.npz")).unwrap()
    );
}
