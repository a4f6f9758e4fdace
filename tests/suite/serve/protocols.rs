//! Streams, the shapes of other services, changes of a bundle, the page.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Answer, Server, bundle};
use crate::common::{Temp, export, llamagen};

/// The events of a stream: name and data.
pub(super) fn events(answer: &Answer) -> Vec<(String, Value)> {
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
    let text = answer.text();
    let events = text.split("\n\n").filter(|e| !e.is_empty() && !e.starts_with(':'));
    events
        .map(|event| {
            let (name, data) = event.split_once('\n').unwrap();
            let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            (name.strip_prefix("event: ").unwrap().to_owned(), data)
        })
        .collect()
}

pub(super) fn of<'e>(events: &'e [(String, Value)], name: &str, image: usize) -> Vec<&'e Value> {
    let own = events.iter().filter(|(n, data)| n == name && data["image"] == image);
    own.map(|(_, data)| data).collect()
}

#[test]
fn a_stream_tells_what_the_answer_has() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &[]);
    let ask = json!({"classes": [3, 8], "seed": 2, "cfg_scale": 2, "trace": true});
    let whole = server.post("/v1/images", &ask).good();
    let mut streamed = ask;
    for (key, value) in [("stream", json!(true)), ("tokens", json!(true)), ("preview_every", json!(3))] {
        streamed[key] = value;
    }
    let events = events(&server.post("/v1/images", &streamed));
    assert_eq!(events.last().unwrap().0, "end");
    for image in 0..2 {
        let done = of(&events, "done", image)[0];
        let expected = &whole["images"][image];
        assert_eq!((&done["png"], &done["trace"]), (&expected["png"], &expected["trace"]));
        let tokens: Vec<&Value> = of(&events, "token", image).iter().map(|t| &t["token"]).collect();
        assert_eq!(json!(tokens), expected["trace"]["tokens"]);
        let entropy: Vec<&Value> = of(&events, "token", image).iter().map(|t| &t["entropy"]).collect();
        assert_eq!(json!(entropy), expected["trace"]["entropy"]);
        let patches = of(&events, "patch", image);
        let lengths: Vec<i64> =
            patches.iter().map(|p| p["last"].as_i64().unwrap() - p["first"].as_i64().unwrap() + 1).collect();
        assert_eq!(json!(lengths), expected["trace"]["patch_lengths"]);
        for patch in &patches {
            assert_eq!(
                patch["entropy"],
                expected["trace"]["entropy"][patch["first"].as_u64().unwrap() as usize]
            );
        }
        // After every third patch but the last, where the one before was read.
        let steps = patches.len();
        let previews = of(&events, "preview", image);
        assert!((1..=(steps - 1) / 3).contains(&previews.len()), "{} of {steps} steps", previews.len());
        assert!(STANDARD.decode(previews[0]["png"].as_str().unwrap()).unwrap().starts_with(b"\x89PNG"));
    }
}

#[test]
fn a_stream_whose_reader_goes_away_frees_its_row() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--batch", "1"]);
    let ask = json!({"class": 1, "n": 64, "stream": true, "tokens": true});
    let mut stream = server.begin("/v1/images", &ask);
    let mut first = [0; 64];
    std::io::Read::read_exact(&mut stream, &mut first).unwrap();
    drop(stream);
    server.until("dpar_images_dropped_total", |n| n > 0.0);
    server.until("dpar_rows_busy", |n| n == 0.0);
}

