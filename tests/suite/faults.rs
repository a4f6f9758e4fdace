//! Seeded faults: a good bundle is changed in one place and its manifest made to fit again, as if a fault in the exporter
//! had written it. `verify` must fail with exit code 1, and `bisect` must name the place.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::CompareError;
use dpar_export::arrays::{ArrayRef, write_safetensors};
use dpar_export::bundle::{Bundle, digest};
use dpar_export::generate::DecodeError;
use dpar_export::loaded::RunError;
use dpar_export::parity::bisect::between;
use dpar_export::patches::pad;
use dpar_export::replay::ForcedTokens;
use dpar_export_checkpoint::LoadOptions;
use dpar_export_metrics::Verdict;
use dpar_export_onnx::derive::{read_model, write_model};
use dpar_export_onnx::proto::{AttributeProto, INT64, ModelProto, NodeProto, TensorProto};
use dpar_export_spec::Precision;
use serde_json::Value;

use crate::cli::{json, run};
use crate::common::{Temp, export, export_as, fixture, on, quiet};

/// A good bundle and a changed copy of it.
struct Pair {
    _temp: Temp,
    good: Utf8PathBuf,
    bad: Utf8PathBuf,
}

pub(crate) fn copy(from: &Utf8Path, to: &Utf8Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in from.read_dir_utf8().unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(entry.path(), &target);
        } else {
            fs_err::copy(entry.path(), &target).unwrap();
        }
    }
}

impl Pair {
    fn new(edit: impl FnOnce(&Utf8Path)) -> Self {
        let temp = Temp::new();
        let (good, bad) = (temp.path("good"), temp.path("bad"));
        export("dpar-small/dpar", &LoadOptions::default(), &good);
        copy(&good, &bad);
        edit(&bad);
        rehash(&bad);
        Self { _temp: temp, good, bad }
    }

    /// `verify` against the authors' outputs: fails, with exit code 1, in one of these checks.
    fn caught(&self, engine: &str, checks: &[&str]) {
        let golden = fixture("dpar-small");
        let args =
            ["verify", self.bad.as_str(), "--reference", golden.as_str(), "--engine", engine, "--json"];
        let probes = checks.iter().any(|c| c.starts_with("probe"));
        let out = run(&[&args[..], if probes { &[] } else { &["--no-probes"] }].concat());
        let report = json(&out);
        assert_eq!((out.code, report["verdict"].as_str()), (1, Some("fail")), "{}", out.stdout);
        for name in checks {
            let check = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == *name).unwrap();
            assert_eq!(check["status"], "fail", "{name}: {}", out.stdout);
        }
    }

    /// `bisect` against the good bundle.
    fn bisect(&self, engine: &str, images: &str) -> Value {
        let args = ["--reference", self.good.as_str(), "--engines", engine, "--images", images, "--json"];
        let out = run(&[&["bisect", self.bad.as_str()][..], &args].concat());
        assert_eq!(out.code, 1, "{}{}", out.stdout, out.stderr);
        json(&out)
    }

    /// `bisect` names this graph and node.
    fn located(&self, engine: &str, graph: &str, node: &str, op: &str) {
        let found = self.bisect(engine, "3");
        assert_eq!(found["graph"]["graphs"][0], graph, "{found:#}");
        assert_eq!(
            (found["node"]["node"].as_str(), found["node"]["op"].as_str()),
            (Some(node), Some(op)),
            "{found:#}"
        );
        let (made, read) = (&found["node"]["max_abs"], &found["node"]["inputs_max_abs"]);
        assert!(made.as_f64().unwrap() > 10.0 * read.as_f64().unwrap(), "{found:#}");
    }
}

