//! `evaluate --emit`: what is printed for a cluster, run part by part, gives what one process gives.

use std::process::Command;

use camino::Utf8Path;
use serde_json::Value;

use crate::cli::run;
use crate::common::fixture;
use crate::evaluate::Case;

/// Runs each part of an array and the merge where they are submitted, as Slurm would: scripts on stdin, the number in a variable.
const SBATCH: &str = r#"#!/bin/sh
script=$(cat)
echo "$@" >> submitted
for word in "$@"; do
  case $word in --array=1-*) last=${word#--array=1-} ;; esac
done
if [ -n "$last" ]; then
  part=$last
  while [ "$part" -ge 1 ]; do
    SLURM_ARRAY_TASK_ID=$part sh -c "$script" >> log 2>&1 || exit 1
    part=$((part - 1))
  done
else
  sh -c "$script" >> log 2>&1 || exit 1
fi
echo 17
"#;

fn shell(script: &str, folder: &Utf8Path, env: &[(&str, &str)]) {
    let program = assert_cmd::cargo::cargo_bin("dpar-export");
    let path = format!("{folder}:{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let ran = Command::new("sh")
        .args(["-c", script])
        .current_dir(folder)
        .env("PATH", path)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let log = fs_err::read_to_string(folder.join("log")).unwrap_or_default();
    assert!(ran.status.success(), "{}\n{log}", String::from_utf8_lossy(&ran.stderr));
}

#[cfg(unix)]
#[test]
fn the_parts_of_a_cluster_join_to_what_one_process_finds() {
    use std::os::unix::fs::PermissionsExt;
    let case = Case::new(40);
    let folder = case.temp.path("");
    let network = fixture("features/tiny.onnx");
    let common = [
        "evaluate",
        "--samples",
        "samples.npz",
        "--reference",
        "reference.npz",
        "--input-size",
        "16",
        "--chunk",
        "8",
        "--threads",
        "1",
        "--kid-subset-size",
        "20",
        "--extractor",
        network.as_str(),
    ];
    let emit = |how: &[&str]| {
        let out = run(&[&common[..], how].concat());
        assert_eq!(out.code, 0, "{}", out.stderr);
        assert!(out.stderr.contains("bash") || out.stderr.contains("kubectl wait"), "{}", out.stderr);
        out.stdout
    };
    shell(&[&["dpar-export"], &common[..], &["-o", "whole"]].concat().join(" "), &folder, &[]);
    let found = |name: &str| fs_err::read(folder.join(name).join("metrics.json")).unwrap();

    let sbatch = folder.join("sbatch");
    fs_err::write(&sbatch, SBATCH).unwrap();
    fs_err::set_permissions(&sbatch, std::fs::Permissions::from_mode(0o755)).unwrap();
    fs_err::write(folder.join("job.sh"), emit(&["--emit", "slurm", "--shards", "3", "-o", "in parts"]))
        .unwrap();
    shell("bash job.sh --partition=short", &folder, &[]);
    assert_eq!(found("in parts/merged"), found("whole"));
    let submitted = fs_err::read_to_string(folder.join("submitted")).unwrap();
    assert!(
        submitted.contains("--array=1-3") && submitted.contains("--dependency=afterok:17"),
        "{submitted}"
    );
    assert_eq!(submitted.matches("--partition=short").count(), 2);

    let list: Value = serde_json::from_str(&emit(&["--emit=k8s", "--shards=2", "--output=pods"])).unwrap();
    let script = |job: usize| {
        let container = &list["items"][job]["spec"]["template"]["spec"]["containers"][0];
        container["command"][2].as_str().unwrap().replace("$$", "$")
    };
    for index in ["1", "0"] {
        shell(&script(0), &folder, &[("JOB_COMPLETION_INDEX", index)]);
    }
    // A part that is done is done again at once: a pod may be started twice.
    shell(&script(0), &folder, &[("JOB_COMPLETION_INDEX", "1")]);
    shell(&script(1), &folder, &[]);
    assert_eq!(found("pods/merged"), found("whole"));
    for alone in [&["--shards", "3"][..], &["--emit", "slurm", "--resume"]] {
        let refused = run(&[&common[..], alone, &["-o", "x"]].concat());
        assert_eq!(refused.code, 2, "{}", refused.stderr);
    }
}