#[test]
fn clients_of_the_openai_api_are_answered() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &[]);
    let models = server.get("/v1/models").good();
    assert_eq!((models["object"].as_str(), models["data"][0]["id"].as_str()), (Some("list"), Some("emoji")));
    let ask = json!({"model": "emoji", "prompt": "3", "n": 2, "size": "32x32", "response_format": "b64_json",
                     "user": "u", "seed": 5});
    let made = server.post("/v1/images/generations", &ask).good();
    let own = server.post("/v1/images", &json!({"class": 3, "n": 2, "seed": 5})).good();
    for image in 0..2 {
        assert_eq!(made["data"][image]["b64_json"], own["images"][image]["png"]);
    }
    assert!(made["created"].as_u64().unwrap() > 1_700_000_000);
    // As events.
    let mut streamed = ask.clone();
    for (key, value) in [("stream", json!(true)), ("partial_images", json!(2)), ("n", json!(1))] {
        streamed[key] = value;
    }
    let told = events(&server.post("/v1/images/generations", &streamed));
    let (last, partial) = told.split_last().unwrap();
    assert_eq!((last.0.as_str(), &last.1["type"]), ("image_generation.completed", &json!(last.0)));
    assert_eq!((&last.1["b64_json"], &last.1["seed"]), (&own["images"][0]["png"], &json!(5)));
    assert!((1..=2).contains(&partial.len()), "{}", partial.len());
    for (index, (name, data)) in partial.iter().enumerate() {
        assert_eq!(
            (name.as_str(), &data["partial_image_index"]),
            ("image_generation.partial_image", &json!(index))
        );
        assert_ne!(data["b64_json"], last.1["b64_json"]);
    }
    let alone = server.post("/v1/images/generations", &json!({"prompt": "3", "partial_images": 1}));
    assert!(alone.refused(400).contains("of streams"));
    // Without a seed, another image each time, and the seed is said.
    let [one, two] =
        [0; 2].map(|_| server.post("/v1/images/generations", &json!({"prompt": "3"})).good()["seed"].clone());
    assert_ne!(one, two);
    for (key, value, reason) in [
        ("size", json!("64x64"), "only 32x32"),
        ("response_format", json!("url"), "only b64_json"),
        ("prompt", json!("a cat"), "no number"),
        ("quality", json!("hd"), "unknown field"),
    ] {
        let mut bad = ask.clone();
        bad[key] = value;
        let message = server.post("/v1/images/generations", &bad).refused(400);
        assert!(message.contains(reason), "{key}: {message}");
    }
}

#[test]
fn clients_of_kserve_are_answered_in_json_and_binary() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &[]);
    assert_eq!(server.get("/v2").good()["extensions"], json!(["binary_tensor_data"]));
    let ports = server.get("/v2/models/emoji").good();
    assert_eq!(ports["inputs"][0], json!({"name": "class", "datatype": "INT64", "shape": [-1]}));
    assert_eq!(ports["outputs"][0]["shape"], json!([-1, 32, 32, 3]));
    assert_eq!(server.get("/v2/models/emoji/ready").good()["ready"], true);
    assert!(server.get("/v2/models/other").json()["error"].as_str().unwrap().contains("other"));

    let own = json!({"classes": [3, 8], "seed": 5, "cfg_scale": 2, "trace": true});
    let own = server.post("/v1/images", &own).good();
    let tokens: Vec<i64> = (0..2)
        .flat_map(|i| {
            own["images"][i]["trace"]["tokens"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap())
        })
        .collect();
    let ask = json!({"id": "7", "inputs": [
        {"name": "class", "shape": [2], "datatype": "INT64", "data": [3, 8]},
        {"name": "seed", "shape": [1], "datatype": "INT64", "data": [5]},
        {"name": "cfg_scale", "shape": [1], "datatype": "FP32", "data": [2.0]}]});
    let made = server.post("/v2/models/emoji/infer", &ask).good();
    assert_eq!((made["id"].as_str(), made["outputs"][0]["name"].as_str()), (Some("7"), Some("image")));
    assert_eq!(made["outputs"][1]["data"], json!(tokens));

    let head = json!({"inputs": [
        {"name": "class", "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": 16}},
        {"name": "seed", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": 8}},
        {"name": "cfg_scale", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}],
        "outputs": [{"name": "tokens", "parameters": {"binary_data": true}}, {"name": "steps"}]})
    .to_string();
    let mut body = head.clone().into_bytes();
    [3_i64, 8, 5].iter().for_each(|v| body.extend(v.to_le_bytes()));
    body.extend(2_f32.to_le_bytes());
    let length = format!("inference-header-content-length: {}", head.len());
    let send = |body: &[u8], length: &str| {
        let headers = ["content-type: application/octet-stream", length];
        Answer::read(server.send("POST /v2/models/emoji/infer", &headers, body))
    };
    let answer = send(&body, &length);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (json, behind) =
        answer.body.split_at(answer.header("inference-header-content-length").unwrap().parse().unwrap());
    let json: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 8 * tokens.len());
    let found: Vec<i64> = behind.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(found, tokens);
    assert_eq!(json["outputs"][1]["data"][0], own["images"][0]["steps"]);
    for (body, length) in [
        (&body[..body.len() - 1], length.as_str()),
        (&[&body[..], b"x"].concat(), &length),
        (&body, "inference-header-content-length: 99999"),
        (&body, "inference-header-content-length: x"),
        (b"{\"inputs\": []}", "x: y"),
        (
            br#"{"inputs": [{"name": "class", "shape": [1], "datatype": "INT64", "data": [1]}],
             "outputs": [{"name": "image"}, {"name": "image"}]}"#,
            "x: y",
        ),
        (
            br#"{"inputs": [{"name": "class", "shape": [1], "datatype": "INT64", "data": [1]},
                         {"name": "seed", "shape": [1], "datatype": "INT64", "data": [1]},
                         {"name": "seed", "shape": [1], "datatype": "INT64", "data": [2]}]}"#,
            "x: y",
        ),
    ] {
        let answer = send(body, length);
        assert!(answer.status == 400 && answer.json()["error"].is_string(), "{}", answer.text());
    }
}

