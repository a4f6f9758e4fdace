//! `evaluate --pull`: parts by number, as a driver gives them out; `--on` where there is none.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::evaluate::Case;

/// Runs the command with these lines on standard input.
fn pull(case: &Case, out: &str, lines: &str, more: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("dpar-export"))
        .args(case.args(out, more))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A process that has ended reads nothing.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    let done = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(done.stdout).unwrap();
    let answers = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (done.status.code(), answers, String::from_utf8_lossy(&done.stderr).into_owned())
}

#[test]
fn parts_that_are_pulled_join_to_the_whole() {
    let case = Case::new(100);
    assert_eq!(case.run("whole", &[]).code, 0);
    // Two workers, whatever comes first; a part that was done is known again. None opens the reference.
    let away = case.temp.path("away.npz");
    fs_err::rename(&case.reference, &away).unwrap();
    let (code, first, said) = pull(&case, "a", "3\n1\n1\n", &["--pull", "4", "--resume"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, second, said) = pull(&case, "b", "4\n2\n", &["--pull", "4"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((&first[0], first[0]["images"].as_u64()), (&second[0], Some(100)));
    assert_eq!((first[1]["part"].as_u64(), &first[2]), (Some(3), &first[3]));
    assert!(first[1]["rows_sha256"]["pool_3.f32"].as_str().is_some_and(|s| s.len() == 64));
    fs_err::rename(&away, &case.reference).unwrap();
    let folders = ["a/part-1", "b/part-2", "a/part-3", "b/part-4"].map(|f| case.temp.path(f).to_string());
    let merge: Vec<&str> = ["--merge"].into_iter().chain(folders.iter().map(String::as_str)).collect();
    let merged = case.run("merged", &merge);
    assert_eq!(merged.code, 0, "{}", merged.stderr);
    assert!(case.metrics("merged") == case.metrics("whole"));

    for bad in ["0\n", "5\n", "x\n", "\n"] {
        let (code, _, said) = pull(&case, "c", bad, &["--pull", "4"]);
        assert!(code == Some(2) && said.contains("1 to 4"), "{said}");
    }
    let alone = case.run("d", &["--on", "ray"]);
    assert!(alone.code == 3 && alone.stderr.contains("Python package"), "{}", alone.stderr);
    assert!(!case.temp.path("d").exists());
    let until = ["--on", "ray", "--compare", "x", "--until", "inconclusive-resolved"];
    for odd in
        [&["--pull", "4", "--shard", "1/2"][..], &["--on", "ray", "--pull", "4"], &["--workers", "2"], &until]
    {
        let refused = case.run("e", odd);
        assert!(
            refused.code == 2 && !refused.stderr.contains("invalid value"),
            "{odd:?}: {}",
            refused.stderr
        );
    }
}
