//! Hostile names in every place where text from outside reaches a terminal, a CI log or a report: nothing of it comes out
//! raw, and all of it can be seen.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::arrays::{ArrayRef, write_npz, write_safetensors};
use dpar_export_checkpoint::LoadOptions;
use serde_json::{Value, json};

use crate::cli::{Run, run_with};
use crate::common::{Temp, export, fixture};

/// Colours, a C1 control, DEL, bidirectional and zero-width characters, line breaks, commands of GitHub and Azure.
const HOSTILE: &str = "X\u{1b}[31m\u{9b}2J\u{7f}\u{202e}\u{2067}\u{200b}\u{feff}\u{2028}\nFORGED\r\n::error::FORGED ##[error]F ##vso[task.x]F";

/// What is wrong with a text for people.
fn raw(text: &str) -> Option<String> {
    let hidden = |c: char| {
        c.is_control() && c != '\n'
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.lines().find_map(|line| {
        let start = line.trim_start();
        let forged = start.starts_with("FORGED") || start.starts_with("::");
        let bad = line.contains(hidden) || forged || line.contains("##[") || line.contains("##vso[");
        bad.then(|| format!("{line:?}"))
    })
}

/// Whether the hostile name is there, as one can read it.
fn shown(text: &str) -> bool {
    ["u{202e}", "u202e"].iter().any(|escape| text.contains(escape))
}

/// Files that the places share.
struct Files {
    temp: Temp,
    /// A good bundle.
    bundle: Utf8PathBuf,
    /// Files that are not what they should be, each with a hostile name.
    named: Utf8PathBuf,
}

impl Files {
    fn new() -> Self {
        let temp = Temp::new();
        let bundle = temp.path("b");
        export("variants/combined/dpar", &LoadOptions::default(), &bundle);
        let named = temp.path("named");
        fs_err::create_dir(&named).unwrap();
        Self { temp, bundle, named }
    }

    /// A file with a hostile name that ends so and holds these bytes.
    fn named(&self, ending: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.named.join(format!("{HOSTILE}{ending}"));
        fs_err::write(&path, bytes).unwrap();
        path.into_string()
    }

    /// A path with a hostile name where nothing is.
    fn nothing(&self, ending: &str) -> String {
        self.temp.path(&format!("{HOSTILE}{ending}")).into_string()
    }

    /// A file with a plain name.
    fn plain(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.temp.path(name);
        fs_err::write(&path, bytes).unwrap();
        path.into_string()
    }

    /// The bundle with a changed manifest.
    fn forged(&self, name: &str, change: impl FnOnce(&mut Value)) -> String {
        let copy = self.temp.path(name);
        crate::faults::copy(&self.bundle, &copy);
        let path = copy.join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        fs_err::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
        copy.into_string()
    }

    /// The bundle with a changed config.json and a manifest that fits it.
    fn configured(&self, name: &str, change: impl FnOnce(&mut Value)) -> String {
        let copy = self.temp.path(name);
        crate::faults::copy(&self.bundle, &copy);
        let path = copy.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs_err::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
        crate::faults::rehash(&copy);
        copy.into_string()
    }

    fn npz(&self, name: &str, arrays: &[(&str, ArrayRef<'_>)]) -> String {
        let path = self.temp.path(name);
        write_npz(&path, arrays).unwrap();
        path.into_string()
    }
}

/// A place: what it is called, its command line, variables of the environment.
struct Place(&'static str, Vec<String>, Vec<(&'static str, String)>);

fn place(name: &'static str, args: &[&str]) -> Place {
    Place(name, args.iter().map(|a| (*a).to_owned()).collect(), Vec::new())
}

/// Words of the command line.
fn words(f: &Files) -> Vec<Place> {
    let (b, golden) = (f.bundle.as_str(), fixture("variants/combined/golden.safetensors"));
    let (golden, checkpoint) = (golden.as_str(), fixture("variants/combined/dpar"));
    let (h, dir) = (HOSTILE, f.nothing(""));
    let (dir, npz) = (dir.as_str(), f.nothing(".npz"));
    let key = crate::attest::private_key(&f.temp).into_string();
    let network = fixture("features/tiny.onnx");
    let samples = f.npz("samples.npz", &[("arr_0", ArrayRef::u8(&[2, 8, 8, 3], &[0; 384]))]);
    vec![
        place("an option that is none", &[&format!("--{h}")]),
        place("a value that is none", &["generate", b, "--num", "1", "-o", "x", "--engine", h]),
        place("a number", &["generate", b, "--num", h, "-o", "x"]),
        place("a device", &["generate", b, "--num", "1", "-o", "x", "--device", h]),
        place("a resize rule", &["--component", "inception", "x", "--resize", h]),
        place("a superfluous word", &["doctor", b, h]),
        place("the checkpoint", &[dir, "-o", "x"]),
        place("--config", &[dir, "--config", h, "-o", "x"]),
        place("--entropy", &[checkpoint.as_str(), "--entropy", dir, "--dry-run"]),
        place("--vq", &[checkpoint.as_str(), "--vq", dir, "--dry-run"]),
        place("--map", &[checkpoint.as_str(), "--map", dir, "--dry-run"]),
        place("--profile", &["--target", "trt", b, "--dry-run", "--profile", h]),
        place("--min-shapes", &["--target", "trt", b, "--dry-run", "--min-shapes", h]),
        place("--compute-capability", &["--target", "trt", b, "--dry-run", "--compute-capability", h]),
        place("--calibrate-from", &["--target", "trt", b, "--dry-run", "--calibrate-from", dir]),
        place("inspect PATH", &["inspect", dir]),
        place("doctor BUNDLE", &["doctor", dir]),
        place("the bundle", &["generate", dir, "--num", "1", "-o", "x"]),
        place("--class-names", &["generate", b, "--num", "1", "-o", "x", "--class-names", dir]),
        place("score --inputs", &["score", b, "--inputs", &npz, "-o", "x.npz"]),
        place("score -o without its ending", &["score", b, "--inputs", golden, "-o", dir]),
        place("score -o", &["score", b, "--inputs", golden, "-o", &npz]),
        place("generate -o", &["generate", b, "--num", "1", "--no-images", "-o", dir]),
        place("decode --tokens", &["decode", b, "--tokens", &npz, "-o", "x"]),
        place("encode --images", &["encode", b, "--images", &npz, "-o", "x.npz"]),
        place("verify --reference", &["verify", b, "--reference", dir]),
        place("verify --streams", &["verify", b, "--streams", &format!("{dir}/s.safetensors")]),
        place("verify --key", &["verify", b, "--key", dir, "--attestation", dir]),
        place("verify --report", &["verify", b, "--reference", "x", "--report", dir]),
        place("bisect --reference", &["bisect", b, "--reference", dir]),
        place("attest PATH", &["attest", dir, "--key", &key]),
        place("attest -o", &["attest", b, "--key", &key, "-o", &f.nothing(".jsonl")]),
        place("metrics --activations", &["metrics", "--activations", &npz, "--reference", &npz]),
        place(
            "evaluate --samples",
            &["evaluate", "--samples", dir, "--reference", "x", "--extractor", network.as_str(), "-o", "y"],
        ),
        place(
            "evaluate --extractor",
            &["evaluate", "--samples", &samples, "--reference", "x", "--extractor", dir, "-o", "y"],
        ),
        place("reproduce --reference", &["reproduce", b, "--reference", dir]),
        place("reproduce --paper", &["reproduce", "--paper", h, "--runs", "x"]),
        place("reproduce --runs", &["reproduce", "--paper", "DPAR-B", "--runs", dir]),
        place("--ort-lib", &["generate", b, "--num", "1", "-o", "x", "--engine", "ort", "--ort-lib", dir]),
        Place("ORT_DYLIB_PATH", vec!["doctor".to_owned()], vec![("ORT_DYLIB_PATH", dir.to_owned())]),
    ]
}

/// A safetensors file whose one tensor has this name.
fn tensors(path: &Utf8Path, name: &str) {
    write_safetensors(path, &[(name, ArrayRef::f32(&[1], &[0.0]))]).unwrap();
}

/// A PyTorch file whose pickle names a class.
fn torch(path: &Utf8Path, module: &str) {
    let length = [u8::try_from(module.len()).unwrap()];
    let pickle = [b"\x80\x04\x8c".as_slice(), &length, module.as_bytes(), b"\x8c\x01y\x93)R."].concat();
    let mut zip = zip::ZipWriter::new(fs_err::File::create(path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle.as_slice()), ("a/version", b"3\n")] {
        zip.start_file(name, stored).unwrap();
        std::io::Write::write_all(&mut zip, bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// Content of files.
fn contents(f: &Files) -> Vec<Place> {
    let (b, h) = (f.bundle.as_str(), HOSTILE);
    let forged = |name, field: fn(&mut Value) -> &mut Value| f.forged(name, |m| *field(m) = HOSTILE.into());
    let source = forged("sources", |m| &mut m["sources"][0]["name"]);
    let golden = fixture("variants/combined");
    let (html, xml) = (f.temp.path("report.html"), f.temp.path("report.xml"));
    let both = f.forged("both", |m| {
        m["name"] = HOSTILE.into();
        m["sources"][0]["name"] = HOSTILE.into();
    });
    let verify = ["verify", &both, "--reference", golden.as_str(), "--no-probes"];
    let report = ["--report", html.as_str(), "--report-images", "0", "--junit", xml.as_str()];
    let unlisted = f.temp.path("unlisted");
    crate::faults::copy(&f.bundle, &unlisted);
    fs_err::write(unlisted.join(h), "").unwrap();
    let safe = f.temp.path("names.safetensors");
    tensors(&safe, h);
    let class = f.temp.path("class.pt");
    torch(&class, h);
    let key = crate::attest::key("test-only-public.pem").into_string();
    let envelope = json!({ "payloadType": h, "payload": "", "signatures": [] }).to_string();
    let config = fixture("dpar-small/dpar/config.yaml");
    let yaml = |from: &str, to: &str| {
        let text = fs_err::read_to_string(&config).unwrap();
        let changed = text.replacen(from, to, 1);
        assert_ne!(text, changed);
        changed
    };
    // YAML reads the escapes of JSON, and refuses controls that are not escaped.
    let units = h.encode_utf16().map(|u| format!("\\u{u:04x}")).collect::<String>();
    let quoted = format!("\"{units}\"");
    let graph = forged("graph", |m| &mut m["graphs"][0]["name"]);
    let weights = fixture("dpar-small/vq.pt").into_string();
    let experiment = f.temp.path("experiment");
    crate::faults::copy(&fixture("dpar-small/dpar"), &experiment);
    fs_err::write(experiment.join("config.yaml"), yaml("entropy_row_boundary", &quoted)).unwrap();
    let small = |text: String, name: &str| f.plain(name, text);
    vec![
        place("the model's name", &["inspect", &f.configured("name", |c| c["name"] = HOSTILE.into())]),
        place("the tool's name", &["inspect", &forged("tool", |m| &mut m["tool"]["name"])]),
        place("the tool's version", &["inspect", &forged("version", |m| &mut m["tool"]["version"])]),
        place("a source's name", &["inspect", &source]),
        place("a source's role", &["inspect", &forged("role", |m| &mut m["sources"][0]["role"])]),
        place("a file's path", &["inspect", &forged("path", |m| &mut m["files"][0]["path"])]),
        place("a graph's name", &["inspect", &graph]),
        place("a graph's file", &["inspect", &forged("file", |m| &mut m["graphs"][0]["file"])]),
        place("a port", &["inspect", &forged("port", |m| &mut m["graphs"][0]["inputs"][0]["name"])]),
        place("an axis", &["inspect", &forged("axis", |m| &mut m["graphs"][0]["axes"][0]["name"])]),
        place("a component", &["inspect", &forged("component", |m| &mut m["components"][0]["kind"])]),
        place("a field of the manifest", &["inspect", &f.forged("field", |m| m[HOSTILE] = 1.into())]),
        place("a precision", &["inspect", &forged("precision", |m| &mut m["precision"])]),
        place("a word of config.json", &["inspect", &f.configured("kind", |c| c["kind"] = HOSTILE.into())]),
        place("a file that is not listed", &["inspect", unlisted.as_str()]),
        place("a report's provenance", &[&verify[..], &report].concat()),
        place("a tensor's name", &[safe.as_str(), "--config", config.as_str(), "--dry-run"]),
        place("a class in a pickle", &["inspect", class.as_str(), "--config", config.as_str()]),
        place("a weight file's name", &["inspect", &f.named(".pt", "x"), "--config", config.as_str()]),
        place("a word of config.yaml", &[experiment.as_str(), "--dry-run"]),
        place(
            "a key of config.yaml",
            &[&weights, "--config", &small(yaml("model:", &format!("{quoted}: [")), "key.yaml"), "--dry-run"],
        ),
        place(
            "a rename rule",
            &[
                fixture("dpar-small/dpar").as_str(),
                "--map",
                &f.plain("map.yaml", format!("- {{ from: a, {quoted}: b }}")),
                "--dry-run",
            ],
        ),
        place(
            "an array's name",
            &["encode", b, "--images", &f.npz("member.npz", &[(h, ArrayRef::u8(&[1], &[0]))]), "-o", "x.npz"],
        ),
        place("an npz file's name", &["encode", b, "--images", &f.named(".npz", "x"), "-o", "x.npz"]),
        place(
            "class names",
            &["generate", b, "--num", "1", "-o", "x", "--class-names", &f.named(".json", "{}")],
        ),
        place(
            "an attestation",
            &["verify", b, "--key", &key, "--attestation", &f.plain("a.jsonl", envelope)],
        ),
        place("a key file", &["verify", b, "--attestation", "x", "--key", &f.named(".pem", "x")]),
        place(
            "an ONNX file",
            &["--component", "features", &f.named(".onnx", "x"), "--input-size", "8", "--dry-run"],
        ),
    ]
}

fn look(place: &Place, json: bool) -> Result<(), String> {
    let Place(name, args, env) = place;
    let mut args = args.clone();
    args.extend(json.then(|| "--json".to_owned()));
    let Run { stdout, stderr, code } = run_with(&args, env);
    for (what, text) in [("stdout", &stdout), ("stderr", &stderr)] {
        if let Some(line) = raw(text) {
            return Err(format!("{name}: {what} has it raw: {line}"));
        }
    }
    if stderr.contains("panicked") || ![0, 1, 2, 3, 5].contains(&code) {
        return Err(format!("{name}: exit code {code}: {stderr}"));
    }
    if json && !stdout.is_empty() {
        serde_json::from_str::<Value>(&stdout).map_err(|e| format!("{name}: {e}: {stdout}"))?;
    }
    let elsewhere = args.iter().any(|a| a == "--junit");
    if !json && !elsewhere && !shown(&stdout) && !shown(&stderr) {
        return Err(format!("{name}: the name is not shown at all: {stdout}{stderr}"));
    }
    Ok(())
}

#[test]
fn nothing_hostile_comes_out_raw() {
    let files = Files::new();
    let places: Vec<Place> = words(&files).into_iter().chain(contents(&files)).collect();
    let clear = || {
        let _ = fs_err::remove_dir_all(files.nothing(""));
        let _ = fs_err::remove_file(files.nothing(".npz"));
        let _ = fs_err::remove_file(files.nothing(".jsonl"));
    };
    let mut problems = Vec::new();
    for place in &places {
        for json in [false, true] {
            problems.extend(look(place, json).err());
            clear();
        }
    }
    for name in ["report.html", "report.xml"] {
        let text = fs_err::read_to_string(files.temp.path(name)).unwrap();
        problems.extend(raw(&text).map(|line| format!("{name} has it raw: {line}")));
        if !shown(&text) {
            problems.push(format!("{name} does not show the name"));
        }
    }
    println!("{} places, {} raw or wrong", places.len(), problems.len());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn the_log_is_one_visible_line_an_event() {
    let files = Files::new();
    let bundle = files.temp.path(HOSTILE);
    crate::faults::copy(&files.bundle, &bundle);
    let out = files.temp.path("g");
    let args = ["generate", bundle.as_str(), "--num", "1", "--no-images", "-o", out.as_str(), "-vvv"];
    let out = run_with(&args.map(str::to_owned), &[]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(out.stderr.contains("preparing"), "{}", out.stderr);
    assert_eq!(raw(&out.stderr), None);
}

#[test]
fn the_check_sees_what_is_raw() {
    for text in ["a\x1b[0m", "a\u{202e}b", "x\n  ::error::", "a ##[error]", "\nFORGED", "a\rb", "\u{85}"] {
        assert!(raw(text).is_some(), "{text:?}");
    }
    assert_eq!(raw("a::b\n  #### plain\n"), None);
}