/// New requests get the new bundle, old ones end with theirs, a bad one changes nothing.
#[test]
fn a_bundle_is_changed_while_it_is_served() {
    let temp = Temp::new();
    let folder = bundle(&temp);
    let served = temp.path("served");
    fs_err::rename(&folder, &served).unwrap();
    let server = Server::start(&served, &["--batch", "1"]);
    let ask = json!({"class": 3, "seed": 5, "trace": true});
    let before = server.post("/v1/images", &ask).good();
    let other = temp.path("other");
    let (file, options) = llamagen("emoji32");
    export(file, &options, &other);

    // A bad one: its weights are not those that were recorded.
    let kept = temp.path("kept");
    fs_err::rename(&served, &kept).unwrap();
    crate::faults::copy(&other, &served);
    let weights = served.join("onnx/llamagen.onnx_data");
    let mut bytes = fs_err::read(&weights).unwrap();
    bytes[100] ^= 1;
    fs_err::write(&weights, bytes).unwrap();
    let refused = server.post("/admin/reload", &json!({})).refused(422);
    assert!(refused.contains("served is what it was") && refused.contains("llamagen.onnx_data"), "{refused}");
    assert_eq!(server.metric("dpar_model_changes_total"), 0.0);
    server.post("/admin/reload", &json!({"model": "none"})).refused(404);

    // A good one.
    fs_err::remove_dir_all(&served).unwrap();
    fs_err::rename(&other, &served).unwrap();
    let changed = server.post("/admin/reload", &json!({"model": "served"})).good();
    assert_ne!(changed["models"][0]["bundle"], before["bundle"]);
    let after = server.post("/v1/images", &ask).good();
    assert_eq!(after["bundle"], changed["models"][0]["bundle"]);
    assert_ne!(after["images"][0]["trace"]["tokens"], before["images"][0]["trace"]["tokens"]);
    assert_eq!(after["images"][0]["steps"], 64, "every token is a patch of the baseline");
    assert_eq!(server.metric("dpar_model_changes_total"), 1.0);
}

