//! What is served is what the command line draws.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::arrays::ArrayFile;
use serde_json::{Value, json};

use super::{Answer, Server, bundle};
use crate::cli::run;
use crate::common::Temp;

/// Engines of the default build.
const ENGINES: [&str; 2] = ["tract", "ort"];

/// What `generate` draws, one image at a time.
fn generate(temp: &Temp, bundle: &Utf8Path, name: &str, more: &[&str]) -> Utf8PathBuf {
    let out = temp.path(name);
    let drawn = run(&[&["generate", bundle.as_str(), "--batch", "1", "-o", out.as_str()], more].concat());
    assert_eq!(drawn.code, 0, "{}", drawn.stderr);
    out
}

fn file(folder: &Utf8Path, image: usize) -> Vec<u8> {
    fs_err::read(folder.join(format!("{image:06}.png"))).unwrap()
}

fn picture(image: &Value) -> Vec<u8> {
    STANDARD.decode(image["png"].as_str().unwrap()).unwrap()
}

/// The row of an array of one image.
fn row(trace: &ArrayFile, name: &str, image: usize) -> Vec<i64> {
    let array = trace.i64(name, &[None, None]).unwrap();
    array.rows().into_iter().nth(image).unwrap().iter().copied().collect()
}

/// Alone, with others, and whoever the others are.
#[test]
fn a_seed_gives_the_bytes_of_the_command_line_alone_and_under_load() {
    const CLASSES: [i64; 12] = [3, 7, 1, 9, 0, 5, 2, 8, 4, 6, 3, 3];
    let temp = Temp::new();
    let bundle = bundle(&temp);
    let words = CLASSES.map(|c| c.to_string()).join(",");
    for engine in ENGINES {
        let more = ["--classes", &words, "--seed", "11", "--cfg-scale", "2", "--engine", engine];
        let drawn = generate(&temp, &bundle, engine, &more);
        let trace = ArrayFile::open(drawn.join("trace.npz")).unwrap();
        let server = Server::start(&bundle, &["--engine", engine, "--batch", "5"]);
        let ask = |image: usize| json!({"class": CLASSES[image], "first": image, "seed": 11, "cfg_scale": 2, "trace": true});
        let check = |image: usize, answer: &Answer| {
            let found = &answer.good()["images"][0];
            assert_eq!(picture(found), file(&drawn, image), "{engine}, image {image}");
            assert_eq!(
                found["trace"]["tokens"],
                json!(row(&trace, "tokens", image)),
                "{engine}, image {image}"
            );
            let lengths: Vec<i64> =
                row(&trace, "patch_lengths", image).into_iter().filter(|l| *l > 0).collect();
            assert_eq!(found["trace"]["patch_lengths"], json!(lengths));
            assert_eq!(found["steps"], lengths.len());
        };
        for image in [0, 11] {
            check(image, &server.post("/v1/images", &ask(image)));
        }
        // Others are guided otherwise or not at all, have other thresholds, and end at other times.
        std::thread::scope(|scope| {
            for image in 0..CLASSES.len() {
                let (server, ask) = (&server, &ask);
                scope.spawn(move || check(image, &server.post("/v1/images", &ask(image))));
                scope.spawn(move || {
                    let other = json!({"class": image % 5, "seed": image, "threshold": 3.0 + image as f64 / 4.0,
                                       "temperature": 0.8, "top_k": 50, "cfg_scale": 1.0 + (image % 3) as f64});
                    server.post("/v1/images", &other).good();
                });
            }
        });
        // All at once, as arrays.
        let ask = json!({"classes": CLASSES, "seed": 11, "cfg_scale": 2, "format": "npz", "trace": true});
        let answer = server.post("/v1/images", &ask);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let path = temp.path("answer.npz");
        fs_err::write(&path, &answer.body).unwrap();
        let found = ArrayFile::open(&path).unwrap();
        let samples = ArrayFile::open(drawn.join("samples.npz")).unwrap();
        let pixels =
            |file: &ArrayFile| file.u8("arr_0", &[Some(CLASSES.len()), None, None, Some(3)]).unwrap();
        assert_eq!(pixels(&found), pixels(&samples));
        for image in 0..CLASSES.len() {
            for name in ["tokens", "patch_lengths"] {
                assert_eq!(row(&found, name, image), row(&trace, name, image));
            }
        }
        assert!(server.metric("dpar_rows_busy") == 0.0 && server.metric("dpar_queue_images") == 0.0);
    }
}

/// Numbers of the sampler and of the rule are those of the command line's options, and so are classes that follow from the seed.
#[test]
fn options_are_those_of_the_command_line() {
    let temp = Temp::new();
    let bundle = bundle(&temp);
    let server = Server::start(&bundle, &[]);
    let cases: [(&[&str], Value); 4] = [
        (&["--num", "3", "--seed", "5"], json!({"n": 3, "seed": 5})),
        (
            &["--classes", "4,4", "--threshold", "5.5", "--max-patch-length", "3"],
            json!({"class": 4, "n": 2, "threshold": 5.5, "max_patch_length": 3}),
        ),
        (
            &[
                "--classes",
                "1",
                "--temperature",
                "0.7",
                "--top-k",
                "40",
                "--top-p",
                "0.9",
                "--sampler",
                "cdf",
            ],
            json!({"class": 1, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "sampler": "cdf"}),
        ),
        (
            &["--classes", "2", "--greedy", "--cfg-scale", "3", "--cfg-interval", "20"],
            json!({"classes": ["2"], "greedy": true, "cfg_scale": 3, "cfg_interval": 20}),
        ),
    ];
    for (at, (options, ask)) in cases.iter().enumerate() {
        let drawn = generate(&temp, &bundle, &format!("case-{at}"), options);
        let found = server.post("/v1/images", ask).good();
        let images = found["images"].as_array().unwrap();
        assert_eq!(images.len(), drawn.read_dir_utf8().unwrap().count() - 3, "PNGs, samples, trace, grid");
        for (i, image) in images.iter().enumerate() {
            assert_eq!(picture(image), file(&drawn, i), "{options:?}, image {i}");
        }
    }
}

#[test]
fn one_image_may_be_the_whole_answer() {
    let temp = Temp::new();
    let bundle = bundle(&temp);
    let names = temp.path("names.json");
    let classes: Vec<String> = (0..dpar_export::bundle::Bundle::open(&bundle).unwrap().system().num_classes)
        .map(|c| format!("Class-{c}"))
        .collect();
    fs_err::write(&names, json!(classes).to_string()).unwrap();
    let server = Server::start(&bundle, &["--class-names", names.as_str()]);
    let as_json = server.post("/v1/images", &json!({"class": "class-3"})).good();
    let image = &as_json["images"][0];
    assert_eq!((image["class"].as_i64(), image["class_name"].as_str()), (Some(3), Some("Class-3")));
    assert_eq!((as_json["model"].as_str(), as_json["image_tokens"].as_i64()), (Some("emoji"), Some(64)));
    let answer = server.post("/v1/images", &json!({"class": 3, "format": "png"}));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")));
    assert_eq!(answer.body, picture(image));
    assert_eq!(answer.header("x-steps").unwrap(), image["steps"].to_string());
    let several = server.post("/v1/images", &json!({"class": 3, "n": 2, "format": "png"}));
    assert!(several.refused(400).contains("one image"));
}
