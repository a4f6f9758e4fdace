//! Inputs that ask for more than they are: bombs, sizes that cannot be, files without an end. Each runs under a limit of
//! memory and of time, and must end with its exit code and the option that raises the limit.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::arrays::{ArrayRef, write_npz};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_onnx::derive::{read_model, write_model};

use crate::cli::Run;
use crate::common::{ENGINES, Temp, export, fixture};
use crate::evaluate::images;
use crate::faults::rehash;

/// Address space of a limited run. The program, its threads and a bundle of the fixtures take less than half of it.
const KIB: u64 = 4 << 20;
/// A run that takes longer hangs.
const SECONDS: u64 = 120;

/// Runs the program under the limits; 124 where it hangs.
fn limited<S: AsRef<str>>(args: &[S]) -> Run {
    let program = assert_cmd::cargo::cargo_bin("dpar-export");
    let (kib, seconds) = (KIB.to_string(), SECONDS.to_string());
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -v \"$1\"; shift; exec timeout \"$@\"",
        "sh",
        kib.as_str(),
        seconds.as_str(),
    ]);
    let output = command.arg(program).args(args.iter().map(AsRef::as_ref)).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Run { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Ends with exit code 2 and says all of this.
fn refused<S: AsRef<str>>(args: &[S], says: &[&str]) {
    let out = limited(args);
    let line: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    assert_eq!(out.code, 2, "{line:?}: {}", out.stderr);
    for part in says {
        assert!(out.stderr.contains(part), "{line:?}: `{part}` is not in: {}", out.stderr);
    }
}

fn npy(descr: &str, shape: &str) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    out.extend(header.as_bytes());
    out
}

/// A deflated `.npz` of zeros: name, type, shape and bytes of each array.
fn zeros(path: &Utf8Path, arrays: &[(&str, &str, &str, u64)]) {
    let mut zip = zip::ZipWriter::new(fs_err::File::create(path).unwrap());
    for (name, descr, shape, bytes) in arrays {
        let options = zip::write::SimpleFileOptions::default().compression_level(Some(1));
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(&npy(descr, shape)).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), *bytes), &mut zip).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn compressed_arrays_are_refused_before_they_are_read() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("emoji32/dpar", &LoadOptions::default(), &bundle);
    let bundle = bundle.as_str();
    let path = temp.path("x.npz");
    let (file, out) = (path.as_str(), temp.path("out.npz"));
    let mib = 1 << 20;

    // 512 MiB in a few: 8 million images of 64 tokens, 4 GiB of int64.
    zeros(
        &path,
        &[("tokens", "|u1", "(8388608, 64)", 512 * mib), ("class_labels", "|u1", "(8388608,)", 8 * mib)],
    );
    assert!(fs_err::metadata(&path).unwrap().len() < 16 * mib);
    let score = ["score", bundle, "--inputs", file, "-o", out.as_str()];
    let folder = temp.path("images");
    let decode = ["decode", bundle, "--tokens", file, "-o", folder.as_str()];
    for args in [&score, &decode] {
        refused(args, &["`tokens` holds 8388608 images, 100000 are allowed", "--max-images"]);
        let more = [&args[..], &["--max-images", "100000000"]].concat();
        refused(&more, &["array `tokens`", "would take", "GiB", "--max-memory"]);
        let less = [&more[..], &["--max-memory", "1MiB"]].concat();
        refused(&less, &["would take 512.0 MiB of memory, 1.0 MiB are allowed"]);
    }
    // Few images can be as large, and nothing may count its sizes before they are held against the file.
    zeros(&path, &[("tokens", "<i8", "(1, 67108864)", 512 * mib), ("class_labels", "<i8", "(1,)", 8)]);
    refused(&[&score[..], &["--max-memory", "64MiB"]].concat(), &["would take 512.0 MiB"]);
    // Images are read a few at a time: only so many ask for memory.
    zeros(&path, &[("arr_0", "|u1", "(1, 16384, 16384, 3)", 3 << 28)]);
    let encode = ["encode", bundle, "--images", file, "-o", out.as_str()];
    refused(&encode, &["array `arr_0`", "16384"]);
    assert!(!out.exists() && !folder.exists());
}

