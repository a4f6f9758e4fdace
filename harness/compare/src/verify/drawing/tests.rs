use super::*;

const KNOWN: [&str; 7] = ["seed", "cfg_scale", "cfg_interval", "sampler", "temperature", "top_k", "top_p"];

fn read(json: &str) -> Result<SettingKeys, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().join("reference.json")).unwrap();
    fs_err::write(&path, json).unwrap();
    SettingKeys::read(&path, 1 << 20, &KNOWN).map_err(|e| e.to_string())
}

fn drawing(json: &str) -> Result<Drawing, String> {
    read(json)?.drawing(Method::Cdf).map_err(|e| e.to_string())
}

#[test]
fn what_is_absent_is_as_it_was_before_there_was_a_choice() {
    let plain = drawing(r#"{"seed": 3, "cfg_scale": 2.0, "note": "emoji"}"#).unwrap();
    let usual = Drawing {
        seed: 3,
        cfg_scale: 2.0,
        cfg_interval: None,
        sampler: Method::Cdf,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
    };
    assert_eq!(plain, usual);
    let all = r#"{"seed": 3, "cfg_scale": 2, "cfg_interval": 7, "sampler": "gumbel", "temperature": 0.5, "top_k": 9,
                  "top_p": 0.25}"#;
    let said = Drawing {
        cfg_interval: Some(7),
        sampler: Method::Gumbel,
        temperature: 0.5,
        top_k: 9,
        top_p: 0.25,
        ..usual
    };
    assert_eq!(drawing(all).unwrap(), said);
    assert_eq!(Drawing::from(&DecodeOptions::from(said)), said);
    let none = r#"{"seed": 3, "cfg_scale": 2.0, "cfg_interval": -1, "temperature": null}"#;
    assert_eq!(drawing(none).unwrap(), usual);
}

#[test]
fn what_cannot_be_is_refused_with_the_name_of_its_key() {
    for (more, key) in [
        (r#""cfg_scale": -2"#, "cfg_scale"),
        (r#""cfg_scale": 1e39"#, "cfg_scale"),
        (r#""cfg_scale": "2""#, "cfg_scale"),
        (r#""cfg_scale": null"#, "cfg_scale"),
        (r#""cfg_scale": 2, "cfg_interval": -2"#, "cfg_interval"),
        (r#""cfg_scale": 2, "cfg_interval": 1.5"#, "cfg_interval"),
        (r#""cfg_scale": 1, "cfg_interval": 3"#, "cfg_interval"),
        (r#""cfg_scale": 2, "temperature": -1"#, "temperature"),
        (r#""cfg_scale": 2, "top_k": -1"#, "top_k"),
        (r#""cfg_scale": 2, "top_p": -0.5"#, "top_p"),
        (r#""cfg_scale": 2, "sampler": "nucleus""#, "sampler"),
        (r#""cfg_scale": 2, "sampler_": "cdf""#, "sampler_"),
        (r#""cfg_scale": 2, "top-k": 5"#, "top-k"),
        (r#""cfg_scale": 2, "TopP": 0.5"#, "TopP"),
        (r#""cfg_scale": 2, "temprature": 0.5"#, "temprature"),
        (r#""cfg_scal": 2"#, "cfg_scal"),
    ] {
        let e = drawing(&format!(r#"{{"seed": 0, {more}}}"#)).unwrap_err();
        assert!(e.contains(&format!("reference.json: `{key}`: ")), "{more}: {e}");
    }
    let e = drawing(r#"{"seed": -1, "cfg_scale": 2}"#).unwrap_err();
    assert!(e.contains("`seed`: "), "{e}");
    assert!(read("[1]").is_err() && read("{").is_err());
    assert!(drawing(r#"{"seed": 1, "cfg_scale": 2, "seed": 2}"#).unwrap_err().contains("seed"));
    // Words for people stay what they are.
    assert!(drawing(r#"{"seed": 0, "cfg_scale": 1, "seeds": [1], "temp": "warm", "steps": 9}"#).is_ok());
    assert_eq!(drawing("\u{feff}{\"seed\": 0, \"cfg_scale\": 1}").unwrap().cfg_scale, 1.0);
}
