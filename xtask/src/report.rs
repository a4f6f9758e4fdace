//! `cargo xtask report-check`: the HTML report in a real browser. Fails on a console message, a request, sideways
//! scrolling, low contrast or a missing label; screenshots stay in `out/report/`.

use std::process::Command;

use anyhow::{Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

use xtask_web::browser::{Browser, View};

use crate::{command, onnx};

/// Screenshots and pages, ignored by git.
const OUT: &str = "out/report";

const VIEWS: [(&str, View); 4] = [
    ("light", View { width: 1280, height: 900, scheme: "light" }),
    ("dark", View { width: 1280, height: 900, scheme: "dark" }),
    ("phone", View { width: 360, height: 780, scheme: "light" }),
    ("phone-dark", View { width: 360, height: 780, scheme: "dark" }),
];
/// Largest page.
const LARGEST: u64 = 3_000_000;

/// Makes a report of every kind and looks at each in every view. `built` as in [`onnx::run`].
pub(crate) fn run(root: &Utf8Path, built: bool) -> Result<()> {
    let program = onnx::program(root, built)?;
    let out = root.join(OUT);
    fs_err::create_dir_all(&out)?;
    let pages = pages(root, &program, &out)?;
    let mut browser = Browser::start(&out)?;
    println!("{}", browser.version()?);
    let mut problems = Vec::new();
    for page in &pages {
        let size = fs_err::metadata(page)?.len();
        if size > LARGEST {
            problems.push(format!("{page}: {size} bytes, {LARGEST} are allowed"));
        }
        for (name, view) in VIEWS {
            let stem = page.file_stem().unwrap_or_default();
            let found = look(&mut browser, page, view, &out.join(format!("{stem}-{name}.png")))?;
            problems.extend(found.into_iter().map(|p| format!("{stem} ({name}): {p}")));
        }
    }
    // What the checks above would miss if they never fired.
    let bad = out.join("bad.html");
    fs_err::write(&bad, BAD)?;
    let found = look(&mut browser, &bad, VIEWS[2].1, &out.join("bad.png"))?;
    for word in ["console", "request", "scrolls", "contrast", "alt", "scope", "heading"] {
        if !found.iter().any(|p| p.contains(word)) {
            problems.push(format!("the check for `{word}` does not fire on a bad page: {found:?}"));
        }
    }
    for name in ["bad.html", "bad.png"] {
        fs_err::remove_file(out.join(name))?;
    }
    if !problems.is_empty() {
        bail!("{} problems:\n  {}", problems.len(), problems.join("\n  "));
    }
    println!("{} pages in {} views: screenshots in {OUT}", pages.len(), VIEWS.len());
    Ok(())
}

/// A page with everything that is looked for.
const BAD: &str = r#"<!DOCTYPE html><html lang="en"><meta name="viewport" content="width=device-width"><title>x</title><h3>x</h3><p style="color:#999;background:#fff">pale</p>
<img src="http://127.0.0.1:9/x.png"><div style="width:900px">wide</div><table><tr><th>x</th></tr></table>
<script>console.error("x")</script></html>"#;

/// Reports of a pass, of a failure, and of several engines.
fn pages(root: &Utf8Path, program: &Utf8Path, out: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let good = out.join("bundle");
    let bad = out.join("bundle-of-other-weights");
    command(root, program.as_str(), &["fixtures/emoji32/dpar", "-o", good.as_str(), "--force", "-q"])?;
    let export = ["fixtures/wrappings/experiment", "--epoch", "3", "-o", bad.as_str(), "--force", "-q"];
    command(root, program.as_str(), &export)?;
    let good = good.as_str();
    let runs: [(&str, i32, &[&str]); 3] = [
        ("verify", 0, &["verify", good, "--reference", "fixtures/emoji32", "--engine", "ort"]),
        ("failed", 1, &["verify", bad.as_str(), "--reference", "fixtures/wrappings"]),
        (
            "parity",
            0,
            &["parity", good, "--engines", "tract,ort", "--reference", "fixtures/emoji32", "--images", "12"],
        ),
    ];
    let mut pages = Vec::new();
    for (name, code, args) in runs {
        let page = out.join(format!("{name}.html"));
        let junit = out.join(format!("{name}.xml"));
        let more = ["--report", page.as_str(), "--junit", junit.as_str(), "-q"];
        let output = Command::new(program).args(args).args(more).current_dir(root).output()?;
        if output.status.code() != Some(code) {
            let talk = String::from_utf8_lossy(&output.stderr);
            bail!("the report `{name}` ended with {}, expected {code}: {talk}", output.status);
        }
        pages.push(page);
    }
    Ok(pages)
}

/// What is wrong with a page that is a file.
fn look(browser: &mut Browser, page: &Utf8Path, view: View, shot: &Utf8Path) -> Result<Vec<String>> {
    browser.visit(&format!("file://{page}"), view, shot, |_, _| Ok(Vec::new()))
}
