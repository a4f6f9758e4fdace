//! `cargo xtask book`: the documents as a book. What stands in it is held against the program by the tests `book::`.

use anyhow::Result;
use camino::Utf8Path;

use crate::command;
use crate::tools::{Tool, tool};

const MDBOOK: Tool = Tool { name: "mdbook", version: "0.5.4", features: &["search"] };

pub(crate) fn run(root: &Utf8Path) -> Result<()> {
    let program = tool(root, &MDBOOK)?;
    command(root, program.as_str(), &["build"])?;
    println!("out/book/index.html");
    Ok(())
}
