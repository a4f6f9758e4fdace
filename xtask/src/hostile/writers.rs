//! Every command that writes, with an output of its own and two contents for it.

use anyhow::{Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

use super::ground::Ground;

/// A command that writes.
pub(super) struct WritingCommand {
    /// For messages: the command.
    pub(super) name: &'static str,
    /// Name of the output in its place; the ending is part of what the command asks for.
    pub(super) out: &'static str,
    /// How an existing output is replaced: `--force`; none where it always is.
    pub(super) force: Option<&'static str>,
    /// The option that goes on with what a killed run left.
    pub(super) resume: Option<&'static str>,
    args: fn(&Ground, usize) -> Vec<String>,
}

impl WritingCommand {
    /// Whether the output is a folder.
    pub(super) fn folder(&self) -> bool {
        !self.out.contains('.')
    }

    /// Where the output is.
    pub(super) fn path(&self, place: &Utf8Path) -> Utf8PathBuf {
        place.join(self.out)
    }

    /// The command line that writes content 0 or 1 to a place.
    pub(super) fn line(&self, ground: &Ground, content: usize, place: &Utf8Path) -> Vec<String> {
        let out = self.path(place).into_string();
        (self.args)(ground, content).into_iter().map(|w| if w == OUT { out.clone() } else { w }).collect()
    }

    /// The same, replacing or resuming what is there.
    pub(super) fn again(&self, ground: &Ground, content: usize, place: &Utf8Path) -> Vec<String> {
        let there = self.path(place).exists();
        let mut line = self.line(ground, content, place);
        let more = self.resume.or(self.force.filter(|_| there));
        line.extend(more.map(str::to_owned));
        line
    }
}

/// Stands for the output in a command line.
const OUT: &str = "{out}";

fn line(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

fn drawn(ground: &Ground, content: usize, file: &str) -> String {
    ground.models[content].drawn.join(file).into_string()
}

/// The table. `every_writer_is_here` holds it against the program's help.
pub(super) const WRITERS: &[WritingCommand] = &[
    WritingCommand {
        name: "export",
        out: "bundle",
        force: Some("--force"),
        resume: None,
        args: |g, i| line(&[g.models[i].checkpoint.as_str(), "--vq", g.vq.as_str(), "-o", OUT]),
    },
    WritingCommand {
        name: "export --component",
        out: "extractor",
        force: Some("--force"),
        resume: None,
        args: |g, i| {
            let side = ["16", "24"][i];
            line(&["--component", "features", g.network.as_str(), "--input-size", side, "-o", OUT])
        },
    },
    WritingCommand {
        name: "export --emit-trtexec",
        out: "bundle",
        force: Some("--force"),
        resume: None,
        args: |g, i| line(&["--target", "trt", g.models[i].bundle.as_str(), "--emit-trtexec", "-o", OUT]),
    },
    WritingCommand {
        name: "export --target triton",
        out: "repository",
        force: Some("--force"),
        resume: None,
        args: |g, i| line(&["--target", "triton", g.models[i].bundle.as_str(), "--graphs", "-o", OUT]),
    },
    WritingCommand {
        name: "generate",
        out: "drawn",
        force: Some("--force"),
        resume: None,
        args: |g, i| line(&["generate", g.models[i].bundle.as_str(), "--num", "6", "-o", OUT]),
    },
    WritingCommand {
        name: "decode",
        out: "images",
        force: Some("--force"),
        resume: None,
        args: |g, i| {
            let tokens = drawn(g, i, "trace.npz");
            line(&["decode", g.models[i].bundle.as_str(), "--tokens", &tokens, "-o", OUT])
        },
    },
    WritingCommand {
        name: "encode",
        out: "tokens.npz",
        force: Some("--force"),
        resume: None,
        args: |g, i| {
            let images = drawn(g, i, "samples.npz");
            line(&["encode", g.models[i].bundle.as_str(), "--images", &images, "-o", OUT])
        },
    },
    WritingCommand {
        name: "score",
        out: "scores.npz",
        force: Some("--force"),
        resume: None,
        args: |g, i| {
            let inputs = drawn(g, i, "trace.npz");
            line(&["score", g.models[i].bundle.as_str(), "--inputs", &inputs, "-o", OUT])
        },
    },
    WritingCommand {
        name: "reference",
        out: "golden",
        force: Some("--force"),
        resume: None,
        args: |g, i| line(&["reference", g.models[i].bundle.as_str(), "--num", "2", "-o", OUT]),
    },
    WritingCommand {
        name: "attest",
        out: "bundle.intoto.jsonl",
        force: Some("--force"),
        resume: None,
        args: |g, i| line(&["attest", g.models[i].bundle.as_str(), "--key", g.key.as_str(), "-o", OUT]),
    },
    WritingCommand {
        name: "deploy",
        out: "deployed",
        force: Some("--force"),
        resume: None,
        args: |g, i| line(&["deploy", "k8s", g.models[i].bundle.as_str(), "-o", OUT]),
    },
    WritingCommand {
        name: "card",
        out: "card",
        force: Some("--force"),
        resume: None,
        args: |g, i| line(&["card", g.models[i].bundle.as_str(), "-o", OUT]),
    },
    WritingCommand {
        name: "unpack",
        out: "bundle",
        force: Some("--force"),
        resume: None,
        args: |g, i| line(&["unpack", g.models[i].layout.as_str(), "-o", OUT]),
    },
    WritingCommand {
        name: "package",
        out: "layout",
        force: Some("--force"),
        resume: None,
        args: |g, i| line(&["package", g.models[i].bundle.as_str(), "--oci", "-o", OUT]),
    },
    WritingCommand {
        name: "verify --report",
        out: "report.html",
        force: None,
        resume: None,
        args: |g, i| verify(g, i, "--report"),
    },
    WritingCommand {
        name: "verify --junit",
        out: "report.xml",
        force: None,
        resume: None,
        args: |g, i| verify(g, i, "--junit"),
    },
    WritingCommand {
        name: "evaluate",
        out: "metrics",
        force: None,
        resume: Some("--resume"),
        args: |g, i| {
            let (samples, reference, network) = (&g.samples[i], &g.reference, &g.network);
            let images = ["evaluate", "--samples", samples.as_str(), "--reference", reference.as_str()];
            let rest = [
                "--extractor",
                network.as_str(),
                "--input-size",
                "16",
                "--chunk",
                "4",
                "--kid-subset-size",
                "10",
            ];
            line(&[&images[..], &rest, &["-o", OUT]].concat())
        },
    },
];

/// Writers whose output cannot be told by its bytes, or is too large, and that write as others of the table do: `parity` its
/// reports as `verify`; `bench` times, which differ from run to run, as `verify --report`; `synth` half a gigabyte as `generate`, and so does `demo`
/// always the same.
const ELSEWHERE: &[&str] = &["parity", "bench", "synth", "demo"];

fn verify(ground: &Ground, content: usize, option: &str) -> Vec<String> {
    let model = &ground.models[content];
    line(&["verify", model.bundle.as_str(), "--reference", model.golden.as_str(), "--no-probes", option, OUT])
}

/// Fails where the program has a command with an output option that is not in the table.
pub(super) fn every_writer_is_here(ground: &Ground) -> Result<()> {
    let help = ground.good(&["--help"])?.stdout;
    let commands = help.lines().skip_while(|l| !l.starts_with("Commands:")).skip(1);
    // What is indented further goes on with a description.
    let named = commands.take_while(|l| l.starts_with("  ")).filter(|l| !l.starts_with("   "));
    let commands: Vec<&str> = named.filter_map(|l| l.split_whitespace().next()).collect();
    if commands.len() < 10 {
        bail!("the help lists {} commands: its layout has changed", commands.len());
    }
    for command in commands.into_iter().filter(|c| *c != "help") {
        let help = ground.good(&[command, "--help"])?.stdout;
        let writes = ["--output", "--report ", "--junit "].iter().any(|option| help.contains(option));
        let covered =
            ELSEWHERE.contains(&command) || WRITERS.iter().any(|w| w.name.split(' ').next() == Some(command));
        if writes && !covered {
            bail!("`{command}` writes and is not in the table of writers");
        }
    }
    Ok(())
}
