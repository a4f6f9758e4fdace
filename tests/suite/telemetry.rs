//! Nothing is sent and nothing is left in a user's folders: every command in an empty network, with empty folders, kept alive
//! for as long as a library's telemetry takes to look for its vendor's host.

use std::io::{PipeReader, Read, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use camino::Utf8Path;
use dpar_export::arrays::{ArrayRef, write_npz};

use crate::attest::private_key;
use crate::common::{Temp, fixture};
use crate::evaluate::images;
use crate::network::{alone, attempts, files, inside, role};

/// ONNX Runtime does it between 8 and 9 seconds after it was started; commands start within the rest of this.
const LONG_ENOUGH: Duration = Duration::from_secs(30);
/// Bytes that a pipe holds.
const PIPE: usize = 1 << 16;

/// A command whose output nobody takes yet: it does its work and then waits, with all that it has loaded.
struct Waiting {
    name: String,
    child: Child,
    stdout: PipeReader,
    exits: &'static [i32],
}

impl Waiting {
    fn start(args: &[&str], place: &Path, exits: &'static [i32]) -> Self {
        let (stdout, mut full) = std::io::pipe().unwrap();
        full.write_all(&[b'\n'; PIPE]).unwrap();
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
        alone(command.args(args).current_dir(place), place).env_remove("RUST_LOG");
        let child = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        Self { name: args.join(" "), child, stdout, exits }
    }

    fn finish(mut self) {
        let waited = self.child.try_wait().unwrap().is_none();
        let mut said = String::new();
        if self.name.starts_with("serve ") {
            // It says where it serves, and goes on until it is told to end.
            let mut byte = [b'\n'];
            while byte == [b'\n'] {
                self.stdout.read_exact(&mut byte).unwrap();
            }
            let process = nix::unistd::Pid::from_raw(self.child.id() as i32);
            nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).unwrap();
        }
        self.stdout.read_to_string(&mut said).unwrap();
        let output = self.child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code().unwrap();
        assert!(self.exits.contains(&code), "{}: {code} {}{stderr}", self.name, said.trim_start());
        assert!(waited, "{}: it ended without a word", self.name);
    }
}

