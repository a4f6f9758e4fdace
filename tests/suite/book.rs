//! The documents: every command of the tutorial runs and shows what the page shows, every link leads somewhere, every page is in the book.

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};

use crate::common::{Temp, fixture};

/// What stands for output that is not shown.
const REST: &str = "…";

fn root() -> Utf8PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn page(path: &str) -> String {
    fs_err::read_to_string(root().join(path)).unwrap()
}

/// A command of a page, the exit code that it says, and the output that it shows.
struct ShownCommand<'a> {
    line: &'a str,
    exit: i32,
    output: Vec<&'a str>,
}

/// The commands of all `console` blocks, in order.
fn commands(text: &str) -> Vec<ShownCommand<'_>> {
    let mut commands: Vec<ShownCommand<'_>> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match (line, inside) {
            ("```console", _) => inside = true,
            ("```", _) => inside = false,
            (line, true) => match line.strip_prefix("$ ") {
                Some(typed) => {
                    let (line, exit) = typed.split_once("# exit ").unwrap_or((typed, "0"));
                    let exit = exit.trim().parse().unwrap();
                    commands.push(ShownCommand { line, exit, output: Vec::new() });
                }
                None => commands.last_mut().unwrap().output.push(line),
            },
            _ => {}
        }
    }
    commands
}

/// Every run of digits, with the points in it, as `#`: times and sizes differ, words must not. Runs of blanks as one.
fn comparable(line: &str) -> String {
    let mut shape = String::new();
    for c in line.trim().chars() {
        match c {
            '0'..='9' if shape.ends_with('#') => {}
            '0'..='9' => shape.push('#'),
            '.' if shape.ends_with('#') => {}
            ' ' if shape.ends_with(' ') => {}
            c => shape.push(c),
        }
    }
    shape
}

/// Whether the lines of `found` are those of `shown`, in order, where [`REST`] stands for any lines, and at the end of one for
/// the rest of it.
fn shows(shown: &[&str], found: &[String]) -> Result<(), String> {
    let mut found = found.iter();
    let mut skip = false;
    for line in shown {
        if line.trim() == REST {
            skip = true;
            continue;
        }
        let wanted = comparable(line);
        let fits = |found: &String| match wanted.strip_suffix(REST) {
            Some(start) => comparable(found).starts_with(start),
            None => comparable(found) == wanted,
        };
        let there = if skip { found.any(fits) } else { found.next().is_some_and(fits) };
        if !there {
            return Err(format!("`{line}` is not there"));
        }
        skip = false;
    }
    match found.next() {
        Some(more) if !skip => Err(format!("the page does not show `{more}`")),
        _ => Ok(()),
    }
}

#[cfg(unix)]
#[test]
fn every_command_of_the_tutorial_shows_what_the_page_shows() {
    let temp = Temp::new();
    let folder = temp.path("");
    std::os::unix::fs::symlink(fixture(""), temp.path("fixtures")).unwrap();
    let program = Utf8PathBuf::from_path_buf(assert_cmd::cargo::cargo_bin("dpar-export")).unwrap();
    let path = format!("{}:{}", program.parent().unwrap(), std::env::var("PATH").unwrap());
    let text = page("docs/tutorial.md");
    let commands = commands(&text);
    assert!(commands.len() >= 8, "the page has its commands in `console` blocks");
    for command in commands {
        let ran = Command::new("sh")
            .args(["-c", command.line])
            .current_dir(&folder)
            .env("PATH", &path)
            .env_remove("GITHUB_ACTIONS")
            .output()
            .unwrap();
        let (out, talk) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert_eq!(ran.status.code(), Some(command.exit), "{}\n{out}{talk}", command.line);
        let found: Vec<String> = out.lines().chain(talk.lines()).map(str::to_owned).collect();
        shows(&command.output, &found).unwrap_or_else(|e| panic!("{}\n{e} in\n{out}{talk}", command.line));
    }
}

#[test]
fn a_page_that_shows_something_else_is_found() {
    let found = ["bundle: 9 graphs in 0.7 s".to_owned(), "pass: tract on cpu".to_owned()];
    assert_eq!(shows(&["bundle: 9 graphs in 12.34 s", "pass: tract …"], &found), Ok(()));
    assert_eq!(shows(&["…", "pass: tract on cpu"], &found), Ok(()));
    assert!(shows(&["bundle: 9 graphs in 1 s"], &found).is_err(), "one line more");
    assert!(shows(&["bundle: 9 engines in 1 s", "…"], &found).is_err(), "another word");
    assert!(shows(&["…", "fail: …"], &found).is_err());
}

/// The target of every link of a page, without its anchor; other sites are left out.
fn links(text: &str) -> Vec<(&str, Option<&str>)> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let own = targets.filter(|t| !t.contains("://"));
    own.map(|t| t.split_once('#').map_or((t, None), |(file, anchor)| (file, Some(anchor)))).collect()
}

/// A heading as an anchor.
fn anchor(heading: &str) -> String {
    let letters = heading.trim().to_lowercase();
    letters
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

#[test]
fn every_link_leads_somewhere_and_every_page_is_in_the_book() {
    let docs = root().join("docs");
    let mut pages: Vec<Utf8PathBuf> = docs
        .read_dir_utf8()
        .unwrap()
        .map(|e| e.unwrap().into_path())
        .filter(|p| p.extension() == Some("md"))
        .collect();
    let summary = page("docs/SUMMARY.md");
    for page in &pages {
        let name = page.file_name().unwrap();
        assert!(
            name == "SUMMARY.md" || summary.contains(&format!("({name})")),
            "docs/SUMMARY.md lacks {name}"
        );
    }
    pages.extend(["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root().join(name)));
    let mut seen = 0;
    for path in pages {
        let text = fs_err::read_to_string(&path).unwrap();
        for (file, target) in links(&text) {
            let to = if file.is_empty() {
                path.clone()
            } else {
                path.parent().unwrap_or(Utf8Path::new("")).join(file)
            };
            assert!(to.exists(), "{path} links to {file}");
            if let Some(target) = target.filter(|_| to.extension() == Some("md")) {
                let text = fs_err::read_to_string(&to).unwrap();
                let headings =
                    text.lines().filter(|l| l.starts_with('#')).map(|l| anchor(l.trim_start_matches('#')));
                assert!(headings.into_iter().any(|h| h == target), "{path} links to {file}#{target}");
            }
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} links");
}
