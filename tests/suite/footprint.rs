//! Memory does not grow with the number of images.

use std::process::{Command, Stdio};
use std::time::Duration;

use camino::Utf8Path;
use dpar_export::arrays::{Array, ArrayFile, ArrayRef, write_npz};
use dpar_export_checkpoint::LoadOptions;

use crate::common::{Temp, export, fixture};

/// Anonymous memory that many images may take more than few: what two runs of one command differ by, and little more.
const ROOM: u64 = 4 << 20;
/// Images of the small run and of the large one.
const FEW: usize = 8;
const MANY: usize = 160;

/// Runs the program; the most anonymous memory that was seen in it.
fn peak(args: &[&str]) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dpar-export"))
        .args(args)
        // Memory that is given back is given back at once, so that the peak is that of what is held.
        .env("MALLOC_TRIM_THRESHOLD_", "0")
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .env("MALLOC_ARENA_MAX", "1")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{args:?}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The peaks of a run over few images and over many, which are to differ by little.
fn assert_flat(what: &str, run: impl Fn(usize) -> u64) {
    let [few, many] = [FEW, MANY].map(run);
    assert!(few > 0, "{what}: nothing was measured");
    assert!(many < few + ROOM, "{what}: {FEW} images take {} MiB, {MANY} take {} MiB", few >> 20, many >> 20);
}

fn bundle(temp: &Temp) -> String {
    let options = LoadOptions { vq: Some(fixture("emoji32/vq.pt")), ..LoadOptions::default() };
    let bundle = temp.path("b");
    export("emoji32/dpar", &options, &bundle);
    bundle.into_string()
}

fn i64s(file: &Utf8Path, name: &str) -> (Vec<usize>, Vec<i64>) {
    match ArrayFile::open(file).unwrap().get(name).unwrap() {
        Array::I64(a) => (a.shape().to_vec(), a.into_raw_vec_and_offset().0),
        other => panic!("{name} is {}", other.dtype()),
    }
}

/// `rows` rows of an array, of which the file has fewer.
fn repeated<T: Copy>(values: &[T], row: usize, rows: usize) -> Vec<T> {
    values.iter().copied().cycle().take(row * rows).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_number_of_images() {
    let temp = Temp::new();
    let bundle = bundle(&temp);
    let path = |name: &str, n: usize| temp.path(&format!("{name}{n}")).into_string();
    assert_flat("generate", |n| {
        let (num, out) = (n.to_string(), path("samples", n));
        peak(&["generate", &bundle, "--num", &num, "--batch", "8", "--threads", "1", "-o", &out])
    });
    let (shape, tokens) = i64s(&temp.path(&format!("samples{FEW}")).join("trace.npz"), "tokens");
    let t = shape[1];
    let inputs = |n: usize| {
        let file = temp.path(&format!("tokens{n}.npz"));
        let (tokens, labels) = (repeated(&tokens, t, n), vec![0; n]);
        let (matrix, vector) = ([n, t], [n]);
        let tokens = ("tokens", ArrayRef::i64(&matrix, &tokens));
        write_npz(&file, &[tokens, ("class_labels", ArrayRef::i64(&vector, &labels))]).unwrap();
        file.into_string()
    };
    let on = ["--batch", "8", "--threads", "1"];
    assert_flat("decode", |n| {
        let (file, out) = (inputs(n), path("decoded", n));
        peak(&[["decode", &bundle, "--tokens", &file, "-o", &out].as_slice(), &on].concat())
    });
    assert_flat("encode", |n| {
        let (file, out) = (path("decoded", n) + "/samples.npz", path("codes", n) + ".npz");
        peak(&[["encode", &bundle, "--images", &file, "-o", &out].as_slice(), &on].concat())
    });
    assert_flat("score", |n| {
        let (file, out) = (inputs(n), path("scores", n) + ".npz");
        peak(&[["score", &bundle, "--inputs", &file, "-o", &out].as_slice(), &on].concat())
    });
}

/// Of recorded streams only those are compared that are asked for, and no more than one is in memory.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_number_of_recorded_streams() {
    let temp = Temp::new();
    let bundle = bundle(&temp);
    let recorded = ArrayFile::open(fixture("emoji32/streams_dpar.safetensors")).unwrap();
    assert_flat("verify --streams", |n| {
        // Beside the few images more that are drawn, thousands of rows that are read.
        let rows = 100 * n;
        let folder = temp.path(&format!("streams{n}"));
        fs_err::create_dir(&folder).unwrap();
        fs_err::copy(fixture("emoji32/reference.json"), folder.join("reference.json")).unwrap();
        let [tokens, lengths, labels] = ["tokens", "patch_lengths", "class_labels"].map(|name| {
            let array = recorded.i64(name, if name == "class_labels" { &[None] } else { &[None, None] });
            let array = array.unwrap();
            let row = array.len() / array.shape()[0];
            (row, repeated(array.as_slice().unwrap(), row, rows))
        });
        let [entropy, margin] = ["entropy", "margin"].map(|name| {
            let array = recorded.f32(name, &[None, None]).unwrap();
            let row = array.shape()[1];
            (row, repeated(array.as_slice().unwrap(), row, rows))
        });
        let matrix = |row: usize| [rows, row];
        let (t, p, e, m, l) =
            (matrix(tokens.0), matrix(lengths.0), matrix(entropy.0), matrix(margin.0), [rows]);
        let file = folder.join("streams.npz");
        write_npz(
            &file,
            &[
                ("tokens", ArrayRef::i64(&t, &tokens.1)),
                ("patch_lengths", ArrayRef::i64(&p, &lengths.1)),
                ("entropy", ArrayRef::f32(&e, &entropy.1)),
                ("margin", ArrayRef::f32(&m, &margin.1)),
                ("class_labels", ArrayRef::i64(&l, &labels.1)),
            ],
        )
        .unwrap();
        let limit = n.to_string();
        peak(&[
            "verify",
            &bundle,
            "--streams",
            file.as_str(),
            "--limit",
            &limit,
            "--no-probes",
            "--batch",
            "8",
            "--threads",
            "1",
        ])
    });
}