/// The part inside: `place` is the folder of its inputs, and of what it may write.
fn every_command(place: &Path) {
    let temp = Temp::new();
    let at = |name: &str| temp.path(name);
    let user = at("user");
    fs_err::create_dir(&user).unwrap();
    let user = user.as_std_path();
    let (bundle, golden, trained) = (at("b"), fixture("dpar-small"), at("trained"));
    let export = |checkpoint: &str, out: &Utf8Path| {
        let from = fixture(checkpoint);
        Waiting::start(&["--target", "onnx", from.as_str(), "-o", out.as_str()], user, &[0])
    };
    [export("dpar-small/dpar", &bundle), export("emoji32/dpar", &trained)]
        .into_iter()
        .for_each(Waiting::finish);

    let (pixels, picture, samples, reference) =
        (at("pixels.npz"), at("picture.npz"), at("s.npz"), at("r.npz"));
    write_npz(&pixels, &[("images", ArrayRef::f32(&[1, 3, 64, 64], &[0.0; 3 * 64 * 64]))]).unwrap();
    images(&picture, 20, 1, 100);
    let features: Vec<f32> = (0..64 * 3).map(|i| ((i * i) % 17) as f32).collect();
    for file in [&samples, &reference] {
        write_npz(file, &[("pool_3", ArrayRef::f32(&[64, 3], &features))]).unwrap();
    }
    let private = private_key(&temp);
    let outs = ["scores.npz", "images", "decoded", "codes.npz", "recorded", "ev", "attest.jsonl"].map(at);
    let [scores, drawn, decoded, codes, recorded, evaluated, attested] = outs.each_ref().map(|p| p.as_str());
    let (b, arrays) = (bundle.as_str(), golden.join("golden.safetensors"));
    let (emoji, network) = (fixture("emoji32"), fixture("features/tiny.onnx"));
    let ort = ["--engine", "ort"];
    let with = |args: &[&str]| -> Vec<String> { args.iter().map(|a| (*a).to_owned()).collect() };
    let mut commands: Vec<(Vec<String>, &'static [i32])> = vec![
        (with(&["inspect", b]), &[0]),
        (with(&["doctor", "--engine", "ort"]), &[0]),
        (with(&[&["score", b, "--inputs", arrays.as_str(), "-o", scores], &ort[..]].concat()), &[0]),
        (with(&[&["generate", b, "--num", "1", "-o", drawn], &ort[..]].concat()), &[0]),
        (with(&[&["decode", b, "--tokens", arrays.as_str(), "-o", decoded], &ort[..]].concat()), &[0]),
        (with(&[&["encode", b, "--images", pixels.as_str(), "-o", codes], &ort[..]].concat()), &[0]),
        (
            with(
                &[&["reproduce", trained.as_str(), "--reference", emoji.as_str(), "--num", "2"], &ort[..]]
                    .concat(),
            ),
            &[0, 1, 4],
        ),
        (with(&[&["verify", b, "--reference", golden.as_str(), "--no-probes"], &ort[..]].concat()), &[0]),
        (with(&[&["reference", b, "--num", "1", "-o", recorded], &ort[..]].concat()), &[0]),
        (with(&["attest", b, "--key", private.as_str(), "-o", attested]), &[0]),
        (
            with(
                &[
                    &[
                        "evaluate",
                        "--samples",
                        picture.as_str(),
                        "--reference",
                        picture.as_str(),
                        "-o",
                        evaluated,
                    ],
                    &["--extractor", network.as_str(), "--input-size", "16", "--kid-subset-size", "10"][..],
                    &ort[..],
                ]
                .concat(),
            ),
            &[0],
        ),
        (
            with(&[
                "metrics",
                "--activations",
                samples.as_str(),
                "--reference",
                reference.as_str(),
                "--kid-subset-size",
                "10",
            ]),
            &[0],
        ),
        (
            with(&[
                "parity",
                b,
                "--images",
                "1",
                "--no-probes",
                "--engines",
                &crate::common::ENGINES.join(","),
            ]),
            &[0],
        ),
        (with(&["bisect", b, "--images", "1", "--engines", "tract,ort"]), &[0]),
        (
            with(
                &[
                    &["bench", b, "--rounds", "1", "--warmup", "0"][..],
                    &["--engines", "ort", "--threads", "1"],
                ]
                .concat(),
            ),
            &[0],
        ),
        (with(&[&["serve", b, "--listen", "0.0.0.0:0", "--allow-no-token"], &ort[..]].concat()), &[0]),
        (with(&["completions", "bash"]), &[0]),
        (with(&["manual"]), &[0]),
    ];
    let seen: Vec<&str> = commands.iter().map(|(args, _)| args[0].as_str()).collect();
    // `synth`, `card`, `deploy`, `package` and `unpack` load no engine, and what `synth` writes is half a gigabyte and more. `demo` calls others of these.
    let elsewhere = ["synth", "card", "deploy", "package", "unpack", "demo"];
    for name in dpar_export::commands::subcommands().into_iter().filter(|n| !elsewhere.contains(&n.as_str()))
    {
        assert!(seen.contains(&name.as_str()), "`{name}` is not looked at");
    }
    if cfg!(feature = "tensorrt") {
        let small = fixture("variants/token/dpar");
        let built = at("built");
        // Without a driver the library is opened all the same.
        commands.push((with(&["doctor", "--engine", "tensorrt"]), &[0, 3]));
        let effort = ["--builder-optimization-level", "0"];
        commands.push((
            with(&[&["--target", "trt", small.as_str(), "-o", built.as_str()], &effort[..]].concat()),
            &[0],
        ));
    }
    let waiting: Vec<Waiting> = commands
        .iter()
        .map(|(args, exits)| {
            Waiting::start(&args.iter().map(String::as_str).collect::<Vec<_>>(), user, exits)
        })
        .collect();
    std::thread::sleep(LONG_ENOUGH);
    waiting.into_iter().for_each(Waiting::finish);

    assert_eq!(files(user), [] as [PathBuf; 0], "left behind");
    assert_eq!(attempts(), 0, "something looked for a network");
    // The count counts.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    assert!(probe.send_to(b"x", "192.0.2.1:53").is_err(), "this network is not empty");
    assert!(attempts() > 0);
    drop(temp);
    assert_eq!(files(place), [] as [PathBuf; 0], "left behind by the test itself");
}

#[test]
fn no_command_sends_anything_or_leaves_anything_behind() {
    let test = "telemetry::no_command_sends_anything_or_leaves_anything_behind";
    if let Some(place) = role() {
        every_command(Path::new(&place));
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let role = place.path().to_str().unwrap();
    let Some(output) = inside(test, role, place.path(), &[]) else { return };
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}

/// Whatever the environment says: the variable is the first thing that the program sets.
#[test]
fn a_variable_that_switches_telemetry_on_is_not_honoured() {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
    alone(command.args(["doctor", "--engine", "ort"]), place.path()).env("ORT_DISABLE_TELEMETRY", "0");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(files(place.path()), [] as [PathBuf; 0]);
}