/// Makes the manifest fit the files.
pub(crate) fn rehash(bundle: &Utf8Path) {
    let path = bundle.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    for file in manifest["files"].as_array_mut().unwrap() {
        let (size, sha256) = digest(&bundle.join(file["path"].as_str().unwrap())).unwrap();
        file["size"] = size.into();
        file["sha256"] = sha256.into();
    }
    fs_err::write(&path, serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
}

/// Changes one graph.
pub(crate) fn graph(bundle: &Utf8Path, name: &str, edit: impl FnOnce(&mut ModelProto)) {
    let path = bundle.join(format!("onnx/{name}.onnx"));
    let mut model = read_model(&fs_err::read(&path).unwrap()).unwrap();
    edit(&mut model);
    fs_err::write(&path, write_model(&model)).unwrap();
}

fn entry(tensor: &TensorProto, key: &str) -> usize {
    let found = tensor.external_data.iter().find(|e| e.key.as_deref() == Some(key)).unwrap();
    found.value.as_ref().unwrap().parse().unwrap()
}

/// Changes the values of one weight, given with its shape.
fn weight(bundle: &Utf8Path, name: &str, edit: impl FnOnce(&[i64], &mut Vec<f32>)) {
    let model = read_model(&fs_err::read(bundle.join("onnx/decoder_step.onnx")).unwrap()).unwrap();
    let graph = model.graph.unwrap();
    let tensor = graph.initializer.iter().find(|t| t.name.as_deref() == Some(name)).unwrap();
    let (start, length) = (entry(tensor, "offset"), entry(tensor, "length"));
    let path = bundle.join("onnx/dpar.onnx_data");
    let mut data = fs_err::read(&path).unwrap();
    let bytes = &mut data[start..start + length];
    let mut values: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    edit(&tensor.dims, &mut values);
    let new: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    bytes.copy_from_slice(&new);
    fs_err::write(&path, data).unwrap();
}

#[test]
fn one_weight_perturbed_by_a_thousandth() {
    let pair = Pair::new(|bundle| weight(bundle, "output.weight.T", |_, values| values[7] += 1e-3));
    pair.caught("ort", &["logits"]);
    pair.located("ort", "decoder_step", "/head/MatMul", "MatMul");
}

#[test]
fn a_weight_that_was_not_transposed() {
    let pair = Pair::new(|bundle| {
        weight(bundle, "local_decoder.layers.0.attention.wqkv.weight.T", |dims, values| {
            let (rows, columns) = (dims[0] as usize, dims[1] as usize);
            let old = values.clone();
            for (i, value) in values.iter_mut().enumerate() {
                *value = old[i % rows * columns + i / rows];
            }
        });
    });
    pair.caught("ort", &["logits", "greedy tokens"]);
    pair.located("ort", "decoder_step", "/local_decoder.layers.0/attention/MatMul", "MatMul");
}

#[test]
fn rotary_positions_off_by_one() {
    let pair = Pair::new(|bundle| {
        for name in ["decoder_step", "score"] {
            graph(bundle, name, |model| {
                let graph = model.graph.as_mut().unwrap();
                for table in graph
                    .initializer
                    .iter_mut()
                    .filter(|t| t.name.as_deref().is_some_and(|n| n.starts_with("rotary.decoder")))
                {
                    // The table begins one row later in the data file.
                    let row = 4 * table.dims[1] as usize;
                    let start = entry(table, "offset") + row;
                    let offset = table.external_data.iter_mut().find(|e| e.key.as_deref() == Some("offset"));
                    offset.unwrap().value = Some(start.to_string());
                }
            });
        }
    });
    pair.caught("ort", &["logits"]);
    let found = pair.bisect("ort", "2");
    assert_eq!(found["graph"]["graphs"][0], "decoder_step", "{found:#}");
    assert_eq!(found["node"]["op"], "Gather", "{found:#}");
}

/// The keys and values of a step without the oldest slot, and the newest twice.
#[test]
fn a_past_that_is_one_slot_too_short() {
    let pair = Pair::new(|bundle| {
        graph(bundle, "decoder_step", |model| {
            let graph = model.graph.as_mut().unwrap();
            let ints = |name: &str, value: i64| TensorProto {
                name: Some(name.to_owned()),
                dims: vec![1],
                data_type: Some(INT64),
                raw_data: Some(value.to_le_bytes().to_vec()),
                ..TensorProto::default()
            };
            graph.initializer.extend([ints("f/from", 1), ints("f/to", i64::MAX), ints("f/axis", 0)]);
            for past in ["past_key_0", "past_value_0"] {
                let reads = |n: &NodeProto| n.input.first().is_some_and(|i| i == past);
                let at = graph.node.iter().position(reads).unwrap();
                let node = &mut graph.node[at];
                assert_eq!(node.op_type.as_deref(), Some("Concat"));
                node.input[0] = format!("f/{past}");
                node.input.push(node.input[1].clone());
                let cut = NodeProto {
                    input: [past, "f/from", "f/to", "f/axis"].map(str::to_owned).into(),
                    output: vec![format!("f/{past}")],
                    name: Some(format!("f/Slice/{past}")),
                    op_type: Some("Slice".to_owned()),
                    attribute: Vec::<AttributeProto>::new(),
                    ..NodeProto::default()
                };
                graph.node.insert(at, cut);
            }
        });
    });
    pair.caught("ort", &["probe: steps = whole sequence"]);
    let found = pair.bisect("ort", "2");
    assert_eq!(found["graph"]["graphs"][0], "decoder_step", "{found:#}");
    assert_eq!(found["graph"]["slot"], 1, "with an empty past nothing is lost: {found:#}");
    assert_eq!(found["node"]["op"], "Concat", "{found:#}");
}

/// The attention over a patch's tokens without its mask. The probe needs no reference to see it.
#[test]
fn a_padded_row_that_leaks() {
    let mut name = String::new();
    let pair = Pair::new(|bundle| {
        graph(bundle, "patch_embed", |model| {
            let nodes = &mut model.graph.as_mut().unwrap().node;
            let softmax = nodes.iter().find(|n| n.op_type.as_deref() == Some("Softmax")).unwrap();
            let masked = softmax.input[0].clone();
            let add = nodes.iter_mut().find(|n| n.output[0] == masked).unwrap();
            assert_eq!(add.op_type.as_deref(), Some("Add"));
            add.op_type = Some("Identity".to_owned());
            add.input.truncate(1);
            name = add.name.clone().unwrap();
        });
    });
    pair.caught("ort", &["probe: padding"]);
    let found = pair.bisect("ort", "4");
    assert_eq!(found["graph"]["graphs"][0], "patch_embed", "{found:#}");
    assert_eq!(found["node"]["node"].as_str(), Some(name.as_str()), "{found:#}");
}

/// Ctrl-C is no finding, also where nothing else can be found: both sources go wrong at the same slot.
#[test]
fn an_interrupt_is_not_taken_for_outputs_that_are_no_numbers() {
    let mut table = String::new();
    let pair = Pair::new(|bundle| {
        let model = read_model(&fs_err::read(bundle.join("onnx/decoder_step.onnx")).unwrap()).unwrap();
        let names = model.graph.unwrap().initializer.into_iter().filter_map(|t| t.name);
        table = names.into_iter().find(|name| name.starts_with("rotary.decoder")).unwrap();
        // Row i of a table is slot i's.
        weight(bundle, &table, |dims, values| {
            let row = dims[1] as usize;
            values[4 * row..5 * row].fill(f32::NAN);
        });
    });
    let bundle = Bundle::open(&pair.bad).unwrap();
    let runtime = on(&bundle, "tract");
    let forced = ForcedTokens { tokens: vec![0; bundle.system().tokens()], labels: vec![0] };
    let mut calls = 0;
    let mut run = |most: usize| {
        calls = 0;
        let progress = &mut |_, _| {
            calls += 1;
            calls < most
        };
        between(["a", "b"], &runtime, &runtime, &forced, 1.0, progress).map(|found| (found, calls))
    };
    let (found, calls) = run(usize::MAX).unwrap();
    assert_eq!((found.verdict, found.symptom), (Verdict::Fail, None));
    assert_eq!(found.graph.unwrap().slot, Some(4));
    // Both sources, and the run that looks for the graph, come as far: this is that run's first slot.
    let first = calls / 3 * 2 + 1;
    assert!(first > 1 && calls % 3 == 0, "{calls}");
    let stopped = run(first).unwrap_err();
    let CompareError::Run(RunError::Interrupted | RunError::Decode(DecodeError::Interrupted)) = stopped
    else {
        panic!("{stopped}");
    };
}

/// Bundles of two types, and recorded outputs that were edited, are no case for a comparison.
#[test]
fn unlike_precisions_and_edited_recordings_are_refused() {
    let temp = Temp::new();
    let (good, half, golden) = (temp.path("good"), temp.path("half"), temp.path("golden"));
    let options = LoadOptions::default();
    export("dpar-small/dpar", &options, &good);
    export_as("dpar-small/dpar", Precision::Fp16, &options, &half);
    let out = run(&["bisect", half.as_str(), "--reference", good.as_str(), "--images", "1"]);
    assert!(out.code == 2 && out.stderr.contains("unlike precision"), "{} {}", out.code, out.stderr);

    let out = run(&["reference", good.as_str(), "--num", "1", "-o", golden.as_str()]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let bisect = || run(&["bisect", good.as_str(), "--reference", golden.as_str()]);
    let out = bisect();
    assert!(out.code == 0 && out.stdout.contains("nothing differs"), "{}{}", out.stdout, out.stderr);
    let path = golden.join("golden.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs_err::write(&path, bytes).unwrap();
    assert_eq!(bisect().code, 5);
    let parity = ["parity", good.as_str(), "--engines", "tract", "--no-probes", "--images", "1"];
    let out = run(&[&parity[..], &["--reference", golden.as_str()]].concat());
    assert_eq!(out.code, 5, "{}{}", out.stdout, out.stderr);
}

/// Recorded outputs of the loop agree; the tokenizer does not.
#[test]
fn a_tokenizer_at_fault_is_named_by_recorded_outputs() {
    let pair = Pair::new(|bundle| {
        graph(bundle, "vq_decode", |model| {
            let graph = model.graph.as_mut().unwrap();
            let node = graph.node.last_mut().unwrap();
            let output = node.output[0].clone();
            node.output[0] = "f/image".to_owned();
            graph.node.push(NodeProto {
                input: vec!["f/image".to_owned()],
                output: vec![output],
                name: Some("f/Neg".to_owned()),
                op_type: Some("Neg".to_owned()),
                attribute: Vec::<AttributeProto>::new(),
                ..NodeProto::default()
            });
        });
    });
    let golden = fixture("dpar-small");
    let args = ["bisect", pair.bad.as_str(), "--reference", golden.as_str(), "--engines", "ort", "--json"];
    let out = run(&args);
    let found = json(&out);
    assert_eq!(out.code, 1, "{found:#}");
    assert_eq!(found["graph"]["graphs"], serde_json::json!(["vq_decode"]), "{found:#}");
    assert_eq!(found["symptom"], Value::Null, "{found:#}");
}

/// Writes another rule into a bundle.
fn rule(bundle: &Utf8Path, edit: &dyn Fn(&mut Value)) {
    for file in ["config.json", "manifest.json"] {
        let path = bundle.join(file);
        let mut value: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        edit(&mut value);
        fs_err::write(&path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
    }
    rehash(bundle);
}

/// `>` for `>=` in the patch rule shows where an entropy equals the threshold, and nowhere else. So: outputs recorded with
/// such a threshold, and a bundle whose threshold is the float32 below, which is what `>=` means.
#[test]
fn at_or_above_the_threshold_in_place_of_above() {
    let temp = Temp::new();
    let (good, bad, golden) = (temp.path("good"), temp.path("bad"), temp.path("golden"));
    let bundle = export("dpar-small/dpar", &LoadOptions::default(), &good);
    let t = bundle.system().tokens();
    let file = dpar_export::arrays::ArrayFile::open(fixture("dpar-small/golden.safetensors")).unwrap();
    let ids: Vec<i64> = file.i64("tokens", &[None, Some(t)]).unwrap().iter().copied().take(t).collect();
    let labels = [file.i64("class_labels", &[None]).unwrap()[0]];
    let entropy = on(&bundle, "tract").score(&ids, &labels, None, 1, &mut quiet).unwrap().entropy.unwrap();
    let shifted = dpar_export::generate::shift_entropy(&entropy);
    let lengths = |threshold: f32| {
        let rule = dpar_export_spec::PatchRule { threshold: Some(threshold), ..bundle.patch_rule().clone() };
        rule.lengths(t, &shifted)
    };
    // An entropy that decides.
    let equal = *shifted[2..].iter().find(|e| lengths(**e) != lengths(e.next_down())).unwrap();
    rule(&good, &|value| value["patch_rule"]["threshold"] = f64::from(equal).into());
    copy(&good, &bad);
    rule(&bad, &|value| value["patch_rule"]["threshold"] = f64::from(equal.next_down()).into());

    let bundle = Bundle::open(&good).unwrap();
    let scores = on(&bundle, "tract").score(&ids, &labels, None, 1, &mut quiet).unwrap();
    assert!(scores.entropy.as_ref().unwrap().contains(&equal));
    fs_err::create_dir(&golden).unwrap();
    let (padded, columns) = pad(scores.patch_lengths.iter().map(Vec::as_slice));
    let (matrix, shape, rows) = ([1, t], [1, t, bundle.system().vocab], [1, columns]);
    let arrays = [
        ("tokens", ArrayRef::i64(&matrix, &ids)),
        ("class_labels", ArrayRef::i64(&matrix[..1], &labels)),
        ("logits", ArrayRef::f32(&shape, &scores.logits)),
        ("entropy", ArrayRef::f32(&matrix, scores.entropy.as_ref().unwrap())),
        ("patch_lengths", ArrayRef::i64(&rows, &padded)),
    ];
    write_safetensors(&golden.join("golden.safetensors"), &arrays).unwrap();

    let verify = |bundle: &Utf8Path, command: &str| {
        run(&[command, bundle.as_str(), "--reference", golden.as_str(), "--no-probes"])
    };
    assert_eq!(verify(&good, "verify").code, 0);
    for command in ["verify", "parity"] {
        let out = verify(&bad, command);
        assert!(out.code == 1 && out.stdout.contains("patch rule"), "{command}: {}", out.stdout);
    }
    let out = run(&["bisect", bad.as_str(), "--reference", golden.as_str()]);
    assert!(out.code == 1 && out.stdout.contains("the patch rule, and no graph"), "{}", out.stdout);
    let out = run(&["bisect", bad.as_str(), "--reference", good.as_str()]);
    assert!(out.code == 1 && out.stdout.contains("the patch rules"), "{}", out.stdout);
}

/// `>` for `>=` in the other comparison: patches of one token less than the longest.
#[test]
fn a_longest_patch_that_is_one_token_short() {
    let pair = Pair::new(|bundle| {
        rule(bundle, &|value| {
            let rule = &mut value["patch_rule"];
            assert_eq!(rule["max_patch_length"], 4);
            rule["max_patch_length"] = 3.into();
        });
    });
    pair.caught("ort", &["patch rule"]);
    let found = pair.bisect("ort", "2");
    assert_eq!(found["graph"], Value::Null, "{found:#}");
    assert!(found["symptom"]["what"].as_str().unwrap().starts_with("boundary differs"), "{found:#}");
    assert!(found["note"].as_str().unwrap().contains("patch rules"), "{found:#}");
}