#[test]
fn wide_activations_are_refused_before_their_covariance() {
    let temp = Temp::new();
    let path = temp.path("x.npz");
    let args = ["metrics", "--activations", path.as_str(), "--reference", path.as_str()];
    // Two images of 16 million features: a matrix of 2 PiB.
    zeros(&path, &[("pool_3", "<f4", "(2, 16777216)", 128 << 20)]);
    refused(&args, &["array `pool_3`: the covariance of 16777216 features", "--max-memory"]);
    zeros(&path, &[("pool_3", "<f4", "(4, 8)", 128), ("spatial", "<f4", "(4, 65536)", 1 << 20)]);
    refused(&args, &["array `spatial`: the covariance of 65536 features"]);
    zeros(&path, &[("mu", "<f8", "(65536,)", 1 << 19), ("sigma", "<f8", "(65536, 65536)", 1 << 19)]);
    refused(&args, &["the covariance of 65536 features"]);
    zeros(&path, &[("pool_3", "<f8", "(1048576, 64)", 512 << 20)]);
    refused(&[&args[..], &["--max-memory", "256MiB"]].concat(), &["would take 512.0 MiB"]);
    // The name of a network is short.
    zeros(&path, &[("pool_3", "<f4", "(4, 8)", 128), ("extractor", "|u1", "(268435456,)", 256 << 20)]);
    refused(&args, &["`extractor` is no name"]);
}

/// A PNG whose header promises these sizes, with nothing behind it.
fn png(path: &Utf8Path, side: u32) {
    let mut header = b"IHDR".to_vec();
    header.extend(side.to_be_bytes());
    header.extend(side.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut out = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d".to_vec();
    out.extend(&header);
    out.extend(crc32fast::hash(&header).to_be_bytes());
    fs_err::write(path, out).unwrap();
}

#[test]
fn pictures_are_refused_by_their_header() {
    let temp = Temp::new();
    let folder = temp.path("images");
    fs_err::create_dir(&folder).unwrap();
    let (reference, out) = (temp.path("r.npz"), temp.path("out"));
    images(&reference, 4, 1, 10);
    let network = fixture("features/tiny.onnx");
    let args =
        ["evaluate", "--samples", folder.as_str(), "--reference", reference.as_str(), "-o", out.as_str()];
    let args = [&args[..], &["--extractor", network.as_str(), "--input-size", "16"]].concat();
    let path = folder.join("000000.png");
    png(&path, 20_000);
    refused(&args, &["20000 × 20000 pixels are too many"]);
    png(&path, 16_000);
    let small = [&args[..], &["--max-memory", "512MiB"]].concat();
    refused(&small, &["000000.png: it would take 732.", "--max-memory"]);
    png(&path, u32::MAX);
    refused(&args, &["000000.png"]);
    assert!(!out.exists());
}

/// Copies a bundle's graph with another attribute; the manifest fits it.
fn transposed(bundle: &Utf8Path, perm: &[i64]) {
    let path = bundle.join("onnx/score.onnx");
    let mut model = read_model(&fs_err::read(&path).unwrap()).unwrap();
    let nodes = &mut model.graph.as_mut().unwrap().node;
    let node = nodes.iter_mut().find(|n| n.op_type.as_deref() == Some("Transpose")).unwrap();
    let attribute = node.attribute.iter_mut().find(|a| a.name.as_deref() == Some("perm")).unwrap();
    attribute.ints = perm.to_vec();
    fs_err::write(&path, write_model(&model)).unwrap();
    rehash(bundle);
}

#[test]
fn a_transposition_that_is_none_reaches_no_engine() {
    let temp = Temp::new();
    let (bundle, inputs, out) = (temp.path("b"), temp.path("in.npz"), temp.path("out.npz"));
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let tokens = fixture("dpar-small/golden.npz");
    let tokens = if tokens.exists() { tokens } else { fixture("dpar-small/golden.safetensors") };
    let file = dpar_export::arrays::ArrayFile::open(&tokens).unwrap();
    let (ids, labels) = (file.get("tokens").unwrap(), file.get("class_labels").unwrap());
    write_npz(&inputs, &[("tokens", (&ids).into()), ("class_labels", (&labels).into())]).unwrap();
    for perm in [&[0, 0, 2, 3][..], &[0, 1, 2, 9], &[-1, 0, 1, 2], &[1 << 40]] {
        transposed(&bundle, perm);
        for engine in ENGINES {
            let args = ["score", bundle.as_str(), "--inputs", inputs.as_str(), "-o", out.as_str()];
            let text = format!("perm {perm:?} is no permutation");
            refused(&[&args[..], &["--engine", engine]].concat(), &["graph `score`", "(Transpose)", &text]);
        }
    }
}

#[test]
fn inputs_without_an_end_are_no_inputs() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("emoji32/dpar", &LoadOptions::default(), &bundle);
    let (b, out) = (bundle.as_str(), temp.path("out.npz"));
    let place = |name: &str, endless: bool| -> Utf8PathBuf {
        let path = temp.path(name);
        let _ = fs_err::remove_file(&path);
        if endless {
            fs_err::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        } else {
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        }
        path
    };
    let good = temp.path("good.npz");
    images(&good, 4, 1, 10);
    let network = fixture("features/tiny.onnx");
    let checkpoint = fixture("emoji32/dpar");
    for endless in [false, true] {
        let npz = place("x.npz", endless);
        let json = place("x.json", endless);
        let weights = place("x.safetensors", endless);
        let onnx = place("x.onnx", endless);
        let folder = temp.path("golden");
        let _ = fs_err::create_dir(&folder);
        let golden = place("golden/golden.npz", endless);
        let settings = place("golden/golden.json", endless);
        let (npz, json, weights) = (npz.as_str(), json.as_str(), weights.as_str());
        let cases: &[&[&str]] = &[
            &["score", b, "--inputs", npz, "-o", out.as_str()],
            &["decode", b, "--tokens", npz, "-o", out.as_str()],
            &["encode", b, "--images", npz, "-o", out.as_str()],
            &["metrics", "--activations", npz, "--reference", npz],
            &["generate", b, "--num", "1", "--class-names", json, "-o", out.as_str()],
            &["verify", b, "--reference", folder.as_str()],
            &["verify", b, "--streams", npz],
            &["inspect", weights],
            &["--target", "onnx", weights, "-o", out.as_str()],
            &["--target", "onnx", checkpoint.as_str(), "--map", json, "-o", out.as_str()],
            &["--target", "onnx", checkpoint.as_str(), "--vq", weights, "-o", out.as_str()],
            &["evaluate", "--samples", npz, "--reference", good.as_str(), "--extractor", network.as_str()],
            &["evaluate", "--samples", good.as_str(), "--reference", npz, "--extractor", network.as_str()],
            &[
                "evaluate",
                "--samples",
                good.as_str(),
                "--reference",
                good.as_str(),
                "--extractor",
                onnx.as_str(),
            ],
            &["reproduce", "--paper", "DPAR-B", "--runs", json, json, json],
            &["attest", json, "--key", json],
        ];
        for args in cases {
            let more: &[&str] = match args[0] {
                "evaluate" => &["--input-size", "16", "-o", out.as_str()],
                _ => &[],
            };
            refused(&[args, more].concat(), &[]);
        }
        for path in [golden, settings] {
            fs_err::remove_file(path).unwrap();
        }
    }
    assert!(!out.exists());
}