/// A link that is pointed at another folder and back, while others ask: every answer is one bundle's or the other's.
#[test]
#[cfg(unix)]
fn requests_under_way_end_with_the_bundle_that_they_began_with() {
    use fs_err::os::unix::fs::symlink;
    let temp = Temp::new();
    let (first, second, served) = (bundle(&temp), temp.path("second"), temp.path("served"));
    let (file, options) = llamagen("emoji32");
    export(file, &options, &second);
    let point = |at: &camino::Utf8Path| {
        let next = temp.path("next");
        symlink(at, &next).unwrap();
        fs_err::rename(&next, &served).unwrap();
    };
    point(&first);
    let server = Server::start(&served, &["--batch", "2"]);
    let ask = json!({"class": 3, "seed": 5, "trace": true});
    let before = server.post("/v1/images", &ask).good();
    let long = server.begin("/v1/images", &json!({"class": 3, "seed": 5, "trace": true, "n": 24}));
    server.until("dpar_rows_busy", |n| n > 0.0);
    let (switched, others) = (std::sync::atomic::AtomicBool::new(false), std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !switched.load(std::sync::atomic::Ordering::Relaxed) {
                    others.lock().unwrap().push(server.post("/v1/images", &ask).good());
                }
            });
        }
        for at in [&second, &first, &second] {
            point(at);
            server.post("/admin/reload", &json!({})).good();
        }
        switched.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let after = server.post("/v1/images", &ask).good();
    assert_ne!(after["bundle"], before["bundle"]);
    let others = others.into_inner().unwrap();
    for other in &others {
        let own = if other["bundle"] == before["bundle"] { &before } else { &after };
        assert_eq!(other, own);
    }
    let long = Answer::read(long).good();
    assert_eq!((&long["bundle"], &long["images"][0]), (&before["bundle"], &before["images"][0]));
    assert_eq!(long["images"].as_array().unwrap().len(), 24);
    assert_eq!(server.metric("dpar_model_changes_total"), 3.0);
}

#[test]
#[cfg(unix)]
fn a_hang_up_opens_bundles_again_and_ends_no_request() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--batch", "1"]);
    let under_way = server.begin("/v1/images", &json!({"class": 3, "n": 8}));
    server.until("dpar_rows_busy", |n| n == 1.0);
    server.signal(nix::sys::signal::Signal::SIGHUP);
    server.until("dpar_model_changes_total", |n| n == 1.0);
    assert_eq!(Answer::read(under_way).good()["images"].as_array().unwrap().len(), 8);
}

#[test]
fn the_page_loads_nothing_and_runs_only_its_own_script() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &[]);
    let answer = server.get("/");
    let policy = answer.header("content-security-policy").unwrap();
    let page = answer.text();
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    for tag in ["style", "script"] {
        assert_eq!(page.matches(&format!("<{tag}")).count(), 1);
        let (_, rest) = page.split_once(&format!("<{tag}>")).unwrap();
        let own = rest.split_once(&format!("</{tag}>")).unwrap().0;
        let digest = STANDARD.encode(<sha2::Sha256 as sha2::Digest>::digest(own));
        assert!(policy.contains(&format!("{tag}-src 'sha256-{digest}'")), "{policy}");
    }
    assert!(policy.starts_with("default-src 'none'") && policy.contains("connect-src 'self'"));
    for outside in ["http://", "https://", "//cdn", " src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

/// Every path of the document is there, and takes the methods that it says.
#[test]
fn the_document_describes_the_routes() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &[]);
    let document = server.get("/openapi.json").good();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 13);
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            let path = path.replace("{model}", "emoji");
            let first = format!("{} {path}", method.to_uppercase());
            let answer = Answer::read(server.send(&first, &["content-type: application/json"], b"null"));
            assert!(![404, 405].contains(&answer.status), "{first}: {}", answer.text());
            assert!(
                operation["responses"][answer.status.to_string()].is_object(),
                "{first}: {}",
                answer.status
            );
            let other = if method == "get" { "DELETE" } else { "GET" };
            Answer::read(server.send(&format!("{other} {path}"), &[], b"")).refused(405);
        }
    }
    // What the schema of a query says is what is read.
    let schema = &document["components"]["schemas"]["Query"]["properties"];
    for name in schema.as_object().unwrap().keys() {
        let message = server.post("/v1/images", &json!({"class": 1, "n": 0, name: {}})).refused(400);
        assert!(!message.contains("unknown field"), "{name}: {message}");
    }
    let mut one = server.connect();
    one.write_all(b"nonsense\r\n\r\n").unwrap();
    assert_eq!(Answer::read(one).status, 400);
}