#[test]
fn a_name_without_an_end_is_no_panic() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let path = bundle.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    let long = "x".repeat(100_000);
    manifest["sources"][0]["name"] = long.clone().into();
    fs_err::write(&path, manifest.to_string()).unwrap();
    let out = limited(&["inspect", bundle.as_str()]);
    assert!([0, 5].contains(&out.code), "{}", out.stderr);
    assert!(out.code == 5 || out.stdout.contains(&long), "{}", out.stderr);
}

/// 150,000 arrays: pairs of names would take minutes.
#[test]
fn wide_archives_are_listed_in_time() {
    let temp = Temp::new();
    let path = temp.path("x.npz");
    let mut zip = zip::ZipWriter::new(std::io::BufWriter::new(fs_err::File::create(&path).unwrap()));
    let array = npy("|u1", "(0,)");
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for i in 0..150_000 {
        zip.start_file(format!("{i}.npy"), stored).unwrap();
        zip.write_all(&array).unwrap();
    }
    zip.finish().unwrap().flush().unwrap();
    let started = Instant::now();
    let args = ["metrics", "--activations", path.as_str(), "--reference", path.as_str()];
    let out = limited(&args);
    assert_eq!(out.code, 2, "{}", out.stderr);
    assert!(out.stderr.contains("`pool_3`") && out.stderr.len() < 4096, "{} bytes", out.stderr.len());
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

fn signal(child: &std::process::Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// The decomposition of one covariance takes far longer than anybody waits.
#[test]
fn metrics_can_be_interrupted_in_the_middle_of_one() {
    let temp = Temp::new();
    let path = temp.path("x.npz");
    let shape = [64, 5000];
    let values: Vec<f32> =
        (0..64 * 5000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 * 1e-4).collect();
    write_npz(&path, &[("pool_3", ArrayRef::f32(&shape, &values))]).unwrap();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
    let args = ["metrics", "--activations", path.as_str(), "--reference", path.as_str(), "--threads", "1"];
    let mut child = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(child.try_wait().unwrap().is_none(), "it was done before it could be interrupted");
    let asked = Instant::now();
    signal(&child, "-INT");
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(130));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

/// Samples are mapped: where they are cut short meanwhile, the next access ends the program.
#[test]
fn samples_that_shrink_are_said() {
    let temp = Temp::new();
    let (samples, reference, out) = (temp.path("s.npz"), temp.path("r.npz"), temp.path("out"));
    images(&samples, 12_000, 1, 100);
    images(&reference, 150, 2, 100);
    let network = fixture("features/tiny.onnx");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
    command.args(["evaluate", "--samples", samples.as_str(), "--reference", reference.as_str()]);
    command.args(["--extractor", network.as_str(), "--input-size", "16", "--chunk", "16", "--threads", "1"]);
    command.args(["-o", out.as_str()]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while fs_err::metadata(out.join("samples/pool_3.f32")).map_or(0, |m| m.len()) == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "no progress");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs_err::OpenOptions::new().write(true).open(&samples).unwrap().set_len(1 << 20).unwrap();
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("cut short") && !out.join("metrics.json").exists(), "{stderr}");
}

/// Runs the program to its end; exit code, and the most memory that it had at a time, in bytes.
#[cfg(target_os = "linux")]
fn peak(args: &[&str]) -> (i32, u64) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
    let mut child = command.args(args).stdout(Stdio::null()).spawn().unwrap();
    let (status, mut most) = (format!("/proc/{}/status", child.id()), 0);
    loop {
        let text = fs_err::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
        most = most.max(kib.unwrap_or(0) << 10);
        if let Some(status) = child.try_wait().unwrap() {
            return (status.code().unwrap_or(-1), most);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The logits of 512 images take 134 MB, those of a batch 2 MB: what `score` and `verify` hold does not grow with N.
#[cfg(target_os = "linux")]
#[test]
fn logits_are_not_held() {
    const T: usize = 64;
    let temp = Temp::new();
    let (bundle, inputs, folder) = (temp.path("b"), temp.path("in.npz"), temp.path("golden"));
    export("emoji32/dpar", &LoadOptions::default(), &bundle);
    fs_err::create_dir(&folder).unwrap();
    let (out, golden) = (temp.path("out.npz"), folder.join("golden.npz"));
    let score = ["score", bundle.as_str(), "--inputs", inputs.as_str(), "-o", out.as_str(), "--force"];
    let verify = ["verify", bundle.as_str(), "--reference", folder.as_str(), "--no-probes"];
    let few_and_many = [16_usize, 512].map(|n| {
        let tokens: Vec<i64> = (0..n * T).map(|i| (i * 37 % 1024) as i64).collect();
        let labels: Vec<i64> = vec![0; n];
        let (matrix, vector) = ([n, T], [n]);
        let given =
            [("tokens", ArrayRef::i64(&matrix, &tokens)), ("class_labels", ArrayRef::i64(&vector, &labels))];
        write_npz(&inputs, &given).unwrap();
        let scored = peak(&score);
        let file = dpar_export::arrays::ArrayFile::open(&out).unwrap();
        assert_eq!(file.info("logits").unwrap().shape, [n, T, 1024]);
        let made = ["logits", "entropy", "patch_lengths"].map(|name| (name, file.get(name).unwrap()));
        let all: Vec<_> = given.into_iter().chain(made.iter().map(|(name, a)| (*name, a.into()))).collect();
        write_npz(&golden, &all).unwrap();
        let verified = peak(&verify);
        assert_eq!((scored.0, verified.0), (0, 0));
        [scored.1, verified.1]
    });
    for (few, many) in few_and_many[0].into_iter().zip(few_and_many[1]) {
        assert!(many < few + (64 << 20), "{few} bytes for 16 images, {many} for 512");
    }
}
